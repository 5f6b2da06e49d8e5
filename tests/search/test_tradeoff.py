"""Interpolation, and an edit against the curve of steering: by hand, against coverage."""

from dataclasses import asdict

import numpy as np
import pytest

from steer2edit.estimates import Condition
from steer2edit.search.curves import attribute_at, compare_tradeoffs
from steer2edit.search.goal import Budget, Goal

GOAL = Goal("refused", 1, Budget({"kl": 1.0}))


def condition(refused: list[bool | None], kl: list[float | None]) -> Condition:
    return Condition("", values={"refused": refused, "kl": kl})


def rates(refused: int, kl: float, n: int = 10) -> Condition:
    """`refused` of n items, and the same drift on each of four."""
    return condition([i < refused for i in range(n)], [kl] * 4)


BASE = rates(1, 0.0)


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
    found = compare_tradeoffs(BASE, steering, rates(6, 0.3), GOAL)
    assert found.at_equal_cost.value == pytest.approx(0.6 - 0.4)  # steering interpolated at 0.3
    assert found.relative.value == pytest.approx(0.2 / 0.4)
    for one in (found.at_equal_cost, found.relative):
        assert one.low is not None
        assert one.low <= one.value <= (np.inf if one.high is None else one.high)
        assert one.n == 10


def test_less_may_be_better() -> None:
    goal = Goal("tokens", -1, Budget({"kl": 1.0}))

    def shown(tokens: float, kl: float) -> Condition:
        return Condition("", values={"tokens": [tokens] * 5, "kl": [kl] * 5})

    found = compare_tradeoffs(shown(100.0, 0.0), [shown(80.0, 0.4)], shown(70.0, 0.2), goal)
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
    found = compare_tradeoffs(base, sets, sets[1], GOAL)
    assert (found.at_equal_cost.value, found.at_equal_cost.low, found.at_equal_cost.high) == (0.0, 0.0, 0.0)
    assert found.relative.value == 0.0


def test_unscored_items_are_left_out() -> None:
    steering, whole = [rates(5, 0.2)], rates(6, 0.2)
    padded = condition([*whole.values["refused"], None, None], [0.2, None, 0.2, 0.2])
    base = condition([*BASE.values["refused"], None, False], [0.0] * 4)
    also = [condition([*steering[0].values["refused"], None, None], [0.2] * 4)]
    found = compare_tradeoffs(base, also, padded, GOAL)
    expected = compare_tradeoffs(BASE, steering, whole, GOAL)
    assert found.at_equal_cost.value == pytest.approx(0.1)
    assert expected.at_equal_cost.value == pytest.approx(0.1)


def test_seed_decides() -> None:
    steering, edit = [rates(3, 0.2)], rates(6, 0.2)
    one, same, other = (
        asdict(compare_tradeoffs(BASE, steering, edit, GOAL, resamples=50, seed=seed)) for seed in (0, 0, 1)
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
        found = compare_tradeoffs(base, [steering], edit, GOAL, resamples=200)
        low, high = found.at_equal_cost.low, found.at_equal_cost.high
        assert low is not None
        assert high is not None
        covered += low <= 0.5 - 0.25 <= high  # steering at 0.2 is halfway between 0.1 and 0.4
    assert 0.88 <= covered / 150 <= 0.99
