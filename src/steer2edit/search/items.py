"""The validation and held-out items that a search or a comparison measures, and that no prompt has two uses."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from steer2edit.core import SteeringVectors
from steer2edit.errors import DataError, InvalidValueError
from steer2edit.evaluation import Behaviour, TaskSettings, behaviour, behaviour_of, build_tasks
from steer2edit.settings import ComparisonOptions, SearchOptions
from steer2edit.steering import BenignMeans, prompt_digests, require_no_overlap
from steer2edit.steering.examples import prompt_key
from steer2edit.steering.rows import Split

Options = TypeVar("Options", SearchOptions, ComparisonOptions)


def options_for(vectors: SteeringVectors, options: Options) -> Options:
    """The options with a behaviour: by default the one that the vectors are of.

    Raises:
        DataError: the vectors do not say which.
    """
    if options.behaviour is not None:
        return options
    return replace(options, behaviour=behaviour_of(vectors, "--behaviour"))


def behaviours_of(options: SearchOptions | ComparisonOptions) -> tuple[Behaviour, Behaviour]:
    """The validation and the held-out items that options ask for; a comparison's with borderline requests.

    Raises:
        DataError: unknown or malformed data, or a utility task that measures what the behaviour does.
    """
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


def require_apart(
    vectors: SteeringVectors, benign: BenignMeans | None, validation: Behaviour, held_out: Behaviour
) -> None:
    """Require that no prompt of the vectors, the spared ones, and the two parts has two uses.

    Raises:
        DataError: it names the uses.
    """
    used: Mapping[str, Behaviour] = {"validation": validation, "held-out": held_out}
    prompts = {
        name: prompt_digests([*(p for texts in part.prompts.values() for p in texts), *part.drift.items])
        for name, part in used.items()
    }
    made_from = {"vector": vectors.metadata.get("prompts", ()), "spared": benign.metadata["prompts"] if benign else ()}
    for use, own in made_from.items():
        require_no_overlap({use: own, **prompts})
