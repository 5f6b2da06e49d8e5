"""A search as a user asks for it, and everything it needs made from that."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from steer2edit.core import TUNED_BLOCKS, Block, SteeringVectors
from steer2edit.editing import Factors, compute_factors
from steer2edit.engines import Engine, RememberingEngine, TransformersEngine
from steer2edit.errors import DataError, InvalidValueError, did_you_mean
from steer2edit.evaluation import BEHAVIOURS, Behaviour, TaskSettings, behaviour, build_tasks
from steer2edit.method import PAPER_RULES, Rules
from steer2edit.models import LanguageModel
from steer2edit.search.goal import COST, Budget
from steer2edit.search.proposals import STRATEGIES
from steer2edit.search.search import Search, SearchSettings
from steer2edit.search.space import COORDINATES, Range, SearchSpace
from steer2edit.search.study import STUDY_NAME, shown_storage
from steer2edit.steering import BenignMeans, benign_means, prompt_digests, require_no_overlap
from steer2edit.steering.examples import prompt_key
from steer2edit.steering.rows import Split

_LARGEST_IMPORTANCE = 0.999  # quantile of |g|: thresholds above it leave next to nothing to edit
_REPORTED = {
    "safety": ("harmful_refused", "benign_refused", "kl", "nll_increase"),
    "truthfulness": ("truth_preferred", "truth_margin", "kl", "nll_increase"),
    "conciseness": ("reply_tokens", "finished", "kl", "nll_increase"),
}
"""The metrics of each behaviour, which a utility task must not have too."""


@dataclass(frozen=True)
class SearchOptions:
    """What a user decides.

    Args:
        behaviour: preset to move.
        strategy: tpe, nsga2, random or grid.
        trials: configurations to try in all.
        coordinates: paper or threshold.
        blocks: that may be edited.
        ranges: (low, high, step) by paper coordinate, instead of everywhere and the coarse grid.
        max_shift: whether κ is searched too.
        spare: benign requests to spare, or `None` for the paper's rule.
        max_kl: drift budget, nats per token.
        max_over_refusal: budget of benign requests refused.
        min_utility: smallest accuracy on `utility`.
        utility: a task with an accuracy, measured besides the behaviour.
        target_kl: also compare at strengths that spend this drift.
        strengths: of steering; by default found from the drift budget.
        generation: trials measured together.
        storage: Optuna storage URL.
        study: name of the study in it.
        worker: name of this process.
        data: the user's own data by set of the behaviour, a file or `hub:OWNER/NAME/FILE`.
        limit: items of every set.
        max_new_tokens: longest reply.
        seed: of the sampler and the bootstrap.
        rules: of k, g and λ.
    """

    behaviour: str = "safety"
    strategy: str = "tpe"
    trials: int = 96
    coordinates: str = "paper"
    blocks: tuple[str, ...] = TUNED_BLOCKS
    ranges: Mapping[str, Range] | None = None
    max_shift: bool = False
    spare: str | None = None
    max_kl: float = 0.15
    max_over_refusal: float | None = None
    min_utility: float | None = None
    utility: str | None = None
    target_kl: float | None = None
    strengths: tuple[float, ...] = ()
    generation: int = 16
    storage: str | None = None
    study: str = STUDY_NAME
    worker: str = "main"
    data: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    max_new_tokens: int | None = None
    seed: int = 0
    rules: Rules = PAPER_RULES

    def __post_init__(self) -> None:
        self._check_names()
        self._check_numbers()
        if self.min_utility is not None and self.utility is None:
            raise InvalidValueError("--min-utility needs a task to measure: --utility TASK, e.g. commonsenseqa.")
        if self.max_over_refusal is not None and self.behaviour != "safety":
            raise InvalidValueError(f"over-refusal is measured for safety only, not for {self.behaviour}.")

    def _check_names(self) -> None:
        for name, value, known in (
            ("behaviour", self.behaviour, BEHAVIOURS),
            ("strategy", self.strategy, STRATEGIES),
            ("coordinates", self.coordinates, COORDINATES),
        ):
            if value not in known:
                raise InvalidValueError(f"unknown {name} {value!r}. {did_you_mean(value, known)}")
        if not self.blocks or set(self.blocks) - set(TUNED_BLOCKS):
            raise InvalidValueError(f"blocks must be attn, mlp or both, got {', '.join(self.blocks) or 'none'}.")
        if not self.worker or "/" in self.worker or not self.worker.isprintable():
            raise InvalidValueError(f"a worker's name must be usable in a file name, got {self.worker!r}.")

    def _check_numbers(self) -> None:
        if self.trials < 1 or self.generation < 2:
            raise InvalidValueError(
                f"a search needs trials >= 1 and generations of >= 2, got {self.trials} and {self.generation}."
            )
        for name, value in (("drift budget", self.max_kl), ("target KL", self.target_kl)):
            if value is not None and not 0 < value < math.inf:
                raise InvalidValueError(f"the {name} must be > 0, got {value}.")
        if self.seed < 0:
            raise InvalidValueError(f"a seed must be >= 0, got {self.seed}.")
        if not all(math.isfinite(strength) for strength in self.strengths):
            raise InvalidValueError(f"steering strengths must be finite, got {', '.join(map(str, self.strengths))}.")

    def budget(self, utility_metric: str | None = None) -> Budget:
        """The limits as metrics."""
        at_most = {COST: self.max_kl}
        if self.max_over_refusal is not None:
            at_most["benign_refused"] = self.max_over_refusal
        floors = {} if self.min_utility is None or utility_metric is None else {utility_metric: self.min_utility}
        return Budget(at_most, floors)

    def to_json(self) -> dict[str, Any]:
        """All options by name."""
        lists = {"blocks": list(self.blocks), "strengths": list(self.strengths)}
        return {**asdict(self), **lists, "storage": shown_storage(self.storage)}


def prepare_search(
    model: LanguageModel,
    vectors: SteeringVectors,
    options: SearchOptions,
    *,
    engine: Engine | None = None,
    allow_mismatch: bool = False,
    allow_missing: bool = False,
    force: bool = False,
) -> Search:
    """Everything a search needs.

    Args:
        model: the base model, whose weights the factors are computed from.
        vectors: with input means.
        options: what the user decided.
        engine: runs the model; by default the transformers engine.
        allow_mismatch: accept vectors of another model.
        allow_missing: accept vectors that lack sites.
        force: accept vectors that the diagnosis calls noise.

    Raises:
        DataError: vector, validation and held-out prompts overlap; an unknown behaviour or task.
        MismatchError: vectors of another model or shape, or without input means.
        NoiseError: the vectors of a block that may be edited are all noise.
    """
    validation, held_out = behaviours_of(options)
    benign = benign_means(model, options.spare) if options.spare else None
    require_apart(vectors, benign, validation, held_out)
    factors = compute_factors(
        model, vectors, options.rules, benign=benign, allow_mismatch=allow_mismatch, allow_missing=allow_missing,
        force=force,
    )  # fmt: skip
    blocks: tuple[Block, ...] = tuple(block for block in TUNED_BLOCKS if block in options.blocks)
    factors.require_signal(site for site in factors.sites if site.tuned_block in blocks)
    present = tuple(block for block in blocks if any(site.block == block for site in factors.sites))
    space = SearchSpace(
        options.coordinates, present, options.max_shift, benign is not None, _largest_thresholds(factors),  # type: ignore[arg-type]
        options.ranges,
    )  # fmt: skip
    settings = SearchSettings(
        options.strategy, options.trials, options.generation, options.strengths, options.target_kl, options.seed,  # type: ignore[arg-type]
        options.worker, options.storage, options.study,
    )  # fmt: skip
    runner = engine or RememberingEngine(TransformersEngine(model))
    accuracy = utility_metric(validation)
    if options.min_utility is not None and accuracy is None:
        raise InvalidValueError(
            f"--min-utility is the smallest accuracy, and {options.utility} reports none. Give --utility a task with "
            "one, e.g. commonsenseqa."
        )
    budget = options.budget(accuracy)
    return Search(runner, vectors, factors, validation, held_out, budget, space, settings)


def behaviours_of(options: SearchOptions) -> tuple[Behaviour, Behaviour]:
    """The validation and the held-out items that the options ask for; needs no model.

    Raises:
        DataError: unknown or malformed data, or a utility task that measures what the behaviour does.
    """
    shared = {"utility": options.utility, "limit": options.limit, "data": options.data, "seed": options.seed}
    validation, held_out = (
        measured_behaviour(options.behaviour, split, max_new_tokens=options.max_new_tokens, **shared)  # type: ignore[arg-type]
        for split in ("validation", "held_out")
    )
    return validation, held_out


def measured_behaviour(
    name: str,
    split: Split,
    *,
    utility: str | None,
    limit: int | None,
    data: Mapping[str, str],
    seed: int,
    max_new_tokens: int | None = None,
    borderline: bool = False,
) -> Behaviour:
    """A behaviour on one split, with a utility task as one more.

    Raises:
        DataError: unknown or malformed data, or a utility task that measures what the behaviour does.
    """
    chosen = behaviour(
        name, split, limit=limit, max_new_tokens=max_new_tokens, data=data, seed=seed, borderline=borderline
    )
    if utility is None:
        return chosen
    settings = TaskSettings(split=split, limit=limit, max_new_tokens=max_new_tokens, divide=seed)
    added = build_tasks([utility], settings)
    own = {*_REPORTED[name], *chosen.prompts}
    for task in added:
        if shared := own & {*task.metric_names, *task.asked}:
            raise DataError(
                f"the utility task {utility!r} measures {', '.join(sorted(shared))}, and so does the behaviour "
                f"{name}. Give a task of another kind, e.g. commonsenseqa."
            )
    asked = {name: [prompt_key(p) for p in prompts] for task in added for name, prompts in task.asked.items()}
    return replace(chosen, tasks=(*chosen.tasks, *added), prompts={**chosen.prompts, **asked})


def utility_metric(chosen: Behaviour) -> str | None:
    """The accuracy that a utility task reports."""
    names = [name for task in chosen.tasks for name in getattr(task, "metric_names", ()) if name.endswith("_accuracy")]
    return names[0] if names else None


def require_apart(
    vectors: SteeringVectors, benign: BenignMeans | None, validation: Behaviour, held_out: Behaviour
) -> None:
    """Require that no prompt of the vectors, the spared ones, and the two parts has two uses.

    Raises:
        DataError: it names the uses.
    """
    used = {"validation": validation, "held-out": held_out}
    prompts = {
        name: prompt_digests(
            [*(p for texts in part.prompts.values() for p in texts), *part.drift.prompts]
        )
        for name, part in used.items()
    }  # fmt: skip
    made_from = {"vector": vectors.metadata.get("prompts", ()), "spared": benign.metadata["prompts"] if benign else ()}
    for use, own in made_from.items():
        require_no_overlap({use: own, **prompts})


def _largest_thresholds(factors: Factors) -> dict[str, float]:
    """By block, the threshold above which next to no component is left."""
    found: dict[str, float] = {}
    for block in TUNED_BLOCKS:
        values = [f.importance.abs() for site, f in factors.sites.items() if site.block == block]
        if values:
            found[block] = round(torch.cat(values).double().quantile(_LARGEST_IMPORTANCE).item(), 4)
    return found
