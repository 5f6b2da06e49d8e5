"""The figures that methods are compared by, each with its interval and its difference or ratio to steering's.

    at kl c              the attribute where the method spends the drift c
    within m l           the most of the attribute where the cost m is at most l, and KL at most a tenth of a nat
    kl at a              the drift where the attribute first reaches a
    area m               mean rise of the attribute above the base over all costs up to a limit

A method may take any strength between two that were measured, so its curve is a line from point to point, by growing
strength, from the base on. Beyond its last point nothing is known of it.

Shapes: p = points of a curve, the base first; r = resamples, all items at once in the first row; i = items of a metric.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from steer2edit.estimates import CHANGE, NUMBER, PERCENT, POINTS, Condition, Estimate, Value
from steer2edit.evaluation import COST, metric_name
from steer2edit.evaluation.statistics import CONFIDENCE
from steer2edit.search.goal import Goal

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

    The points come in any order. With `beyond` the last piece goes on instead, if it rises.
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


LARGEST_KL = 0.1  # of `within`, nats per token
SECOND_LIMIT = 0.05  # of `within`: a share refused, or of right answers lost
_SECOND_WIDTH = 0.2  # of the areas, for every cost but KL

Relation = Literal["difference", "ratio"]


@dataclass(frozen=True)
class Figure:
    """One figure of one method."""

    label: str  # what it is, for people
    share: bool  # whether it is a share, written in percent
    relation: Relation  # what it is compared with steering's by
    value: Estimate  # with a bootstrap interval
    against_steering: Estimate  # less steering's, or by steering's; its own interval
    reason: str = ""  # why there is no value, or no comparison, in words


@dataclass(frozen=True)
class Plan:
    """What is computed."""

    attribute: str  # metric that is to move
    direction: int  # +1 if more of it is wanted, −1 if less
    kls: tuple[float, ...]  # drifts that the attribute is told at, rising
    second: tuple[str, ...]  # the other costs
    reach: float | None = None  # level of the attribute whose drift is told, if any
    falling: tuple[str, ...] = ()  # of the other costs, those whose fall is the cost


_Answer = tuple[str, bool, Relation, Array, str]
"""The beginning of a `Figure`, its value in every resample, and why there is none."""


def method_figures(
    base: Condition,
    methods: Mapping[str, Sequence[Condition]],
    plan: Plan,
    items: Mapping[str, object],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Figure]]:
    """Every figure of every method, of conditions by growing strength; `steering` is what others are compared with.

    The bootstrap draws items with replacement, the same for all methods and for all metrics whose `items` are equal.
    """
    counts: dict[object, Array] = {}
    generator = np.random.default_rng(seed)
    flat, drawn = [base, *(condition for own in methods.values() for condition in own)], {}
    for metric in dict.fromkeys((plan.attribute, COST, *plan.second)):
        values, key = item_values(flat, metric), items[metric]
        if key not in counts:
            counts[key] = draw_counts(values.shape[1], resamples, generator)
        means = resampled_means(values, counts[key])
        if metric == plan.attribute:  # gains rise with what is wanted, costs with what is not
            means = plan.direction * means
        elif metric in plan.falling:  # of what is to stay, what is lost
            means = means[:, :1] - means
        drawn[metric] = means
    found, begin = {}, 1
    for name, own in methods.items():
        points = [0, *range(begin, begin := begin + len(own))]
        found[name] = _answers({metric: means[:, points] for metric, means in drawn.items()}, plan)
    n = len(base.values[plan.attribute])
    return {
        name: {key: _figure(*answer, found["steering"][key][3], n) for key, answer in own.items()}
        for name, own in found.items()
    }


def _answers(curve: Mapping[str, Float[Array, "r p"]], plan: Plan) -> dict[str, _Answer]:
    """The figures of a curve, which has the points of every metric."""
    share, kl, gains = metric_name(plan.attribute).scale == "share", curve[COST], curve[plan.attribute]
    answers: dict[str, _Answer] = {}
    for target in plan.kls:  # a resample whose curve has ended before counts with its last point
        at = [attribute_at(min(target, c.max()), g, c) for g, c in zip(gains, kl, strict=True)]
        end, found = float(kl[0].max()), plan.direction * np.array(at)
        found[0] = np.nan if end < target else found[0]
        reason = f"its curve ends at KL {end:.3g}" if end < target else ""
        answers[f"at kl {target:g}"] = (f"at KL {target:g}", share, "difference", found, reason)
    brief = {COST: "KL", **{m: metric_name(m).brief + " lost" * (m in plan.falling) for m in plan.second}}
    for metric in plan.second:
        if metric_name(metric).scale == "share":
            found = plan.direction * best_within(gains, [curve[metric], kl], [SECOND_LIMIT, LARGEST_KL])
            reason = "" if np.isfinite(found[0]) else "it costs more everywhere"
            label = f"at ≤ {SECOND_LIMIT:.0%} {brief[metric]}"
            answers[f"within {metric} {SECOND_LIMIT:g}"] = (label, share, "difference", found, reason)
    if plan.reach is not None:
        found = first_reach(gains, kl, plan.reach)
        reason = "" if np.isfinite(found[0]) else f"it reaches {gains[0].max():.0%} at most"
        answers[f"kl at {plan.reach:g}"] = (f"KL at {plan.reach:.0%}", False, "ratio", found, reason)
    for metric, name in brief.items():
        found = curve_area(gains, curve[metric], plan.kls[-1] if metric == COST else _SECOND_WIDTH)
        answers[f"area {metric}"] = (f"area over {name}", False, "ratio", found, "")
    return answers


def _figure(label: str, share: bool, relation: Relation, found: Array, reason: str, steering: Array, n: int) -> Figure:
    with np.errstate(divide="ignore", invalid="ignore"):
        against = found - steering if relation == "difference" else found / steering
        if relation == "ratio":  # what steering never reaches in a resample has no lower bound
            against = np.where(np.isinf(steering), np.where(np.isinf(found), np.nan, -np.inf), against)
    if not np.isfinite(steering[0]):
        against[0] = np.nan
    reason = reason or ("" if np.isfinite(against[0]) else "steering has nothing there to compare with")
    return Figure(label, share, relation, interval(found, n), interval(against, n), reason)


def figure_text(found: Estimate, share: bool, sign: bool = False) -> str:
    """`52 % [46, 58]`, `0.0123 [0.01, 0.0152]`; with signs, of a difference: `+29 points [+20, +38]`."""
    notation = (POINTS if sign else PERCENT) if share else (CHANGE if sign else NUMBER)
    return "–" if found.value is None else notation.text(found)


@dataclass(frozen=True)
class TradeoffComparison:
    """An edit against steering on the same items."""

    at_equal_cost: Estimate  # the edit's attribute less that of steering interpolated at the edit's own cost
    relative: Estimate  # `at_equal_cost` by steering's attribute there


def compare_tradeoffs(
    base: Condition,
    steering: Sequence[Condition],
    edit: Condition,
    goal: Goal,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> TradeoffComparison:
    """Compare an edit with the steering curve; the bootstrap draws items, the same for all conditions."""
    items = [item_values([base, *steering, edit], name) for name in (goal.attribute, goal.cost)]
    generator = np.random.default_rng(seed)
    gains, costs = (resampled_means(own, draw_counts(own.shape[1], resamples, generator)) for own in items)
    gains = goal.direction * gains
    curves = zip(costs[:, -1], gains[:, :-1], costs[:, :-1], strict=True)
    steered = np.array([attribute_at(*curve, beyond=True) for curve in curves])
    ahead = gains[:, -1] - steered
    n = int(np.isfinite(items[0]).all(axis=0).sum())  # items that were scored under every condition
    relative = np.divide(ahead, np.abs(steered), out=np.full_like(ahead, np.nan), where=steered != 0)
    return TradeoffComparison(interval(ahead, n), interval(relative, n))
