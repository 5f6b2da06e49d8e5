"""The figures that methods are compared by, each with its interval and its difference or ratio to steering's.

    at kl c              the attribute where the method spends the drift c
    within m l           the most of the attribute where the cost m is at most l, and KL at most a tenth of a nat
    kl at a              the drift where the attribute first reaches a
    area m               mean rise of the attribute above the base over all costs up to a limit

Shapes: p = points of a curve, the base first; r = resamples, all items at once in the first row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Float

from steer2edit.estimates import CHANGE, NUMBER, PERCENT, POINTS, Condition, Estimate
from steer2edit.evaluation import COST, metric_name
from steer2edit.search.curves import (
    RESAMPLES,
    Array,
    attribute_at,
    best_within,
    curve_area,
    draw_counts,
    first_reach,
    interval,
    item_values,
    resampled_means,
)

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


@dataclass(frozen=True)
class _Curve:
    gains: Float[Array, "r p"]
    costs: Mapping[str, Float[Array, "r p"]]


_Found = tuple[Array, str]


@dataclass(frozen=True)
class _Question:
    label: str
    share: bool
    relation: Relation
    ask: Callable[[_Curve], _Found]


def method_figures(
    base: Condition,
    methods: Mapping[str, Sequence[Condition]],
    plan: Plan,
    items: Mapping[str, object],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Figure]]:
    """Every figure of every method.

    The bootstrap draws items with replacement, the same for all methods and for all metrics of the same items.

    Args:
        base: the base model, on the same items as the methods.
        methods: conditions by growing strength; `steering` is what others are compared with.
        plan: what is computed.
        items: by metric, something that is equal where the items are.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    counts: dict[object, Array] = {}
    generator = np.random.default_rng(seed)
    curves = {name: _Curve(np.empty(0), {}) for name in methods}
    for metric in dict.fromkeys((plan.attribute, COST, *plan.second)):
        flat = [base, *(condition for own in methods.values() for condition in own)]
        values = item_values(flat, metric)
        key = items[metric]
        if key not in counts:
            counts[key] = draw_counts(values.shape[1], resamples, generator)
        means, begin = _as_cost(resampled_means(values, counts[key]), metric, plan), 1
        for name, own in methods.items():
            points = np.concatenate([means[:, :1], means[:, begin : begin + len(own)]], axis=1)
            begin += len(own)
            known = curves[name]
            is_gain = metric == plan.attribute
            costs = known.costs if is_gain else {**known.costs, metric: points}
            curves[name] = _Curve(points if is_gain else known.gains, costs)
    n = len(base.values[plan.attribute])
    figures: dict[str, dict[str, Figure]] = {name: {} for name in methods}
    for key, question in _questions(plan).items():
        found = {name: question.ask(curve) for name, curve in curves.items()}
        for name, answer in found.items():
            figures[name][key] = _figure(question, answer, found["steering"], n)
    return figures


def _as_cost(means: Float[Array, "r p"], metric: str, plan: Plan) -> Float[Array, "r p"]:
    """Gains rise with what is wanted, costs with what is not: of what is to stay, what is lost."""
    if metric == plan.attribute:
        return plan.direction * means
    return means[:, :1] - means if metric in plan.falling else means


def _questions(plan: Plan) -> dict[str, _Question]:
    asked: dict[str, _Question] = {}
    share = metric_name(plan.attribute).scale == "share"
    for kl in plan.kls:
        ask = partial(_at, kl=kl, direction=plan.direction)
        asked[f"at kl {kl:g}"] = _Question(f"at KL {kl:g}", share, "difference", ask)
    brief = {COST: "KL", **{m: metric_name(m).brief + " lost" * (m in plan.falling) for m in plan.second}}
    for metric in plan.second:
        if metric_name(metric).scale == "share":
            ask = partial(_within, metric=metric, direction=plan.direction)
            label = f"at ≤ {SECOND_LIMIT:.0%} {brief[metric]}"
            asked[f"within {metric} {SECOND_LIMIT:g}"] = _Question(label, share, "difference", ask)
    if plan.reach is not None:
        ask = partial(_reaching, level=plan.reach)
        asked[f"kl at {plan.reach:g}"] = _Question(f"KL at {plan.reach:.0%}", False, "ratio", ask)
    for metric, name in brief.items():
        ask = partial(_area, metric=metric, width=plan.kls[-1] if metric == COST else _SECOND_WIDTH)
        asked[f"area {metric}"] = _Question(f"area over {name}", False, "ratio", ask)
    return asked


def _at(curve: _Curve, kl: float, direction: int) -> _Found:
    """A resample whose curve has ended before counts with its last point."""
    costs = curve.costs[COST]
    found = np.array([attribute_at(min(kl, c.max()), g, c) for g, c in zip(curve.gains, costs, strict=True)])
    end = float(costs[0].max())
    if end < kl:
        found[0] = np.nan
        return found, f"its curve ends at KL {end:.3g}"
    return direction * found, ""


def _within(curve: _Curve, metric: str, direction: int) -> _Found:
    costs = [curve.costs[metric], curve.costs[COST]]
    found = best_within(curve.gains, costs, [SECOND_LIMIT, LARGEST_KL])
    return direction * found, "" if np.isfinite(found[0]) else "it costs more everywhere"


def _area(curve: _Curve, metric: str, width: float) -> _Found:
    return curve_area(curve.gains, curve.costs[metric], width), ""


def _reaching(curve: _Curve, level: float) -> _Found:
    found = first_reach(curve.gains, curve.costs[COST], level)
    return found, "" if np.isfinite(found[0]) else f"it reaches {curve.gains[0].max():.0%} at most"


def _figure(question: _Question, own: _Found, steering: _Found, n: int) -> Figure:
    with np.errstate(divide="ignore", invalid="ignore"):
        against = own[0] - steering[0] if question.relation == "difference" else own[0] / steering[0]
        if question.relation == "ratio":  # what steering never reaches in a resample has no lower bound
            against = np.where(np.isinf(steering[0]), np.where(np.isinf(own[0]), np.nan, -np.inf), against)
    if not np.isfinite(steering[0][0]):
        against[0] = np.nan
    reason = own[1] or ("" if np.isfinite(against[0]) else "steering has nothing there to compare with")
    value, compared = interval(own[0], n), interval(against, n)
    return Figure(question.label, question.share, question.relation, value, compared, reason)


def figure_text(found: Estimate, share: bool, sign: bool = False) -> str:
    """`52 % [46, 58]`, `0.0123 [0.01, 0.0152]`; with signs, of a difference: `+29 points [+20, +38]`."""
    notation = (POINTS if sign else PERCENT) if share else (CHANGE if sign else NUMBER)
    return "–" if found.value is None else notation.text(found)
