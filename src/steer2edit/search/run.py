"""A search from start to end, in a run folder that a killed search goes on from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from steer2edit.artifacts import save_edit
from steer2edit.core import Steering, WeightEdit
from steer2edit.errors import BudgetError
from steer2edit.evaluation import (
    BASE_ARM,
    METRICS,
    Calibration,
    Condition,
    base_answers,
    calibrate,
    evaluate,
    steering_arm,
)
from steer2edit.search.folder import RunFolder
from steer2edit.search.goal import Goal, pareto_front
from steer2edit.search.halving import SANITY_METRIC, measure_generation, sanity_task
from steer2edit.search.held_out import calibrated_strengths, compare_held_out, measure_held_out
from steer2edit.search.proposals import propose
from steer2edit.search.search import Search
from steer2edit.search.study import Study
from steer2edit.search.tradeoff import TradeoffComparison
from steer2edit.search.trials import Trial

Narrate = Callable[[str, Sequence[Condition]], None]
"""(what has just been found, conditions to show side by side; may be empty)."""

_SWEEP = (0.1, 0.25, 0.5, 0.75, 1.0)  # of the largest drift


@dataclass(frozen=True)
class SearchResult:
    """What a search came to.

    Args:
        base: the base model on validation items.
        steering: activation steering on validation items.
        trials: every trial.
        front: the complete trials that keep the budget (`Budget.kept`) and no other dominates, by growing cost.
        recommended: of the front, the one with most of the attribute.
        edit: its weight edit.
        held_out: base, steering and the front on held-out items; the recommended edit is the last.
        beyond_budget: which limits the recommended edit breaks on held-out items, in a sentence; empty if none.
        comparison: edits against steering on held-out items.
        calibrated: edit and steering at the target drift, by `edit` and `steering`, if asked for.
    """

    base: Condition
    steering: list[Condition]
    trials: list[Trial]
    front: list[Trial]
    recommended: Trial
    edit: WeightEdit
    held_out: list[Condition]
    beyond_budget: str
    comparison: TradeoffComparison
    calibrated: dict[str, Calibration] = field(default_factory=dict)


def run_search(search: Search, out: Path, narrate: Narrate) -> SearchResult:
    """Search in the run folder `out`, going on where an earlier call was stopped.

    Steering is swept and every configuration measured on validation items only; the front that comes of it is
    measured once on held-out items; the recommended edit is saved as an adapter with its figures.

    Raises:
        MismatchError: the folder or storage holds another search.
        BudgetError: no trial keeps the budget; the message says which came closest.
        ArtifactError: another process works in the folder, or it cannot be written.
    """
    model = search.engine.model
    with RunFolder(out).opened(search.identity(model)) as folder:
        study = Study(
            out, search.identity(model), search.space, search.goal, storage=search.settings.storage,
            name=search.settings.study,
            worker=search.settings.worker,
        )  # fmt: skip
        base, *steering = _swept(search, folder)
        narrate("Base model and activation steering, on validation items:", [base, *steering])
        trials = _tried(search, folder, study, narrate)
        front, recommended = _chosen(search, trials)
        narrate(
            f"Front of {len(front)} from {len(trials)} trials; recommended: {recommended.hyperparameters}.",
            [_measured(trial.condition()) for trial in front],
        )
        edit = search.factors.edit(recommended.hyperparameters)
        calibrated = calibrated_strengths(search, folder, recommended, edit)
        held_out = measure_held_out(search, folder, steering, front, recommended, calibrated)
        comparison = compare_held_out(search, held_out)
        narrate("Held-out items, the front and steering at the strengths of the sweep:", held_out)
        beyond = search.budget.broken(edits_of(held_out)[-1].metrics)
        _save(search, folder, edit, held_out, beyond)
        return SearchResult(base, steering, trials, front, recommended, edit, held_out, beyond, comparison, calibrated)


def _measured(condition: Condition) -> Condition:
    """The condition without the drift on the sanity requests, which its own drift replaces."""
    return replace(condition, metrics={name: m for name, m in condition.metrics.items() if name != SANITY_METRIC})


def _swept(search: Search, folder: RunFolder) -> list[Condition]:
    """The base and activation steering on validation items; kept, so that it is measured once."""

    given = search.settings.strengths

    def measure() -> list[Condition]:
        _answer_all(search)
        strengths = given or _strengths(search)
        arms = [BASE_ARM, *(steering_arm(search.vectors, strength) for strength in strengths)]
        return evaluate(search.engine, search.validation.tasks, arms)

    return folder.remembered("-".join(["steering", *(f"{strength:g}" for strength in given)]), measure, "steering")


def _answer_all(search: Search) -> None:
    """The base's answers to the benign requests, all at once, as the first thing that is measured.

    In half precision they depend on the batch they are made in: a search that goes on must not make them in parts.
    """
    drift = search.validation.drift
    base_answers(search.engine, drift.prompts, drift.sampling)


def _strengths(search: Search) -> list[float]:
    """Strengths that spend given shares of the drift budget."""
    strengths: list[float] = []
    task = search.validation.drift
    for share in _SWEEP:
        first = strengths[-1] * 1.5 if strengths else 0.1
        found = calibrate(
            search.engine, lambda s: Steering(search.vectors, s), task, share * search.largest_cost, first=first
        )
        strengths.append(float(f"{found.strength:.4g}"))
    return strengths


def _tried(search: Search, folder: RunFolder, study: Study, narrate: Narrate) -> list[Trial]:
    """Generation after generation until there are as many trials as asked for."""
    settings = search.settings
    trials = folder.trials(settings.worker)
    study.require_own(trials)
    study.add(trials)
    sanity = sanity_task(search.validation)
    generation = 1 + max((trial.generation for trial in trials), default=-1)
    if len(trials) < settings.trials:
        _answer_all(search)
    while len(trials) < settings.trials:
        size = min(settings.generation if generation else 2 * settings.generation, settings.trials - len(trials))
        earlier = [t for t in study.history() if t.user_attrs["generation"] < generation
                   or t.user_attrs["worker"] != settings.worker]  # fmt: skip
        proposals = propose(
            settings.strategy, search.space, earlier, generation, size, settings.seed, settings.worker
        )  # fmt: skip
        if not proposals:
            narrate("The grid is exhausted: no new configuration is left to propose.", [])
            break
        made = measure_generation(
            search.engine, search.factors, search.space, search.validation, search.goal, proposals, generation,
            sanity=sanity, drifts=search.sane_drifts,
        )  # fmt: skip
        folder.keep(made, settings.worker)
        study.add(made)
        trials += made
        narrate(_progress(made, trials, search), [])
        generation += 1
    return trials


def _progress(made: Sequence[Trial], trials: Sequence[Trial], search: Search) -> str:
    complete = sum(trial.complete for trial in made)
    front = front_of(trials, search.goal)
    best = f"; best so far {front[-1].hyperparameters}" if front else ""
    return f"Generation {made[0].generation}: {len(made)} trials, {complete} measured in full{best}."


def front_of(trials: Sequence[Trial], goal: Goal) -> list[Trial]:
    """Complete trials that keep the budget (`Budget.kept`) and that no other dominates, by growing cost."""
    complete = [t for t in trials if t.complete]
    allowed = [complete[i] for i in goal.budget.kept([t.metrics for t in complete])]
    return [allowed[i] for i in pareto_front([goal.point(t.metrics) for t in allowed])]


def _chosen(search: Search, trials: Sequence[Trial]) -> tuple[list[Trial], Trial]:
    front = front_of(trials, search.goal)
    if front:
        return front, front[-1]
    complete = [t for t in trials if t.complete]
    limits = ", ".join(
        [f"{name} <= {value:g}" for name, value in search.budget.at_most.items()]
        + [f"{name} >= {value:g}" for name, value in search.budget.at_least.items()]
    )
    if not complete:
        raise BudgetError(
            f"none of {len(trials)} trials passed the sanity filter and the rungs. Widen the space or ask for more "
            "--trials."
        )
    closest = min(complete, key=lambda t: search.budget.violation(t.metrics))
    values = ", ".join(
        f"{name} {closest.metrics[name].value:.3f}"
        for name in (search.goal.attribute, *search.budget.at_most, *search.budget.at_least)
        if name in closest.metrics and closest.metrics[name].value is not None
    )
    raise BudgetError(
        f"none of {len(trials)} trials keeps the budget ({limits}). Closest came {closest.hyperparameters}: {values}. "
        "Allow more, or ask for more --trials."
    )


def edits_of(held_out: Sequence[Condition]) -> list[Condition]:
    """The front on held-out items, the recommended edit last."""
    return [c for c in held_out if c.kind == "edit" and not c.parameters.get("equal_drift")]


def _save(
    search: Search, folder: RunFolder, edit: WeightEdit, held_out: Sequence[Condition], beyond_budget: str
) -> None:
    """The recommended edit as an adapter, with base, steering and edit on its card."""
    shown = [c for c in held_out if c.kind == "base" or not c.parameters.get("equal_drift")]
    chosen = [shown[0], *(c for c in shown if c.kind == "steering"), shown[-1]]
    card = [{key: value for key, value in c.to_json().items() if key in ("label", "metrics")} for c in chosen]
    target = folder.path / "edit"
    evaluation = {"conditions": card, "metrics": METRICS, "beyond_budget": beyond_budget}
    save_edit(search.engine.model, edit, target, evaluation=evaluation, overwrite=True)
