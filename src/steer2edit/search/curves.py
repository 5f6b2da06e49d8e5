"""What a method achieves along its curve over strengths, at given costs; all of a bootstrap's resamples at once.

A method may take any strength between two that were measured, so its curve is a line from point to point, by growing
strength, from the base on. Beyond its last point nothing is known of it.

Shapes: p = points of a curve, the base first; r = resamples; i = items of a metric; k = costs with a limit.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from steer2edit.evaluation import Condition, Estimate, Value
from steer2edit.evaluation.statistics import CONFIDENCE

RESAMPLES = 2000
_STEPS = 200  # of an area
_ROUNDING = 1e-12

Array = np.ndarray


def item_values(conditions: Sequence[Condition], metric: str) -> Float[Array, "p i"]:
    """What every item came to; NaN where it was not scored."""
    rows: list[list[Value]] = [list(condition.values[metric]) for condition in conditions]
    return np.array([[math.nan if value is None else float(value) for value in row] for row in rows])


def draw_counts(items: int, resamples: int, generator: np.random.Generator) -> Int[Array, "r i"]:
    """How often each resample of a bootstrap draws each item; the first row is no resample, but every item once."""
    drawn = generator.integers(0, items, (resamples, items))
    return np.stack([np.ones(items, int), *(np.bincount(row, minlength=items) for row in drawn)])


def resampled_means(items: Float[Array, "p i"], counts: Int[Array, "r i"]) -> Float[Array, "r p"]:
    """Means over the drawn items that were scored; NaN where none was."""
    scored = np.isfinite(items)
    number = counts @ scored.T
    totals: Array = counts @ np.where(scored, items, 0.0).T
    return np.where(number > 0, totals / np.where(number > 0, number, 1), np.nan)


def interval(found: Float[Array, " r"], n: int) -> Estimate:
    """The first value, with the percentile interval of the others. Source: Efron & Tibshirani 1993, ch. 13."""
    value, usable = float(found[0]), found[1:][~np.isnan(found[1:])]
    if not math.isfinite(value) or not len(usable):
        return Estimate(value if math.isfinite(value) else None, None, None, n)
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(x) for x in np.quantile(usable, [tail, 1 - tail], method="nearest"))
    return Estimate(value, low if math.isfinite(low) else None, high if math.isfinite(high) else None, n)


def attribute_at(cost: float, gains: Sequence[float], costs: Sequence[float], *, beyond: bool = False) -> float:
    """Gain at a cost on the piecewise linear curve through the points; NaN where it has ended before.

    Args:
        cost: where to look.
        gains: of the points, in any order.
        costs: of the points.
        beyond: let the last piece go on, if it rises, instead.
    """
    order = np.argsort(costs, kind="stable")
    x, y = np.asarray(costs)[order], np.asarray(gains)[order]
    if cost > x[-1]:
        if not beyond:
            return math.nan
        slope = (y[-1] - y[-2]) / (x[-1] - x[-2]) if len(x) > 1 and x[-1] > x[-2] else 0.0
        return float(y[-1] + max(0.0, slope) * (cost - x[-1]))
    return float(np.interp(cost, x, y))


def best_within(
    gains: Float[Array, "r p"], costs: Sequence[Float[Array, "r p"]], limits: Sequence[float]
) -> Float[Array, " r"]:
    """The largest gain anywhere on the curve where every cost keeps its limit; NaN where none does."""
    x, allowed = np.stack(costs), np.array(limits)[:, None, None] + _ROUNDING
    found = np.where((x <= allowed).all(axis=0), gains, -np.inf).max(axis=1)
    step, rise = np.diff(x, axis=2), np.diff(gains, axis=1)
    for cost, limit in enumerate(limits):  # a maximum lies on a point, or where a piece meets a limit
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (limit - x[cost, :, :-1]) / step[cost]
            kept = (x[:, :, :-1] + share * step <= allowed).all(axis=0) & (share > 0) & (share < 1)
            found = np.maximum(
                found, np.where(kept, gains[:, :-1] + share * rise, -np.inf).max(axis=1, initial=-np.inf)
            )
    return np.where(np.isfinite(found), found, np.nan)


def curve_area(gains: Float[Array, "r p"], costs: Float[Array, "r p"], limit: float) -> Float[Array, " r"]:
    """Mean over the costs c in [0, limit] of what the curve has risen above the base at a cost of at most c.

    A method keeps beyond its last point what it reached there.
    """
    at = np.linspace(0.0, limit, _STEPS + 1)
    risen = [np.nan_to_num(np.maximum(best_within(gains, [costs], [c]) - gains[:, 0], 0.0)) for c in at]
    area: Array = np.trapezoid(risen, at, axis=0) / limit
    return area


def first_reach(gains: Float[Array, "r p"], costs: Float[Array, "r p"], level: float) -> Float[Array, " r"]:
    """The cost where the curve first reaches a level, by growing strength; infinite where it never does."""
    reached = gains >= level
    after, rows = reached.argmax(axis=1), np.arange(len(gains))
    before = np.maximum(after - 1, 0)
    low, high = gains[rows, before], gains[rows, after]
    share = (level - low) / np.where(high > low, high - low, 1.0)
    crossing = costs[rows, before] + share * (costs[rows, after] - costs[rows, before])
    crossing = np.where(after == 0, costs[:, 0], crossing)
    return np.where(reached.any(axis=1), crossing, np.inf)
