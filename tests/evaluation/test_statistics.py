"""Intervals by hand; what could not be scored is counted apart and never as zero."""

import math

import pytest
from hypothesis import given, strategies as st

from steer2edit.estimates import Estimate
from steer2edit.evaluation.statistics import mean, paired, rate

Z = 1.959964


def wilson(successes: int, n: int) -> tuple[float, float]:
    p = successes / n
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return centre - half, centre + half


class TestRate:
    @pytest.mark.parametrize(
        ("successes", "low", "high"),
        [
            (0, 0.0, 0.2775),  # z² / (n + z²) = 3.8415 / 13.8415
            (5, 0.2366, 0.7634),
            (10, 0.7225, 1.0),
        ],
    )
    def test_of_ten(self, successes: int, low: float, high: float) -> None:
        found = rate([True] * successes + [False] * (10 - successes))
        assert (found.value, found.n, found.unscored) == (successes / 10, 10, 0)
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)

    @given(st.integers(0, 30), st.integers(1, 30))
    def test_wilson(self, successes: int, failures: int) -> None:
        found = rate([True] * successes + [False] * failures)
        low, high = wilson(successes, successes + failures)
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)

    def test_unscored_is_not_zero(self) -> None:
        found = rate([True, None, False, None, None, True])
        assert (found.value, found.n, found.unscored) == (2 / 3, 3, 3)
        assert (found.low, found.high) == pytest.approx(wilson(2, 3), abs=1e-6)

    @pytest.mark.parametrize("count", [0, 4])
    def test_nothing_scored(self, count: int) -> None:
        assert rate([None] * count) == Estimate(None, None, None, 0, count)


class TestMean:
    def test_student(self) -> None:
        # 1, 2, 3, 4: mean 2.5, s² = 5/3, t(3) = 3.182446; half width 3.182446 · √(5/3) / 2 = 2.054260
        found = mean([1.0, 2.0, 3.0, 4.0])
        assert (found.value, found.n, found.unscored) == (2.5, 4, 0)
        assert (found.low, found.high) == pytest.approx((2.5 - 2.05426, 2.5 + 2.05426), abs=1e-5)

    def test_of_two(self) -> None:
        # 0 and 1: t(1) = tan(0.475 π) = 12.706205, standard error ½
        found = mean([0.0, 1.0])
        assert (found.low, found.high) == pytest.approx((0.5 - 6.353102, 0.5 + 6.353102), abs=1e-5)

    def test_unscored_is_not_zero(self) -> None:
        found = mean([1.0, None, 2.0, 3.0, None, 4.0])
        assert found == Estimate(*(getattr(mean([1.0, 2.0, 3.0, 4.0]), k) for k in ("value", "low", "high", "n")), 2)

    def test_one_value_has_no_interval(self) -> None:
        assert mean([3.0, None]) == Estimate(3.0, None, None, 1, 1)

    def test_equal_values(self) -> None:
        assert mean([2.0, 2.0, 2.0]) == Estimate(2.0, 2.0, 2.0, 3, 0)

    @pytest.mark.parametrize("count", [0, 3])
    def test_nothing_scored(self, count: int) -> None:
        assert mean([None] * count) == Estimate(None, None, None, 0, count)

    @pytest.mark.parametrize("broken", [math.nan, math.inf])
    def test_what_is_not_a_number_is_unscored(self, broken: float) -> None:
        assert mean([1.0, broken, 3.0]) == mean([1.0, None, 3.0])


class TestPairedDifference:
    def test_over_items_scored_in_both(self) -> None:
        # differences 1, 2, 3 of the three complete pairs
        found = paired([2.0, 4.0, 6.0, None, 9.0], [1.0, 2.0, 3.0, 4.0, None])
        assert found == Estimate(*(getattr(mean([1.0, 2.0, 3.0]), k) for k in ("value", "low", "high", "n")), 2)

    def test_lengths_must_agree(self) -> None:
        with pytest.raises(ValueError, match="zip"):
            paired([1.0], [1.0, 2.0])


def test_json() -> None:
    assert rate([None]).to_json() == {"value": None, "low": None, "high": None, "n": 0, "unscored": 1}
    assert mean([1.0]).to_json() == {"value": 1.0, "low": None, "high": None, "n": 1, "unscored": 0}
