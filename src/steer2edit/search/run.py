"""A search from start to end, in a run folder that a killed search goes on from."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from steer2edit.artifacts import save_edit
from steer2edit.artifacts.run_folder import RunFolder, RunKind
from steer2edit.core import Editing, Steering, WeightEdit
from steer2edit.errors import BudgetError
from steer2edit.estimates import Condition
from steer2edit.evaluation.calibration import Calibration, calibrate
from steer2edit.evaluation.likelihood_tasks import base_answers
from steer2edit.evaluation.metrics import for_card
from steer2edit.evaluation.task import BASE_ARM, edit_arm, evaluate, steering_arm
from steer2edit.progress import step
from steer2edit.search.curves import TradeoffComparison, compare_tradeoffs
from steer2edit.search.generation import SANITY_METRIC, measure_generation
from steer2edit.search.goal import Goal, pareto_front
from steer2edit.search.search import Search
from steer2edit.search.space import propose
from steer2edit.search.study import Study
from steer2edit.search.trials import Trial, read_trials, write_generation

Narrate = Callable[[str, Sequence[Condition]], None]
"""(what has just been found, conditions to show side by side; may be empty)."""

_KIND = RunKind(
    "search", 1, "searching", "model, vectors and options",
    "; several machines share a search by --storage, each with an --out of its own",
)  # fmt: skip
_SWEEP = (0.1, 0.25, 0.5, 0.75, 1.0)  # of the largest drift
_MOST_FRONT = 8  # edits that are measured on held-out items


@dataclass(frozen=True)
class SearchResult:
    """What a search came to."""

    base: Condition  # the base model on validation items
    steering: list[Condition]  # activation steering on validation items
    trials: list[Trial]  # every trial, of all workers; those that a shared storage has more are not chosen from
    # the complete trials that keep the budget (`Budget.kept`) and no other dominates, by growing cost
    front: list[Trial]
    recommended: Trial  # of the front, the one with most of the attribute
    edit: WeightEdit  # its weight edit
    held_out: list[Condition]  # base, steering and the front on held-out items; the recommended edit is the last
    beyond_budget: str  # which limits the recommended edit breaks on held-out items, in a sentence; empty if none
    comparison: TradeoffComparison  # edits against steering on held-out items
    # edit and steering at the target drift, by `edit` and `steering`, if asked for
    calibrated: dict[str, Calibration] = field(default_factory=dict)


def run_search(search: Search, out: Path, narrate: Narrate) -> SearchResult:
    """Search in the run folder `out`, going on where an earlier call was stopped.

    Steering is swept and every configuration measured on validation items only; the front that comes of it is measured
    once on held-out items; the recommended edit is saved as an adapter with its figures. Raises BudgetError where no
    trial keeps the budget, MismatchError for the folder or storage of another search, and ArtifactError for one that is
    in use or cannot be written.
    """
    identity = search.identity()
    with RunFolder(out, _KIND).opened(identity) as folder:
        study = Study(out, identity, search.space, search.goal, search.options)
        base, *steering = _sweep(search, folder, study)
        narrate("Base model and activation steering, on validation items:", [base, *steering])
        _try_configurations(search, folder, study, narrate)
        trials = study.trials_to_choose_from(search.options.trials)
        front = front_of(trials, search.goal)
        if not front:
            raise _nothing_allowed(search, trials)
        recommended = front[-1]
        narrate(
            f"Front of {len(front)} from {len(trials)} trials; recommended: {recommended.label}.",
            [  # without the drift on the sanity requests, which its own drift replaces
                replace(found, metrics={name: m for name, m in found.metrics.items() if name != SANITY_METRIC})
                for found in (trial.condition() for trial in front)
            ],
        )
        (edit,) = search.edits([recommended])
        calibrated = _at_target(search, folder, study, recommended, edit)
        held_out = _held_out(search, folder, study, steering, front, calibrated)
        narrate("Held-out items, the front and steering at the strengths of the sweep:", held_out)
        swept = [c for c in held_out if not c.parameters.get("equal_drift")]
        edits = [c for c in swept if c.kind == "edit"]
        comparison = compare_tradeoffs(
            swept[0], [c for c in swept if c.kind == "steering"], edits, len(edits) - 1, search.goal,
            largest_cost=search.goal.largest_cost, seed=search.options.seed,
        )  # fmt: skip
        beyond = search.budget.broken(edits[-1].metrics)
        shown = [*(c for c in swept if c.kind != "edit"), edits[-1]]
        evaluation = {**for_card(shown), "beyond_budget": beyond}
        save_edit(search.engine.model, edit, out / "edit", evaluation=evaluation, overwrite=True)
        return SearchResult(base, steering, trials, front, recommended, edit, held_out, beyond, comparison, calibrated)


def _sweep(search: Search, folder: RunFolder, study: Study) -> list[Condition]:
    """The base and activation steering on validation items."""
    given = search.options.strengths
    name = "-".join(["steering", *(f"{strength:g}" for strength in given)])

    def measure() -> list[Condition]:
        _answer_all(search)
        arms = [BASE_ARM, *(steering_arm(search.vectors, strength) for strength in given or _strengths(search))]
        return evaluate(search.engine, search.validation.tasks, arms)

    return folder.conditions("steering", name, lambda: study.conditions(name, measure))


def _answer_all(search: Search) -> None:
    """The base's answers to the benign requests, all at once, as the first thing that is measured.

    In half precision they depend on the batch they are made in: a search that goes on must not make them in parts.
    """
    drift = search.validation.drift
    base_answers(search.engine, drift.items, drift.sampling)


def _strengths(search: Search) -> list[float]:
    """Strengths that spend given shares of the drift budget."""
    strengths: list[float] = []
    for share in _SWEEP:
        first = strengths[-1] * 1.5 if strengths else 0.1
        found = calibrate(
            search.engine, lambda s: Steering(search.vectors, s), search.validation.drift,
            share * search.goal.largest_cost, first=first,
        )  # fmt: skip
        strengths.append(float(f"{found.strength:.4g}"))
    return strengths


def _try_configurations(search: Search, folder: RunFolder, study: Study, narrate: Narrate) -> None:
    """Generation after generation until the study has as many trials as asked for, whoever measured them.

    A generation is in a file of the folder before it is in the study: what a kill leaves out is added here.
    """
    options, files = search.options, folder.path / "trials"
    own = read_trials(files)
    study.require_own(own)
    study.add(own)
    generation = 1 + max((trial.generation for trial in own if trial.worker == options.worker), default=-1)
    tried = study.history()
    if _searched(tried) < options.trials:
        _answer_all(search)
    with step("Trials", options.trials) as advance:
        advance(_searched(tried))
        while (left := options.trials - _searched(tried)) > 0:
            size = min(options.generation if generation else 2 * options.generation, left)
            proposals = propose(
                options.strategy, search.space, tried, generation, size, options.seed, options.worker
            )  # fmt: skip
            if search.effects and not generation and _searched(tried) == len(tried):
                narrate("First of all, beside the paper's rule: the edit of measured effects in closed form.", [])
                proposals = [{}, *proposals]
            if not proposals:
                return narrate("The grid is exhausted: no new configuration is left to propose.", [])
            made = measure_generation(search, proposals, generation)
            write_generation(files, made)
            study.add(made)
            before, tried = _searched(tried), study.history()
            advance(_searched(tried) - before)
            front = front_of(study.trials(), search.goal)
            best = f"; best so far {front[-1].label}" if front else ""
            complete = sum(trial.complete for trial in made)
            narrate(f"Generation {generation}: {len(made)} trials, {complete} measured in full{best}.", [])
            generation += 1
    return None


def _searched(tried: Sequence[FrozenTrial]) -> int:
    """How many trials are points of the space: the edit of effects is tried beside them."""
    return sum(bool(trial.params) for trial in tried)


def front_of(trials: Sequence[Trial], goal: Goal) -> list[Trial]:
    """Complete trials that keep the budget (`Budget.kept`) and that no other dominates, by growing cost."""
    complete = [t for t in trials if t.complete]
    allowed = [complete[i] for i in goal.budget.kept([t.metrics for t in complete])]
    return [allowed[i] for i in pareto_front([goal.point(t.metrics) for t in allowed])]


def _nothing_allowed(search: Search, trials: Sequence[Trial]) -> BudgetError:
    complete, budget = [t for t in trials if t.complete], search.budget
    if not complete:
        return BudgetError(
            f"none of {len(trials)} trials passed the sanity filter and the rungs. Widen the space or ask for more "
            "--trials."
        )
    limits = [f"{name} {limit}" for name, limit in budget.limits.items()]
    closest = min(complete, key=lambda t: budget.violation(t.metrics))
    values = ", ".join(
        f"{name} {closest.metrics[name].value:.3f}"
        for name in (search.goal.attribute, *budget.limits)
        if name in closest.metrics and closest.metrics[name].value is not None
    )
    return BudgetError(
        f"none of {len(trials)} trials keeps the budget ({', '.join(limits)}). Closest came {closest.label}: "
        f"{values}. Allow more, or ask for more --trials."
    )


def _at_target(
    search: Search, folder: RunFolder, study: Study, recommended: Trial, edit: WeightEdit
) -> dict[str, Calibration]:
    """The strengths of the recommended edit and of steering that spend the target drift, if any."""
    target, task = search.options.target_kl, search.validation.drift
    if target is None:
        return {}
    name = f"{target:g} {recommended.record}"

    def make() -> dict[str, Any]:
        steering = calibrate(search.engine, lambda s: Steering(search.vectors, s), task, target, first=0.1)
        edited = calibrate(search.engine, lambda s: Editing(edit, s), task, target)
        return {"steering": asdict(steering), "edit": asdict(edited)}

    found = folder.once("calibrated", lambda: study.once(name, make), key=name)
    return {arm: Calibration(**one) for arm, one in found.items()}


def _held_out(
    search: Search,
    folder: RunFolder,
    study: Study,
    steering: Sequence[Condition],
    front: Sequence[Trial],
    calibrated: dict[str, Calibration],
) -> list[Condition]:
    """Base, steering and the front, recommended last, on items that nothing was chosen on."""
    step = max(1.0, (len(front) - 1) / (_MOST_FRONT - 1))
    shown = [front[round(i * step)] for i in range(min(len(front), _MOST_FRONT))]  # the recommended one among them
    arms = [BASE_ARM, *(steering_arm(search.vectors, float(c.parameters["strength"])) for c in steering)]
    edits = search.edits(shown)
    arms += [edit_arm(edit, trial.label) for trial, edit in zip(shown, edits, strict=True)]
    if calibrated:
        equal = [
            steering_arm(search.vectors, calibrated["steering"].strength),
            edit_arm(edits[-1], front[-1].label, calibrated["edit"].strength),
        ]
        arms += [
            replace(arm, label=f"{arm.label} at KL {search.options.target_kl:g}",
                    parameters={**arm.parameters, "equal_drift": True})
            for arm in equal
        ]  # fmt: skip
    strengths = [arm.parameters["strength"] for arm in arms if arm.kind == "steering"]
    name = "_".join([*(t.key for t in shown), *(f"{s:.6g}" for s in strengths)])  # the same for whoever looks

    def measure() -> list[Condition]:
        return evaluate(search.engine, search.held_out.tasks, arms)

    key = f"{search.options.worker}_{name}"
    return folder.conditions("held_out", key, lambda: study.conditions(name, measure, alone=True))
