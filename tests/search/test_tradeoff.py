"""Hypervolume, interpolation and the comparison of two trade-offs: by hand, against Optuna, against coverage."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume

from steer2edit.estimates import Condition
from steer2edit.search.curves import attribute_at, compare_tradeoffs, hypervolume
from steer2edit.search.goal import Budget, Goal

GOAL = Goal("refused", 1, Budget({"kl": 1.0}))
unit = st.floats(0, 1, allow_nan=False)


def condition(refused: list[bool | None], kl: list[float | None]) -> Condition:
    return Condition("", values={"refused": refused, "kl": kl})


def rates(refused: int, kl: float, n: int = 10) -> Condition:
    """`refused` of n items, and the same drift on each of four."""
    return condition([i < refused for i in range(n)], [kl] * 4)


BASE = rates(1, 0.0)


def test_hypervolume_by_hand() -> None:
    # from 0.2 up to 0.5 over the costs [0.25, 1], then up to 0.6 over [0.5, 1]: 0.3 · 0.75 + 0.1 · 0.5
    assert hypervolume([0.6, 0.5, 0.4], [0.5, 0.25, 0.3], 0.2, 1.0) == pytest.approx(0.275)
    assert hypervolume([0.6, 0.5], [1.0, 2.0], 0.2, 2.0) == pytest.approx(0.4 * 0.5)  # a share of the width
    assert hypervolume([0.9], [1.1], 0.2, 1.0) == 0  # beyond the largest cost
    assert hypervolume([0.1], [0.0], 0.2, 1.0) == 0  # below the base
    assert hypervolume([], [], 0.2, 1.0) == 0


def test_hypervolume_leaves_out_what_is_not_scored() -> None:
    nan = float("nan")
    gains, costs = [0.6, nan, 0.5, 0.9], [0.5, 0.1, 0.25, nan]
    assert hypervolume(gains, costs, 0.2, 1.0) == pytest.approx(0.275)


@given(st.lists(st.tuples(unit, unit), min_size=1, max_size=8), unit)
def test_hypervolume_is_optunas(points: list[tuple[float, float]], base: float) -> None:
    gains, costs = zip(*points, strict=True)
    losses = np.array([[-gain, cost] for gain, cost in points if gain > base])
    expected = compute_hypervolume(losses, np.array([-base, 1.0])) if len(losses) else 0.0
    assert hypervolume(gains, costs, base, 1.0) == pytest.approx(expected, abs=1e-12)


def test_interpolation_by_hand() -> None:
    gains, costs = [0.8, 0.0, 0.4], [0.4, 0.0, 0.2]
    assert attribute_at(0.1, gains, costs) == pytest.approx(0.2)
    assert attribute_at(0.3, gains, costs) == pytest.approx(0.6)
    assert attribute_at(0.5, gains, costs, beyond=True) == pytest.approx(1.0)  # the last piece rises by 2 per nat
    assert attribute_at(0.5, [0.0, 0.8, 0.6], [0.0, 0.2, 0.4], beyond=True) == pytest.approx(
        0.6
    )  # it does not fall further
    assert attribute_at(0.2, gains, costs) == 0.4


def test_comparison_by_hand() -> None:
    steering = [rates(3, 0.2), rates(5, 0.4)]
    edits = [rates(4, 0.1), rates(6, 0.3)]
    found = compare_tradeoffs(BASE, steering, edits, 1, GOAL, largest_cost=0.5)
    # above the base's .1 it rises in a line to .4 at cost .4 and stays there to .5
    assert found.hypervolume_steering == pytest.approx((0.5 * 0.4 * 0.4 + 0.1 * 0.4) / 0.5, abs=1e-4)
    assert found.hypervolume_edits == pytest.approx(0.3 * 0.8 + 0.2 * 0.4)
    assert found.ratio.value == pytest.approx(0.32 / 0.24, abs=1e-3)
    assert found.at_equal_cost.value == pytest.approx(0.6 - 0.4)  # steering interpolated at 0.3
    assert found.relative.value == pytest.approx(0.2 / 0.4)
    assert found.largest_cost == 0.5
    for one in (found.ratio, found.at_equal_cost, found.relative):
        assert one.low is not None
        assert one.low <= one.value <= (np.inf if one.high is None else one.high)
        assert one.n == 10


def test_less_may_be_better() -> None:
    goal = Goal("tokens", -1, Budget({"kl": 1.0}))

    def shown(tokens: float, kl: float) -> Condition:
        return Condition("", values={"tokens": [tokens] * 5, "kl": [kl] * 5})

    found = compare_tradeoffs(shown(100.0, 0.0), [shown(80.0, 0.4)], [shown(70.0, 0.2)], 0, goal, largest_cost=0.4)
    assert found.at_equal_cost.value == pytest.approx(20)  # steering at 0.2: 90 tokens
    assert found.relative.value == pytest.approx(20 / 90)
    assert found.at_equal_cost.low == found.at_equal_cost.high == pytest.approx(20)  # all items are alike


def test_equal_sets_are_equal() -> None:
    generator = np.random.default_rng(3)
    sets = [
        condition((generator.random(30) < p).tolist(), (kl * generator.random(20)).tolist())
        for p, kl in ((0.3, 0.1), (0.6, 0.3))
    ]
    base = condition((generator.random(30) < 0.1).tolist(), [0.0] * 20)
    found = compare_tradeoffs(base, sets, sets, 1, GOAL, largest_cost=0.5)
    assert found.ratio.value < 1  # steering may take any strength in between, an edit is one of those measured
    assert (found.at_equal_cost.value, found.at_equal_cost.low, found.at_equal_cost.high) == (0.0, 0.0, 0.0)
    assert found.relative.value == 0.0


def test_unscored_items_are_left_out() -> None:
    steering, whole = [rates(5, 0.2)], [rates(6, 0.2)]
    padded = [condition([*whole[0].values["refused"], None, None], [0.2, None, 0.2, 0.2])]
    base = condition([*BASE.values["refused"], None, False], [0.0] * 4)
    also = [condition([*steering[0].values["refused"], None, None], [0.2] * 4)]
    found = compare_tradeoffs(base, also, padded, 0, GOAL, largest_cost=0.4)
    expected = compare_tradeoffs(BASE, steering, whole, 0, GOAL, largest_cost=0.4)
    assert found.at_equal_cost.value == pytest.approx(0.1)
    assert expected.at_equal_cost.value == pytest.approx(0.1)
    # as of the base, 1 of 11 and not of 12
    assert found.hypervolume_steering == pytest.approx((0.5 - 1 / 11) * 0.75, abs=1e-4)  # a line up to half, then flat


def test_steering_without_any_gain_has_no_ratio() -> None:
    found = compare_tradeoffs(BASE, [rates(1, 0.2)], [rates(5, 0.2)], 0, GOAL, largest_cost=0.4)
    assert found.hypervolume_steering == 0
    assert (found.ratio.value, found.ratio.low, found.ratio.high) == (None, None, None)
    assert found.at_equal_cost.value == pytest.approx(0.4)


def test_resamples_where_nothing_gains_say_nothing() -> None:
    """With one gaining item, many resamples have none: 0/0 there is not infinitely good."""
    base, steering = rates(0, 0.0), [condition([True] + [False] * 9, [0.2] * 4)]
    found = compare_tradeoffs(base, steering, steering, 0, GOAL, largest_cost=0.4)
    assert (found.ratio.value, found.ratio.low, found.ratio.high) == pytest.approx((2 / 3, 2 / 3, 2 / 3), abs=1e-4)


def test_seed_decides() -> None:
    steering, edits = [rates(3, 0.2)], [rates(6, 0.2)]
    one, same, other = (
        asdict(compare_tradeoffs(BASE, steering, edits, 0, GOAL, largest_cost=0.4, resamples=50, seed=seed))
        for seed in (0, 0, 1)
    )
    assert one == same
    assert one != other


@pytest.mark.slow
def test_interval_covers_the_truth() -> None:
    """Items drawn anew 150 times: the 95 % interval of the known difference holds it about 95 % of the time."""
    generator = np.random.default_rng(0)
    n, covered = 60, 0
    for _ in range(150):
        draw = generator.random(n)  # the same item under every condition: harder items are harder for all
        base, steering, edit = (
            condition((draw < p).tolist(), [kl] * 3) for p, kl in ((0.1, 0.0), (0.4, 0.4), (0.5, 0.2))
        )
        found = compare_tradeoffs(base, [steering], [edit], 0, GOAL, largest_cost=0.4, resamples=200)
        low, high = found.at_equal_cost.low, found.at_equal_cost.high
        assert low is not None
        assert high is not None
        covered += low <= 0.5 - 0.25 <= high  # steering at 0.2 is halfway between 0.1 and 0.4
    assert 0.88 <= covered / 150 <= 0.99
