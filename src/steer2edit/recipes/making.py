"""Vectors and edits as the settings ask for them, a first look at an edit, in seconds, and an edit made anew."""

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from steer2edit.core import SteeringVectors, WeightEdit
from steer2edit.editing import convert
from steer2edit.editing.convert import MIN_TOKENS, PREVIEW_ROWS
from steer2edit.engines import Request, TransformersEngine
from steer2edit.errors import DataError, InvalidValueError
from steer2edit.estimates import CHANGE, NUMBER, Condition, Estimate
from steer2edit.evaluation import BASE_ARM, Behaviour, at_drift, behaviour, edit_arm, evaluate, steering_arm
from steer2edit.evaluation.statistics import estimate, mean, paired
from steer2edit.method.hyperparameters import EVERYTHING, GATED_RULES, PAPER_RULES, Hyperparameters, Rules
from steer2edit.models import LanguageModel, Prompt, Sampling, encode_responses
from steer2edit.models.fine_tuning import FineTune, fine_tuned
from steer2edit.settings import Accepting, ConvertOptions, ExtractOptions, RefitOptions
from steer2edit.steering.contrast import IN_MEMORY, ContrastSet, Source, load_contrast
from steer2edit.steering.effects import measure_effects
from steer2edit.steering.examples import require_no_overlap
from steer2edit.steering.extract import extract, measure_inputs
from steer2edit.steering.presets import helpful_answers
from steer2edit.tables import shown_reply, visible

STRENGTH = 0.3
"""Of the steering beside the edit: strong enough to show what the vectors are of."""
_MOST_ROWS = 16
_PROMPTS = 4
_REPLY = Sampling(max_new_tokens=32)
_NOTHING = 0.02  # nats per token


@dataclass(frozen=True, repr=False)
class Preview:
    """What a few validation rows show of an edit.

    Args:
        prompts: what was asked.
        replies: by what the model ran under, the base first, steering next, the edit last.
        log_odds: of the positive against the negative responses, nats per token, by the same names.
        changes: of these to the base, paired.
    """

    prompts: tuple[Prompt, ...]
    replies: Mapping[str, tuple[str, ...]]
    log_odds: Mapping[str, Estimate]
    changes: Mapping[str, Estimate]

    @property
    def changed(self) -> int:
        """How many of the edit's replies are not the base's."""
        base, *_, edited = self.replies.values()
        return sum(a != b for a, b in zip(base, edited, strict=True))

    @property
    def nothing(self) -> bool:
        """Whether nothing can be seen of the edit."""
        change = list(self.changes.values())[-1].value
        return not self.changed and (change is None or abs(change) < _NOTHING)

    @property
    def sentences(self) -> list[str]:
        """What it comes to, in words."""
        steered, edited = self.changes
        replies = f"{self.changed} of {len(self.prompts)} replies differ from the base's"
        empty = sum(not own.strip() for own in self.replies[edited])
        replies += f", {empty} of them {'is' if empty == 1 else 'are'} empty" if empty else ""
        odds = (
            f"Log-odds of the wanted responses, nats per token: base {NUMBER.text(self.log_odds[BASE_ARM.label])}; "
            f"changed by {CHANGE.text(self.changes[edited])} with the {edited} and by "
            f"{CHANGE.text(self.changes[steered])} with {steered} (n = {self.changes[edited].n})."
        )
        first = f"With the edit {replies}."
        if self.nothing:
            first = (
                f"This edit changes nothing that can be seen: {replies}, and the log-odds hardly move. Make it "
                "stronger (a larger --kl; by the paper's rule a smaller rho), or, if it is not, of measured effects "
                "(extract --effects)."
            )
        return [first, odds]

    def __repr__(self) -> str:
        lines = []
        for index, prompt in enumerate(self.prompts):
            lines.append(f"  {prompt if isinstance(prompt, str) else prompt[-1]['content']}")
            lines += [f"    {name}: {shown_reply(' '.join(own[index].split()))}" for name, own in self.replies.items()]
        return visible("\n".join([*lines, *self.sentences]))

    def _repr_html_(self) -> str:
        return f'<pre style="white-space: pre-wrap">{html.escape(repr(self))}</pre>'

    def to_json(self) -> dict[str, Any]:
        """All of it by name."""
        return {**asdict(self), "prompts": list(self.prompts), "nothing": self.nothing}


def with_preview_rows(vectors: SteeringVectors, contrast: ContrastSet) -> SteeringVectors:
    """The vectors with a few validation rows of their contrast, which `preview` looks at an edit with."""
    known = contrast.validation
    pairs = [(known.positive[i], known.negative[j]) for i, j in known.pairs()[:_MOST_ROWS]]
    if not pairs:
        return vectors
    rows = [{"positive": list(more), "negative": list(less)} for more, less in pairs]
    return replace(vectors, metadata={**vectors.metadata, PREVIEW_ROWS: rows})


def preview(
    model: LanguageModel, vectors: SteeringVectors, edit: WeightEdit, strength: float = STRENGTH
) -> Preview | None:
    """A few replies of base, steered and edited model, and what became of the log-odds; `None` without rows for it."""
    rows: Sequence[Mapping[str, tuple[Prompt, str]]] = vectors.metadata.get(PREVIEW_ROWS, ())
    if not rows:
        return None
    arms = [BASE_ARM, steering_arm(vectors, strength), edit_arm(edit, "edit")]
    engine, names = TransformersEngine(model), [arm.label for arm in arms]
    prompts = tuple(row["positive"][0] for row in rows[:_PROMPTS])
    requests = [Request(prompt, arm.intervention) for arm in arms for prompt in prompts]
    shown = [reply.shown for reply in engine.generate(requests, _REPLY)]
    pairs = [(row[side][0], row[side][1]) for side in ("positive", "negative") for row in rows]
    margins = []
    for scores in engine.score(encode_responses(model, pairs), [arm.intervention for arm in arms], kl=False):
        more, less = scores[: len(rows)], scores[len(rows) :]
        margins.append([b.nll - a.nll for a, b in zip(more, less, strict=True)])
    return Preview(
        prompts,
        {name: tuple(shown[i * len(prompts) : (i + 1) * len(prompts)]) for i, name in enumerate(names)},
        {name: mean(own) for name, own in zip(names, margins, strict=True)},
        {name: paired(own, margins[0]) for name, own in zip(names[1:], margins[1:], strict=True)},
    )


def told(seen: Preview | None) -> str:
    """What a command says of a first look, under its heading."""
    return f"Preview\n{seen or 'There is none: these vectors bring no validation rows to look at the edit with.'}"


NOW = "as it is now"
_SHARES = (1.0, 0.3, 0.1)
"""Of its drift, at which a refitted edit is tried; the first of those that show as much."""
RECIPE = "recipe"
"""Key of the metadata of vectors: the settings that are not the usual ones, from which `refit` extracts again."""
_LIGHT_TUNE = FineTune(steps=16, batch=4, learning_rate=5e-4)
EFFECT_KL = 0.03
"""Nats per token that an edit made of effects spends: its own scale has no meaning."""


def make_vectors(
    model: LanguageModel, options: ExtractOptions, source: Source | ContrastSet | None = None
) -> SteeringVectors:
    """The vectors that the options ask for, of `source` in place of what they name, with effects if wanted."""
    sampling = Sampling(options.max_new_tokens, options.temperature, seed=options.seed)
    contrast = source if isinstance(source, ContrastSet) else load_contrast(
        options.source if source is None else source, model,
        labeller=options.labeller, limit=options.limit, sampling=sampling, seed=options.seed,
    )  # fmt: skip
    found = extract(
        model, contrast, block_outputs=options.block_outputs, direction=options.direction, span=options.span
    )
    vectors = with_preview_rows(found, contrast)
    if source is None or isinstance(source, str | Path):
        made = options if source is None else replace(options, contrast=str(source))
        named = {name: value for name, value in vars(made).items() if value != getattr(ExtractOptions, name)}
        recipe = {name: str(value) if isinstance(value, Path) else value for name, value in named.items()}
        vectors = replace(vectors, metadata={**vectors.metadata, RECIPE: recipe})
    if options.effects or options.decided_by or options.silent_on or options.robust:
        copies: dict[str, AbstractContextManager[object]] = {}
        if options.robust == "tuned":  # every other harmless answer: the contract's own fine-tune has them all
            tune = replace(_LIGHT_TUNE, seed=options.seed + 1)
            copies["tuned"] = fine_tuned(model, helpful_answers(model)[::2], tune)
        vectors = measure_effects(
            model, vectors, contrast, decided_by=options.decided_by, silent_on=options.silent_on,
            seed=options.seed, copies=copies or None, wordings=options.robust == "wordings",
        )  # fmt: skip
    return vectors


def make_edit(
    model: LanguageModel, vectors: SteeringVectors, options: ConvertOptions, accepting: Accepting = Accepting()
) -> WeightEdit:
    """The edit that the options ask for, scaled to a drift if one is given; edits of effects to at most 0.03."""
    rules, hyperparameters = rules_of(options, vectors)
    vectors = with_inputs(model, vectors, options)
    least = MIN_TOKENS if options.min_expert_tokens is None else options.min_expert_tokens
    edit = convert(model, vectors, hyperparameters, rules, min_tokens=least, **vars(accepting))
    kl = options.kl
    if kl is None and rules.importance == "effect":  # less where the row was made for less
        kl = min(EFFECT_KL, vectors.metadata.get("effects", {}).get("drift", EFFECT_KL))
    return edit if kl is None else at_drift(TransformersEngine(model), edit, kl)


def with_inputs(model: LanguageModel, vectors: SteeringVectors, options: ConvertOptions) -> SteeringVectors:
    """The vectors with what those made elsewhere lack, measured on a contrast if one is given; others as they are."""
    if options.contrast is None or vectors.has_input_means:
        return vectors
    contrast = load_contrast(options.contrast, model, labeller=options.labeller, limit=options.limit, seed=options.seed)
    return with_preview_rows(measure_inputs(model, vectors, contrast), contrast)


def rules_of(options: ConvertOptions, vectors: SteeringVectors) -> tuple[Rules, Hyperparameters]:
    """What is asked for; the recommended rules for effects where nothing else is said and the vectors have any."""
    rules = Rules(options.input_direction, options.importance, options.magnitude)  # type: ignore[arg-type]
    given = (options.rho_attn, options.rho_mlp) != (None, None)
    if rules == PAPER_RULES and not given and vectors.has_effects:
        rules = GATED_RULES
    by_effect = rules.importance == "effect"
    if not given and not by_effect:
        raise InvalidValueError(
            "these vectors have no measured effects, and the paper's rule needs a budget: extract with --effects "
            "(effects=True), or give --rho-attn or --rho-mlp, e.g. 0.2 and 0.9."
        )
    rho = (options.rho_attn, options.rho_mlp) if given else (EVERYTHING.rho_attn, EVERYTHING.rho_mlp)
    default = EVERYTHING.alpha if by_effect else 0.5
    return rules, Hyperparameters(*rho, default if options.alpha is None else options.alpha)


def recipe_of(edit: WeightEdit, contrast: str | None = None) -> ExtractOptions:
    """What the vectors of an edit were extracted with; a DataError if it does not say, and no contrast is given."""
    vectors = edit.metadata.get("vectors", {})
    known = dict(vectors.get(RECIPE) or {})
    named = known.pop("contrast", None) or vectors.get("contrast", {}).get("name")
    source = contrast or (None if named == IN_MEMORY or known.keys() & {"positive", "negative"} else named)
    if source is None:
        raise DataError(
            "the edit does not name one contrast set that its vectors are made from: they come from memory, from two "
            "files or from another tool. Give one: --contrast BEHAVIOUR|FOLDER|FILE (contrast=...)."
        )
    known = {name: value for name, value in known.items() if name not in ("positive", "negative")}
    if "effects" in vectors:
        known = {"effects": True, "decided_by": vectors["effects"]["decided_by"], **known}
    with _settings_explained():
        return ExtractOptions(**{**known, "contrast": source})


@contextmanager
def _settings_explained() -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"the edit does not say in a known form what it was made with ({error}): it was made by another method or "
            "version. Make it anew: extract and convert."
        ) from error


def refit(
    model: LanguageModel, edit: WeightEdit, changed: RefitOptions = RefitOptions()
) -> tuple[WeightEdit, list[Condition], Mapping[str, Sequence[str]]]:
    """Extract and convert again with an edit's own settings, on a model whose weights have changed since.

    Nothing is searched, and no more drift spent than the edit's. Returns the new edit; on held-out items the model as
    it is now, with the old edit on top, and with the new one; and what was asked, by set.
    """
    model.require_fit(edit, allow_mismatch=True)
    options = recipe_of(edit, changed.contrast)
    facts = edit.metadata
    with _settings_explained():
        settings = Hyperparameters.from_json(facts["hyperparameters"]), Rules(**facts.get("rules", {}))
    options = options if changed.limit is None else replace(options, limit=changed.limit)
    part = behaviour(str(options.contrast), "held_out", limit=changed.limit, seed=options.seed)
    vectors = make_vectors(model, options)
    require_no_overlap({"vector": vectors.metadata.get("prompts", ()), "held-out": part.digests})
    made = convert(model, vectors, *settings, force=changed.force)
    engine = TransformersEngine(model)
    if drift := facts.get("drift"):
        validation = behaviour(str(options.contrast), "validation", limit=changed.limit, seed=options.seed)
        made = _at_best_drift(engine, made, drift.get("asked", drift["kl"]), validation)
    old = {"model": facts.get("model"), "vectors": facts.get("vectors", {}).get("sha256")}
    made = replace(made, metadata={**made.metadata, "refit_of": old})
    arms = [replace(BASE_ARM, label=NOW), edit_arm(edit, "old edit on top"), edit_arm(made, "refitted edit")]
    return made, evaluate(engine, part.tasks, arms), part.prompts


def _at_best_drift(engine: TransformersEngine, edit: WeightEdit, kl: float, part: Behaviour) -> WeightEdit:
    """The edit at that of a few drifts, up to one, which shows most: beside what is left of an old one less may do."""
    tasks = [task for task in part.tasks if part.attribute in task.metric_names]
    edit = at_drift(engine, edit, kl)
    arms = [edit_arm(edit, f"{share:g} of the drift", share**0.5) for share in _SHARES]
    shown = [estimate(found.values[part.attribute]).value for found in evaluate(engine, tasks, arms)]
    best = max(range(len(shown)), key=lambda i: -math.inf if shown[i] is None else part.direction * shown[i])  # type: ignore[operator]
    if best:
        edit = at_drift(engine, edit, kl * _SHARES[best])
    return replace(edit, metadata={**edit.metadata, "drift": {**edit.metadata["drift"], "asked": kl}})
