"""What a search works with, made from what a user asks for: engine, vectors, factors, items, budget and space."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from steer2edit.core import TUNED_BLOCKS, Block, SteeringVectors, WeightEdit
from steer2edit.editing import Factors, compute_factors
from steer2edit.engines import Engine, RememberingEngine, TransformersEngine
from steer2edit.errors import DataError, InvalidValueError, MismatchError, NoiseError
from steer2edit.evaluation import COST, Behaviour, TaskSettings, behaviour, behaviour_of, build_tasks
from steer2edit.method.hyperparameters import GATED_RULES, Hyperparameters
from steer2edit.models import LanguageModel
from steer2edit.search.goal import Budget, Goal
from steer2edit.search.space import SearchSpace
from steer2edit.search.study import Trial
from steer2edit.settings import Accepting, ComparisonOptions, SearchOptions
from steer2edit.steering.examples import prompt_digests, prompt_key, require_no_overlap
from steer2edit.steering.rows import Split

NO_EFFECTS = "the vectors have no measured effects (extract --effects measures them)"
Options = TypeVar("Options", SearchOptions, ComparisonOptions)


def options_for(vectors: SteeringVectors, options: Options) -> Options:
    """The options with a behaviour: by default the one that the vectors are of; a DataError if they do not say."""
    if options.behaviour is not None:
        return options
    return replace(options, behaviour=behaviour_of(vectors, "--behaviour"))


def behaviours_of(options: SearchOptions | ComparisonOptions) -> tuple[Behaviour, Behaviour]:
    """The validation and the held-out items that options ask for; a comparison's with borderline requests."""
    return _measured(options, "validation"), _measured(options, "held_out")


def _measured(options: SearchOptions | ComparisonOptions, split: Split) -> Behaviour:
    """The behaviour on one split, with the utility task, if there is one, as one more."""
    name, limit, seed = str(options.behaviour), options.limit, options.seed
    max_new_tokens = options.max_new_tokens if isinstance(options, SearchOptions) else None
    borderline = isinstance(options, ComparisonOptions)
    chosen = behaviour(
        name, split, limit=limit, max_new_tokens=max_new_tokens, data=options.data, seed=seed, borderline=borderline
    )
    if getattr(options, "max_over_refusal", None) is not None and "benign_refused" not in metric_names(chosen):
        raise InvalidValueError(
            f"--max-over-refusal limits the refusal of benign requests, which {chosen.name} does not measure: leave it "
            "out, or give the behaviour a set benign with the scorer refusal."
        )
    if options.utility is None:
        return chosen
    settings = TaskSettings(split=split, limit=limit, max_new_tokens=max_new_tokens, divide=seed)
    added = build_tasks([options.utility], settings)
    own = {*metric_names(chosen), *chosen.prompts}
    for task in added:
        if shared := own & {*task.metric_names, *task.asked}:
            raise DataError(
                f"the utility task {options.utility!r} measures {', '.join(sorted(shared))}, and so does the behaviour "
                f"{name}. Give a task of another kind, e.g. commonsenseqa."
            )
    asked = {name: [prompt_key(p) for p in prompts] for task in added for name, prompts in task.asked.items()}
    return replace(chosen, tasks=(*chosen.tasks, *added), prompts={**chosen.prompts, **asked})


def metric_names(chosen: Behaviour) -> list[str]:
    """The metrics that the tasks report."""
    return [name for task in chosen.tasks for name in task.metric_names]  # type: ignore[attr-defined]


def utility_metric(chosen: Behaviour) -> str | None:
    """The accuracy that a utility task reports."""
    return next((name for name in metric_names(chosen) if name.endswith("_accuracy")), None)


def require_apart(vectors: SteeringVectors, validation: Behaviour, held_out: Behaviour) -> None:
    """A DataError, with the uses, if a prompt of the vectors and the two parts has two of them."""
    used: Mapping[str, Behaviour] = {"validation": validation, "held-out": held_out}
    prompts = {name: [*part.digests, *prompt_digests(part.drift.items)] for name, part in used.items()}
    require_no_overlap({"vector": vectors.metadata.get("prompts", ()), **prompts})


@dataclass(frozen=True)
class Search:
    """Everything a search works with."""

    engine: Engine  # runs the model
    vectors: SteeringVectors  # steered with, and what the factors were made from
    factors: Factors  # of the paper's rule, from which all configurations follow
    validation: Behaviour  # the behaviour on validation items
    held_out: Behaviour  # the behaviour on held-out items
    budget: Budget  # what an edit may cost
    space: SearchSpace  # the configurations
    options: SearchOptions = SearchOptions()  # how to go about it
    effects: WeightEdit | None = None  # the edit of them that is tried first, where the vectors have effects
    no_effects: str = NO_EFFECTS  # why there is none

    def edits(self, trials: Sequence[Trial]) -> list[WeightEdit]:
        """The edits of trials; that of one which is no point of the space is made of the measured effects."""
        searched = iter(self.factors.edits([trial.hyperparameters for trial in trials if trial.parameters]))
        return [next(searched) if trial.parameters else self.effects.scaled(trial.scale) for trial in trials]  # type: ignore[union-attr]

    @property
    def goal(self) -> Goal:
        """Objectives and budget."""
        own = self.validation
        return Goal(own.attribute, own.direction, self.budget, guide=own.guide)

    @property
    def sane_drifts(self) -> tuple[float, float]:
        """Drift on the sanity requests below which an edit does nothing, and above which it is degenerate."""
        return 0.002 * self.goal.largest_cost, max(1.0, 4 * self.goal.largest_cost)

    def identity(self) -> dict[str, Any]:
        """What makes this search this one; whatever differs in it is another search."""
        options = self.options
        return {
            **self.engine.model.identity(),
            "vectors": self.vectors.digest(),
            "behaviour": self.validation.name,
            "items": {"validation": self.validation.digest(), "held_out": self.held_out.digest()},
            "rules": self.factors.metadata.get("rules"),
            "space": asdict(self.space),
            "budget": asdict(self.budget),
            "replies": [str(task.sampling) for task in self.validation.tasks if hasattr(task, "sampling")],
            "strategy": options.strategy,
            "generation": options.generation,
            "seed": options.seed,
        }


def prepare_search(
    model: LanguageModel,
    vectors: SteeringVectors,
    options: SearchOptions,
    *,
    engine: Engine | None = None,
    accepting: Accepting = Accepting(),
) -> Search:
    """Everything a search needs; the engine is by default the transformers engine.

    Raises DataError for unknown data or prompts with two uses, MismatchError for vectors of another model or shape, and
    NoiseError where those of a block that may be edited are all noise.
    """
    options = options_for(vectors, options)
    validation, held_out = behaviours_of(options)
    for task in (*validation.tasks, *held_out.tasks):
        task.require_fit(model)
    require_apart(vectors, validation, held_out)
    factors = compute_factors(model, vectors, **vars(accepting))
    blocks: tuple[Block, ...] = tuple(block for block in TUNED_BLOCKS if block in options.blocks)
    factors.require_signal(site for site in factors.sites if site.tuned_block in blocks)
    present = tuple(block for block in blocks if any(site.block == block for site in factors.sites))
    space = SearchSpace(present, options.ranges)
    runner, accuracy = engine or RememberingEngine(TransformersEngine(model)), utility_metric(validation)
    if options.min_utility is not None and accuracy is None:
        raise InvalidValueError(
            f"--min-utility is the smallest accuracy, and {options.utility} reports none. Give --utility a task with "
            "one, e.g. commonsenseqa."
        )
    at_most = {COST: options.max_kl, "benign_refused": options.max_over_refusal}
    at_least = {str(accuracy): options.min_utility}
    most, least = ({name: v for name, v in own.items() if v is not None} for own in (at_most, at_least))
    effects, no_effects = _edit_of_effects(model, vectors, present, accepting)
    return Search(
        runner, vectors, factors, validation, held_out, Budget(most, least), space, options, effects, no_effects
    )


def _edit_of_effects(
    model: LanguageModel, vectors: SteeringVectors, blocks: Sequence[Block], accepting: Accepting
) -> tuple[WeightEdit | None, str]:
    """The edit of measured effects; or why there is none."""
    if not vectors.has_effects:
        return None, NO_EFFECTS
    try:
        made = compute_factors(
            model, vectors, GATED_RULES, allow_mismatch=True, allow_missing=True, force=accepting.force
        )
        attn, mlp = (1.0 if block in blocks else None for block in TUNED_BLOCKS)
        return made.edit(Hyperparameters(attn, mlp, 0.0)), ""
    except (InvalidValueError, MismatchError, NoiseError) as error:
        return None, str(error)
