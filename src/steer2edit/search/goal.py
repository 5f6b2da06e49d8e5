"""What a search is for: more of an attribute at less drift, within the budget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from steer2edit.errors import InvalidValueError
from steer2edit.estimates import NOT_SCORED, NUMBER, Estimate
from steer2edit.evaluation import COST

At = Literal["better", "value", "worse"]
_ENDS = {"better": ("low", "high"), "value": ("value", "value"), "worse": ("high", "low")}
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
        """By metric, how far beyond its limit (> 0) it is, at the estimate or an end of its interval; ∞: not scored."""
        found: dict[str, float] = {}
        for sign, limits, end in zip((1, -1), (self.at_most, self.at_least), _ENDS[at], strict=True):
            for name, limit in limits.items():
                value = metrics[name].value if name in metrics else None
                if value is not None and (bound := getattr(metrics[name], end)) is not None:
                    value = float(bound)
                found[name] = math.inf if value is None else sign * (value - limit)
        return found

    def violation(self, metrics: Mapping[str, Estimate], at: At = "value") -> float:
        """Sum of the relative excesses; 0 if every limit is kept."""
        limits = {**self.at_most, **self.at_least}
        excess = self.excess(metrics, at)
        return sum(max(0.0, value) / max(abs(limits[name]), 0.01) for name, value in excess.items())

    def kept(self, measured: Sequence[Mapping[str, Estimate]]) -> list[int]:
        """Indices of what keeps the budget with its whole 95 % intervals; where none does, of those that come nearest.

        What is chosen is the best of many estimates, and so better on these items than on others.
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


@dataclass(frozen=True)
class Goal:
    """Two objectives and a budget."""

    attribute: str  # metric to move
    direction: int  # +1 if more of it is wanted, −1 if less
    budget: Budget  # what it may cost
    cost: str = COST  # metric to keep small
    # a finer metric of the same attribute that tells apart what is equal in it, if there is one
    guide: str | None = None

    @property
    def largest_cost(self) -> float:
        """Where trade-offs are compared up to: the drift budget."""
        return self.budget.at_most.get(self.cost, _UNLIMITED)

    def gain(self, metrics: Mapping[str, Estimate], of: str) -> float | None:
        """The attribute, or a finer metric of it, signed so that more is better; `None` if it was not scored."""
        estimate = metrics.get(of)
        return None if estimate is None or estimate.value is None else self.direction * estimate.value

    def point(self, metrics: Mapping[str, Estimate]) -> tuple[float, float] | None:
        """(gain, cost), or `None` if either was not scored."""
        gain, cost = self.gain(metrics, self.attribute), metrics.get(self.cost)
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

    Within the budget the best of every group of about the same cost come first, then the second best, ..., so that what
    is kept covers the whole trade-off. What is surely beyond the budget (by the whole interval of a metric) comes
    behind, by how far; what could not be scored comes last.
    """
    finest = [[goal.gain(m, name) or 0.0 for name in (goal.attribute, goal.guide) if name] for m in metrics]
    points = [goal.point(m) for m in metrics]
    beyond = [goal.budget.violation(m, "better") for m in metrics]
    allowed = sorted((point[1], i) for i, point in enumerate(points) if point is not None and beyond[i] == 0)
    places: list[tuple[int, int, int]] = []
    for begin in range(0, len(allowed), _GROUP):
        group = [i for _, i in allowed[begin : begin + _GROUP]]
        group.sort(key=lambda i: finest[i], reverse=True)
        places += [(place, begin, i) for place, i in enumerate(group)]
    order = [i for _, _, i in sorted(places)]
    scored = [i for i, point in enumerate(points) if point is not None and beyond[i] > 0]
    unscored = [i for i, point in enumerate(points) if point is None]
    return order + sorted(scored, key=lambda i: (beyond[i], i)) + unscored
