"""A search from start to end, in a run folder that a killed search goes on from; and what it found, as JSON."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steer2edit.artifacts import package_versions, save_edit
from steer2edit.artifacts.left_out import LeftOut
from steer2edit.artifacts.run_folder import RunKind
from steer2edit.core import Steering, WeightEdit
from steer2edit.errors import BudgetError
from steer2edit.estimates import PERCENT, SCHEMA_VERSION, Condition, Estimate, column
from steer2edit.evaluation import Behaviour
from steer2edit.evaluation.calibration import calibrate
from steer2edit.evaluation.likelihood_tasks import base_answers
from steer2edit.evaluation.metrics import for_card, metric_name
from steer2edit.evaluation.task import BASE_ARM, edit_arm, evaluate, steering_arm
from steer2edit.models import LanguageModel
from steer2edit.progress import step
from steer2edit.search.curves import TradeoffComparison, compare_tradeoffs
from steer2edit.search.generation import SANITY_METRIC, measure_generation
from steer2edit.search.goal import Goal, pareto_front
from steer2edit.search.search import Search
from steer2edit.search.space import propose
from steer2edit.search.study import Study, Trial, opened_study, optuna_record

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


def run_search(search: Search, out: Path, narrate: Narrate) -> SearchResult:
    """Search in the run folder `out`, going on where an earlier call was stopped.

    Steering is swept and every configuration measured on validation items only; the front that comes of it is measured
    once on held-out items; the recommended edit is saved with its figures. A BudgetError where no trial keeps to it.
    """
    with opened_study(out, _KIND, search.identity(), search.options) as study:
        base, *steering = _sweep(search, study)
        narrate("Base model and activation steering, on validation items:", [base, *steering])
        _try_configurations(search, study, narrate)
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
        held_out = _held_out(search, study, steering, front)
        narrate("Held-out items, the front and steering at the strengths of the sweep:", held_out)
        edits = [c for c in held_out if c.kind == "edit"]
        steered = [c for c in held_out if c.kind == "steering"]
        comparison = compare_tradeoffs(held_out[0], steered, edits[-1], search.goal, seed=search.options.seed)
        beyond = search.budget.broken(edits[-1].metrics)
        evaluation = {**for_card([held_out[0], *steered, edits[-1]]), "beyond_budget": beyond}
        save_edit(search.engine.model, edit, out / "edit", evaluation=evaluation, overwrite=True)
        return SearchResult(base, steering, trials, front, recommended, edit, held_out, beyond, comparison)


def _sweep(search: Search, study: Study) -> list[Condition]:
    """The base and activation steering on validation items, at the strengths that spend shares of the drift budget."""
    given = list(search.options.strengths)
    name = "-".join(["steering", *(f"{strength:g}" for strength in given)])

    def measure() -> list[Condition]:
        _answer_all(search)
        strengths = list(given)
        for share in () if given else _SWEEP:
            steering = [(lambda s: Steering(search.vectors, s), strengths[-1] * 1.5 if strengths else 0.1)]
            target = share * search.goal.largest_cost
            (found,) = calibrate(search.engine, steering, search.validation.drift, target)
            strengths.append(float(f"{found.strength:.4g}"))
        arms = [BASE_ARM, *(steering_arm(search.vectors, strength) for strength in strengths)]
        return evaluate(search.engine, search.validation.tasks, arms)

    return study.conditions("steering", name, measure)


def _answer_all(search: Search) -> None:
    """The base's answers to the benign requests, all at once, as the first thing that is measured.

    In half precision they depend on the batch they are made in: a search that goes on must not make them in parts.
    """
    drift = search.validation.drift
    base_answers(search.engine, drift.items, drift.sampling)


def _try_configurations(search: Search, study: Study, narrate: Narrate) -> None:
    """Generation after generation until the study has as many trials as asked for, whoever measured them."""
    options, tried = search.options, study.trials()
    generation = 1 + max((trial.generation for trial in tried if trial.worker == options.worker), default=-1)
    if _searched(tried) < options.trials:
        _answer_all(search)
    with step("Trials", options.trials) as advance:
        advance(_searched(tried))
        while (left := options.trials - _searched(tried)) > 0:
            size = min(options.generation if generation else 2 * options.generation, left)
            history = [optuna_record(trial, search.space, search.goal) for trial in tried if trial.parameters]
            proposals = propose(options.strategy, search.space, history, generation, size, options.seed, options.worker)
            if search.effects and not generation and _searched(tried) == len(tried):
                narrate("First of all, beside the paper's rule: the edit of measured effects.", [])
                proposals = [{}, *proposals]
            if not proposals:
                return narrate("The grid is exhausted: no new configuration is left to propose.", [])
            made = measure_generation(search, proposals, generation)
            study.add(made)
            before, tried = _searched(tried), study.trials()
            advance(_searched(tried) - before)
            front = front_of(tried, search.goal)
            best = f"; best so far {front[-1].label}" if front else ""
            complete = sum(trial.complete for trial in made)
            narrate(f"Generation {generation}: {len(made)} trials, {complete} measured in full{best}.", [])
            generation += 1
    return None


def _searched(tried: Sequence[Trial]) -> int:
    """How many trials are points of the space: the edit of effects is tried beside them."""
    return sum(bool(trial.parameters) for trial in tried)


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


def _held_out(search: Search, study: Study, steering: Sequence[Condition], front: Sequence[Trial]) -> list[Condition]:
    """Base, steering and the front, recommended last, on items that nothing was chosen on."""
    step = max(1.0, (len(front) - 1) / (_MOST_FRONT - 1))
    shown = [front[round(i * step)] for i in range(min(len(front), _MOST_FRONT))]  # the recommended one among them
    strengths = [float(c.parameters["strength"]) for c in steering]
    arms = [BASE_ARM, *(steering_arm(search.vectors, strength) for strength in strengths)]
    arms += [edit_arm(edit, trial.label) for trial, edit in zip(shown, search.edits(shown), strict=True)]
    name = "_".join([*(t.key for t in shown), *(f"{s:.6g}" for s in strengths)])  # the same for whoever looks

    def measure() -> list[Condition]:
        return evaluate(search.engine, search.held_out.tasks, arms)

    return study.conditions("held_out", name, measure)


def run_facts(
    title: str, measured: Behaviour, model: LanguageModel, command: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What the results of every run begin with: what was run, when, with what."""
    return {
        "schema_version": SCHEMA_VERSION,
        "title": title,
        "behaviour": measured.name,
        "attribute": measured.attribute,
        "direction": measured.direction,
        "costs": dict(measured.costs),
        **({"unscored": measured.unscored} if measured.unscored else {}),
        "model": model.describe(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": package_versions(),
        "command": command,
        "settings": dict(settings),
    }


def search_results(search: Search, result: SearchResult, command: str = "") -> dict[str, Any]:
    """Everything a search found, as docs/formats.md has it."""
    model, goal, name = search.engine.model, search.goal, search.validation.name
    settings = {**asdict(search.options), "rules": search.factors.metadata.get("rules")}
    trials = [trial.condition() for trial in result.trials if trial.values]
    margin = "on validation items it keeps the budget with its whole 95 % intervals"
    if search.budget.violation(result.recommended.metrics, "worse"):
        margin = (
            "on validation items it keeps the budget, but no trial does with its whole 95 % intervals: more items "
            "would tell"
        )
    stopped = ("complete" if t.stopped is None else t.stopped.split(":")[0].split(" after")[0] for t in result.trials)
    return {
        **run_facts(f"Search for {name} on {model.name}", search.validation, model, command, settings),
        "diagnosis": search.vectors.diagnosis or {},
        "validation": {"conditions": [c.to_json() for c in (result.base, *result.steering, *trials)]},
        "held_out": {"conditions": [c.to_json() for c in result.held_out]},
        "prompts": search.held_out.prompts,
        "chosen": {
            "hyperparameters": result.recommended.hyperparameters.to_json(),
            "rule": f"the most of {metric_name(goal.attribute).running}; {margin}",
            "limits": dict(search.budget.at_most),
            "floors": dict(search.budget.at_least),
        },
        "front": [trial.key for trial in result.front],
        "trials": {"tried": len(result.trials), **Counter(stopped)},
        "comparison": asdict(result.comparison),
        "beyond_budget": result.beyond_budget,
        "summary": _summary(search, result, margin),
    }


def _summary(search: Search, result: SearchResult, margin: str) -> list[str]:
    goal, found, base, chosen = search.goal, result.comparison, result.held_out[0], result.held_out[-1]
    attribute, cost = metric_name(goal.attribute).running, metric_name(goal.cost).running

    def text(estimates: Mapping[str, Estimate], name: str, *, change: bool = False) -> str:
        return column(metric_name(name).scale == "share", change).text(estimates[name])

    first = [f"Only the paper's rule was searched: {search.no_effects.rstrip('.')}."] if search.no_effects else []
    for trial in (trial for trial in result.trials if not trial.parameters):
        end = "it is recommended" if trial == result.recommended else "another edit has more within the budget"
        came_to = f"stopped ({trial.stopped})" if trial.stopped else (
            f"{attribute} {text(trial.metrics, goal.attribute)}, {cost} {text(trial.metrics, goal.cost)}; {end}"
        )  # fmt: skip
        first.append(f"Tried first, the edit of measured effects, {trial.label}: on validation items {came_to}.")
    relative = f", {PERCENT.text(found.relative)} of steering's own" if found.relative.value is not None else ""
    ahead = text({goal.attribute: found.at_equal_cost}, goal.attribute, change=True)
    return [
        *([result.beyond_budget] if result.beyond_budget else []),
        f"{len(result.trials)} configurations tried, {sum(t.complete for t in result.trials)} measured in full, "
        f"{len(result.front)} on the front.",
        *first,
        f"Recommended: {result.recommended.label}; {margin}. Held-out {attribute}: "
        f"{text(chosen.metrics, goal.attribute)} (base {text(base.metrics, goal.attribute)}), {cost} "
        f"{text(chosen.metrics, goal.cost)}, n = {chosen.metrics[goal.attribute].n}.",
        f"Against activation steering at the same {cost}: {attribute} {ahead}, positive is better{relative} "
        "(bootstrap intervals).",
        *LeftOut.of(result.edit.metadata).sentences,
    ]
