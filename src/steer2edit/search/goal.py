"""What a search is for, more of an attribute at less drift within the budget; and edits against steering by that."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from steer2edit.errors import InvalidValueError
from steer2edit.estimates import NOT_SCORED, NUMBER, Condition, Estimate
from steer2edit.evaluation import COST, Behaviour
from steer2edit.search.curves import (
    RESAMPLES,
    Array,
    attribute_at,
    curve_area,
    draw_counts,
    interval,
    item_values,
    resampled_means,
)

At = Literal["better", "value", "worse"]
End = Literal["low", "value", "high"]
_ENDS: Mapping[At, tuple[End, End]] = {"better": ("low", "high"), "value": ("value", "value"), "worse": ("high", "low")}
"""Which field of an estimate a largest, and a smallest, allowed value is compared with."""
_UNLIMITED = 0.5  # nats per token: a trade-off beyond it is of no interest
_GROUP = 4  # configurations that are compared with one another for about the same cost


@dataclass(frozen=True)
class Budget:
    """What an edit may cost."""

    at_most: Mapping[str, float] = field(default_factory=dict)  # largest allowed value by metric
    at_least: Mapping[str, float] = field(default_factory=dict)  # smallest allowed value by metric

    def __post_init__(self) -> None:
        for name, limit in [*self.at_most.items(), *self.at_least.items()]:
            if not math.isfinite(limit):
                raise InvalidValueError(f"the limit of {name} must be a number, got {limit}.")

    @property
    def limits(self) -> dict[str, str]:
        """By metric, its limit as text: `<= 0.15`."""
        most = {name: f"<= {limit:g}" for name, limit in self.at_most.items()}
        return most | {name: f">= {limit:g}" for name, limit in self.at_least.items()}

    def excess(self, metrics: Mapping[str, Estimate], at: At = "value") -> dict[str, float]:
        """By metric, how far beyond its limit it is (≤ 0: within), at the estimate or at an end of its 95 % interval.

        A metric that is not scored is beyond any limit.
        """
        upper, lower = _ENDS[at]
        over = {name: _value(metrics, name, math.inf, upper) - limit for name, limit in self.at_most.items()}
        under = {name: limit - _value(metrics, name, -math.inf, lower) for name, limit in self.at_least.items()}
        return {**over, **under}

    def violation(self, metrics: Mapping[str, Estimate], at: At = "value") -> float:
        """Sum of the relative excesses; 0 if every limit is kept."""
        limits = {**self.at_most, **self.at_least}
        excess = self.excess(metrics, at)
        return sum(max(0.0, value) / max(abs(limits[name]), 0.01) for name, value in excess.items())

    def kept(self, measured: Sequence[Mapping[str, Estimate]]) -> list[int]:
        """Indices of what keeps the budget on validation items, with a margin for what held-out items may show.

        What is chosen is the best of many estimates, and so better on these items than on others. A limit must
        therefore hold for the worse end of the 95 % interval; where it does for none, those that keep the budget and
        come nearest are left.
        """
        within = {i: self.violation(m, "worse") for i, m in enumerate(measured) if self.violation(m) == 0}
        least = min(within.values(), default=0.0)
        return [i for i, violation in within.items() if violation <= least]

    def broken(self, held_out: Mapping[str, Estimate]) -> str:
        """One sentence on the limits that a chosen edit breaks on held-out items; empty if it keeps them all."""
        limits = self.limits
        beyond = [name for name, excess in self.excess(held_out).items() if excess > 0]
        found = [f"{n} {NUMBER.text(held_out[n]) if n in held_out else NOT_SCORED}, budget {limits[n]}" for n in beyond]
        return f"BEYOND ITS BUDGET on held-out items: {'; '.join(found)}." if found else ""

    def to_json(self) -> dict[str, dict[str, float]]:
        """Both kinds of limits by metric."""
        return {"at_most": dict(self.at_most), "at_least": dict(self.at_least)}


def _value(metrics: Mapping[str, Estimate], name: str, worst: float, end: End) -> float:
    estimate = metrics.get(name)
    if estimate is None or estimate.value is None:
        return worst
    found = getattr(estimate, end)
    return estimate.value if found is None else float(found)


@dataclass(frozen=True)
class Goal:
    """Two objectives and a budget."""

    attribute: str  # metric to move
    direction: int  # +1 if more of it is wanted, −1 if less
    budget: Budget  # what it may cost
    cost: str = COST  # metric to keep small
    # a finer metric of the same attribute that tells apart what is equal in it, if there is one
    guide: str | None = None

    @classmethod
    def of(cls, behaviour: Behaviour, budget: Budget) -> "Goal":
        """The goal of a behaviour under a budget."""
        return cls(behaviour.attribute, behaviour.direction, budget, guide=behaviour.guide)

    @property
    def largest_cost(self) -> float:
        """Where trade-offs are compared up to: the drift budget."""
        return self.budget.at_most.get(self.cost, _UNLIMITED)

    def gain(self, metrics: Mapping[str, Estimate]) -> float | None:
        """The attribute, signed so that more is better; `None` if it was not scored."""
        estimate = metrics.get(self.attribute)
        return None if estimate is None or estimate.value is None else self.direction * estimate.value

    def guided(self, metrics: Mapping[str, Estimate]) -> float:
        """The guide, signed like the attribute; 0 without one."""
        estimate = metrics.get(self.guide) if self.guide else None
        return 0.0 if estimate is None or estimate.value is None else self.direction * estimate.value

    def point(self, metrics: Mapping[str, Estimate]) -> tuple[float, float] | None:
        """(gain, cost), or `None` if either was not scored."""
        gain, cost = self.gain(metrics), metrics.get(self.cost)
        return None if gain is None or cost is None or cost.value is None else (gain, cost.value)


def pareto_front(points: Sequence[tuple[float, float] | None]) -> list[int]:
    """Indices of the points that no other dominates, by growing cost; of equal points the first."""
    known = [(i, p) for i, p in enumerate(points) if p is not None]
    kept: list[int] = []
    best = -math.inf
    for index, (gain, _) in sorted(known, key=lambda item: (item[1][1], -item[1][0], item[0])):
        if gain > best:
            kept.append(index)
            best = gain
    return kept


def ranked(metrics: Sequence[Mapping[str, Estimate]], goal: Goal) -> list[int]:
    """Indices from the most to the least promising.

    Within the budget, configurations are compared with those of about the same cost, in groups of consecutive costs:
    first come the best of every group, then the second best, ..., so that what is kept covers the whole trade-off
    and not only its cheap end, where few items cannot tell attributes apart. What is surely beyond the budget (by the
    whole interval of a metric) comes behind, by how far; what could not be scored comes last.
    """
    points = [goal.point(m) for m in metrics]
    beyond = [goal.budget.violation(m, "better") for m in metrics]
    allowed = sorted((point[1], i) for i, point in enumerate(points) if point is not None and beyond[i] == 0)
    places: list[tuple[int, int, int]] = []
    for begin in range(0, len(allowed), _GROUP):
        group = [i for _, i in allowed[begin : begin + _GROUP]]
        group.sort(key=lambda i: (goal.gain(metrics[i]) or 0.0, goal.guided(metrics[i])), reverse=True)
        places += [(place, begin, i) for place, i in enumerate(group)]
    order = [i for _, _, i in sorted(places)]
    scored = [i for i, point in enumerate(points) if point is not None and beyond[i] > 0]
    unscored = [i for i, point in enumerate(points) if point is None]
    return order + sorted(scored, key=lambda i: (beyond[i], i)) + unscored


@dataclass(frozen=True)
class TradeoffComparison:
    """Edits against steering on the same items."""

    hypervolume_edits: float  # area that the edits dominate, between the base's attribute and the largest cost
    hypervolume_steering: float  # the area below steering's curve, which may take any strength between those measured
    ratio: Estimate  # of the two, with a bootstrap interval; `None` where steering dominates nothing
    at_equal_cost: Estimate  # the chosen edit's attribute less that of steering interpolated at the edit's own cost
    relative: Estimate  # `at_equal_cost` by steering's attribute there
    largest_cost: float  # where the area ends


def hypervolume(gains: Sequence[float], costs: Sequence[float], base_gain: float, largest_cost: float) -> float:
    """Area dominated by points (gain ↑, cost ↓) in [base_gain, ∞) × [0, largest_cost], as a share of that width.

    Σ over the front, by growing cost, of (gain − best gain before) · (largest_cost − cost) / largest_cost
    """
    area, best = 0.0, base_gain
    within = [(cost, gain) for cost, gain in zip(costs, gains, strict=True) if cost <= largest_cost]  # no NaN either
    for cost, gain in sorted(within, key=lambda point: (point[0], -point[1])):
        if gain > best:
            area += (gain - best) * (largest_cost - cost) / largest_cost
            best = gain
    return area


def compare_tradeoffs(
    base: Condition,
    steering: Sequence[Condition],
    edits: Sequence[Condition],
    chosen: int,
    goal: Goal,
    *,
    largest_cost: float | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> TradeoffComparison:
    """Compare two sets of conditions that were measured on the same items; `chosen` is an index in `edits`.

    The bootstrap draws items with replacement, the same for all conditions, and computes everything again; which
    conditions are compared was settled before, on validation items. The area ends at the largest cost of any condition
    unless one is given.
    """
    conditions = [base, *steering, *edits]
    gain_items, cost_items = (item_values(conditions, name) for name in (goal.attribute, goal.cost))
    rng = np.random.default_rng(seed)
    gains, costs = (
        resampled_means(items, draw_counts(items.shape[1], resamples, rng))
        for items in (gain_items * goal.direction, cost_items)
    )
    limit = largest_cost or float(np.nanmax(costs[0]))
    split = 1 + len(steering)
    by_cost = np.argsort(costs[0, :split], kind="stable")
    steered = curve_area(gains[:, by_cost], costs[:, by_cost], limit)
    rows = [_figures(g, c, split, chosen, limit) for g, c in zip(gains, costs, strict=True)]
    own, at_equal, relative = np.array(rows).T
    n = int(np.isfinite(gain_items).all(axis=0).sum())  # items that were scored under every condition
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = own / steered  # infinite where only the edits gain, NaN (left out) where nothing does
    return TradeoffComparison(
        float(own[0]), float(steered[0]), interval(ratio, n), interval(at_equal, n), interval(relative, n), limit
    )


def _figures(gains: Array, costs: Array, split: int, chosen: int, limit: float) -> tuple[float, float, float]:
    """(hypervolume of the edits, the chosen one's gain over steering at its cost, the same by steering's)."""
    own = hypervolume(gains[split:].tolist(), costs[split:].tolist(), float(gains[0]), limit)
    gain, cost = float(gains[split:][chosen]), float(costs[split:][chosen])
    matched = attribute_at(cost, gains[:split].tolist(), costs[:split].tolist(), beyond=True)
    return own, gain - matched, (gain - matched) / abs(matched) if matched else math.nan
