"""What a search found, as the JSON that the report and scripts read."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from steer2edit.artifacts import package_versions
from steer2edit.artifacts.left_out import LeftOut
from steer2edit.estimates import NUMBER, PERCENT, SCHEMA_VERSION, Condition, Estimate, column
from steer2edit.evaluation import Behaviour, metric_name
from steer2edit.evaluation.statistics import paired
from steer2edit.models import LanguageModel
from steer2edit.search.run import SearchResult
from steer2edit.search.search import Search
from steer2edit.search.study import shown_storage
from steer2edit.search.trials import stopped_counts


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
    """Everything a search found.

    Keys beyond those of every run: `front` (keys of the trials on it), `comparison` (hypervolume ratio and attribute
    at equal cost on held-out items), `calibrated` (strengths at equal drift) and `summary` (plain sentences).
    """
    model, goal, name = search.engine.model, search.goal, search.validation.name
    settings = {**asdict(search.options), "storage": shown_storage(search.options.storage)}
    settings["rules"] = search.factors.metadata.get("rules")
    trials = [trial.condition() for trial in result.trials if trial.values]
    equal = {c.kind: c for c in result.held_out if c.parameters.get("equal_drift")}
    return {
        **run_facts(f"Search for {name} on {model.name}", search.validation, model, command, settings),
        "diagnosis": search.vectors.diagnosis or {},
        "validation": {"conditions": [c.to_json() for c in (result.base, *result.steering, *trials)]},
        "held_out": {"conditions": [c.to_json() for c in result.held_out]},
        "prompts": search.held_out.prompts,
        "chosen": {
            "hyperparameters": result.recommended.hyperparameters.to_json(),
            "steering_strength": equal["steering"].parameters["strength"] if equal else None,
            "rule": f"the most of {metric_name(goal.attribute).running}; {_margin(search, result)}",
            "limits": dict(search.budget.at_most),
            "floors": dict(search.budget.at_least),
        },
        "front": [trial.key for trial in result.front],
        "trials": {"tried": len(result.trials), **stopped_counts(result.trials)},
        "comparison": asdict(result.comparison),
        "equal_drift": _equal_drift(search, equal),
        "calibrated": {name: vars(found) for name, found in result.calibrated.items()},
        "beyond_budget": result.beyond_budget,
        "summary": _summary(search, result),
    }


def _summary(search: Search, result: SearchResult) -> list[str]:
    goal, found, base = search.goal, result.comparison, result.held_out[0]
    attribute, cost = metric_name(goal.attribute).running, metric_name(goal.cost).running
    chosen = [c for c in result.held_out if c.kind == "edit" and not c.parameters.get("equal_drift")][-1]
    relative = f", {PERCENT.text(found.relative)} of steering's own" if found.relative.value is not None else ""
    n = chosen.metrics[goal.attribute].n
    before = _text(goal.attribute, base.metrics[goal.attribute])
    return [
        *([result.beyond_budget] if result.beyond_budget else []),
        f"{len(result.trials)} configurations tried, {sum(t.complete for t in result.trials)} measured in full, "
        f"{len(result.front)} on the front.",
        *_by_effect(search, result),
        f"Recommended: {result.recommended.label}; {_margin(search, result)}. Held-out {attribute}: "
        f"{_text(goal.attribute, chosen.metrics[goal.attribute])} (base {before}), {cost} "
        f"{_text(goal.cost, chosen.metrics[goal.cost])}, n = {n}.",
        f"Against activation steering at the same {cost}: {attribute} "
        f"{_text(goal.attribute, found.at_equal_cost, change=True)}, positive is better{relative} "
        "(bootstrap intervals).",
        f"Hypervolume of the front, edits by steering: {NUMBER.text(found.ratio)}.",
        *LeftOut.of(result.edit.metadata).sentences,
    ]


def _text(name: str, found: Estimate, *, change: bool = False) -> str:
    """As the tables have it."""
    return column(metric_name(name).scale == "share", change).text(found)


def _by_effect(search: Search, result: SearchResult) -> list[str]:
    """What came of the edit that is tried first, or why there was none."""
    if search.no_effects:
        return [f"Only the paper's rule was searched: {search.no_effects.rstrip('.')}."]
    goal = search.goal
    return [
        f"Tried first, the edit of measured effects in closed form, {trial.label}: on validation items "
        + (
            f"stopped ({trial.stopped})."
            if trial.stopped
            else f"{metric_name(goal.attribute).running} {_text(goal.attribute, trial.metrics[goal.attribute])}, "
            f"{metric_name(goal.cost).running} {_text(goal.cost, trial.metrics[goal.cost])}; "
            + ("it is recommended." if trial == result.recommended else "another edit has more within the budget.")
        )
        for trial in result.trials
        if not trial.parameters
    ]


def _margin(search: Search, result: SearchResult) -> str:
    """How surely the recommended edit keeps the budget on validation items."""
    with_margin = search.budget.violation(result.recommended.metrics, "worse") == 0
    return "on validation items " + (
        "it keeps the budget with its whole 95 % intervals"
        if with_margin
        else "it keeps the budget, but no trial does with its whole 95 % intervals: more items would tell"
    )


def _equal_drift(search: Search, equal: Mapping[Any, Condition]) -> dict[str, Any] | None:
    """Edit less steering at the strengths that spend the target drift, paired; `None` if it was not asked for."""
    if not equal:
        return None
    names = (search.goal.attribute, search.goal.cost)
    found = {name: paired(equal["edit"].values[name], equal["steering"].values[name]).to_json() for name in names}
    return {"target": search.options.target_kl, "edit_minus_steering": found}
