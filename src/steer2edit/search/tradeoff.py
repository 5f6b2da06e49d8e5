"""Edits against activation steering: hypervolume and attribute at equal cost, with bootstrap intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steer2edit.evaluation import Condition, Estimate
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
from steer2edit.search.goal import Goal


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
    """Compare two sets of conditions that were measured on the same items.

    The bootstrap draws items with replacement, the same for all conditions, and computes everything again; which
    conditions are compared was settled before, on validation items.

    Args:
        base: the base model.
        steering: activation steering at several strengths.
        edits: the front of edits.
        chosen: index of the recommended edit in `edits`.
        goal: names the two metrics and the direction.
        largest_cost: where the area ends; by default the largest cost of any condition.
        resamples: of the bootstrap.
        seed: of the bootstrap.
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
