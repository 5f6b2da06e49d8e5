"""Pareto front, budget and ranking: by hand, and against their definitions."""

import math

import pytest
from hypothesis import given, strategies as st

from steer2edit.errors import InvalidValueError
from steer2edit.estimates import Estimate
from steer2edit.evaluation.statistics import rate
from steer2edit.search.goal import Budget, Goal, pareto_front, ranked

GOAL = Goal("refused", 1, Budget({"kl": 0.5}))
few = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7])
points = st.lists(st.one_of(st.none(), st.tuples(few, few)), max_size=12)


def metrics(**values: float | None) -> dict[str, Estimate]:
    return {name: Estimate(value, None, None, 0 if value is None else 4) for name, value in values.items()}


def test_front_by_hand() -> None:
    found = [(0.5, 0.2), (0.4, 0.1), (0.4, 0.2), None, (0.6, 0.2), (0.6, 0.3), (0.4, 0.1)]
    assert pareto_front(found) == [1, 4]  # (0.4, 0.1) and (0.6, 0.2); the second (0.4, 0.1) is no other point
    assert pareto_front([]) == pareto_front([None]) == []
    assert pareto_front([(0.0, 9.0)]) == [0]


@given(points)
def test_front_is_what_nothing_dominates(found: list[tuple[float, float] | None]) -> None:
    known = [point for point in found if point is not None]
    expected = {
        (gain, cost)
        for gain, cost in known
        if not any(g >= gain and c <= cost and (g, c) != (gain, cost) for g, c in known)
    }
    front = [found[i] for i in pareto_front(found)]
    assert set(front) == expected
    assert len(front) == len(expected)
    assert front == sorted(front, key=lambda point: point[1] if point else math.nan)


def test_excess_and_violation_by_hand() -> None:
    budget = Budget({"kl": 0.2, "benign_refused": 0.0}, {"accuracy": 0.5})
    kept = metrics(kl=0.2, benign_refused=0.0, accuracy=0.5)  # on every limit is within it
    assert budget.excess(kept) == {"kl": 0.0, "benign_refused": 0.0, "accuracy": 0.0}
    assert budget.violation(kept) == 0
    broken = metrics(kl=0.3, benign_refused=0.02, accuracy=0.4)
    # 0.1/0.2 + 0.02/0.01 (a limit of 0 counts as 0.01) + 0.1/0.5
    assert budget.violation(broken) == pytest.approx(0.5 + 2 + 0.2)
    assert budget.excess(metrics(kl=0.1, benign_refused=0.0, accuracy=0.9))["accuracy"] == pytest.approx(-0.4)


@pytest.mark.parametrize("found", [metrics(accuracy=0.9), metrics(kl=None, accuracy=0.9), metrics(kl=0.1), {}])
def test_unscored_is_beyond_every_limit(found: dict[str, Estimate]) -> None:
    assert Budget({"kl": 0.2}, {"accuracy": 0.5}).violation(found) == math.inf


@pytest.mark.parametrize("limit", [math.nan, math.inf, -math.inf])
def test_limits_are_numbers(limit: float) -> None:
    with pytest.raises(InvalidValueError, match="the limit of kl must be a number"):
        Budget({"kl": limit})
    with pytest.raises(InvalidValueError, match="the limit of accuracy must be a number"):
        Budget(at_least={"accuracy": limit})


def test_less_is_better_where_the_behaviour_says_so() -> None:
    goal = Goal("reply_tokens", -1, Budget({"kl": 0.2}))
    assert goal.point(metrics(reply_tokens=20.0, kl=0.1)) == (-20.0, 0.1)
    assert goal.point(metrics(reply_tokens=None, kl=0.1)) is None
    assert goal.point(metrics(reply_tokens=20.0)) is None
    assert goal.gain(metrics(characters=9.0), "characters") == -9.0
    assert goal.gain({}, "characters") is None


def test_ranking_by_hand() -> None:
    """Two groups of four by cost; the best of each, then the second best of each, ...; then beyond; then unscored."""
    found = [
        metrics(refused=0.1, kl=0.01), metrics(refused=0.4, kl=0.02),  # first group: 0, 1, 2, 3
        metrics(refused=0.3, kl=0.03), metrics(refused=0.2, kl=0.04),
        metrics(refused=0.5, kl=0.11), metrics(refused=0.9, kl=0.12),  # second group: 4, 5, 6
        metrics(refused=0.7, kl=0.13),
        metrics(refused=1.0, kl=0.9), metrics(refused=0.0, kl=0.6),  # beyond 0.5
        metrics(refused=None, kl=0.01), metrics(refused=0.9),  # unscored
    ]  # fmt: skip
    assert ranked(found, GOAL) == [1, 5, 2, 6, 3, 4, 0, 8, 7, 9, 10]


def test_the_guide_tells_apart_what_is_equal() -> None:
    goal = Goal("refused", -1, Budget({"kl": 0.5}), guide="margin")
    found = [metrics(refused=0.5, margin=m, kl=0.1) for m in (0.3, 0.1, 0.2)] + [
        metrics(refused=0.4, margin=9.0, kl=0.2)
    ]
    assert ranked(found, goal) == [3, 1, 2, 0]  # less is better, of the guide too


@given(st.lists(st.tuples(st.one_of(st.none(), few), st.one_of(st.none(), few)), max_size=14))
def test_ranking_loses_nothing(found: list[tuple[float | None, float | None]]) -> None:
    measured = [metrics(refused=gain, kl=cost) for gain, cost in found]
    order = ranked(measured, GOAL)
    assert sorted(order) == list(range(len(found)))
    kinds = [2 if None in found[i] else int(found[i][1] > 0.5) for i in order]
    assert kinds == sorted(kinds)  # within the budget, beyond it, unscored


def test_few_items_do_not_condemn() -> None:
    """2 of 12 refused is beyond 8 %, but its interval [4.7 %, 44.8 %] is not; 8 of 12 is, with its whole interval."""
    budget = Budget({"refused": 0.08}, {"accuracy": 0.5})
    few = {"refused": rate([True] * 2 + [False] * 10), "accuracy": rate([True] * 5 + [False] * 7)}
    assert budget.violation(few) == pytest.approx((2 / 12 - 0.08) / 0.08 + (0.5 - 5 / 12) / 0.5)
    assert budget.violation(few, "better") == 0
    many = {**few, "refused": rate([True] * 8 + [False] * 4)}
    low = many["refused"].low
    assert low is not None
    assert budget.violation(many, "better") == pytest.approx((low - 0.08) / 0.08)
    assert budget.violation({"accuracy": few["accuracy"]}, "better") == math.inf  # what is not scored is beyond
