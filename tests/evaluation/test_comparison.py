"""Paired differences to the base."""

import pytest
from scipy import stats

from steer2edit.estimates import Condition
from steer2edit.evaluation import compare
from steer2edit.evaluation.statistics import mean, paired, paired_rate_difference, rate


def condition(label: str, values: dict[str, list[bool | float | None]]) -> Condition:
    return Condition(label, values=values)


def test_by_hand() -> None:
    # 10 items: 4 gained, 1 lost. g = 4.5, l = 1.5, m = 12, d = 3/12, √(6 − 9/12)/12 = 0.190940654, z = 1.959963985
    before = [True, *[False] * 4, *[True] * 3, *[False] * 2]
    after = [False, *[True] * 4, *[True] * 3, *[False] * 2]
    found = paired_rate_difference(after, before)
    assert (found.value, found.n, found.unscored) == (0.3, 10, 0)
    assert found.low == pytest.approx(0.25 - 1.959963985 * 0.190940654, abs=1e-8)
    assert found.high == pytest.approx(0.25 + 1.959963985 * 0.190940654, abs=1e-8)


def test_no_change_is_not_certainty() -> None:
    found = paired_rate_difference([True, False] * 5, [True, False] * 5)
    assert found.value == 0
    assert found.low is not None
    assert found.high is not None
    assert found.low == pytest.approx(-found.high)
    assert found.high == pytest.approx(1.959963985 / 12)  # g = l = ½: √1 / 12


def test_unscored_in_either_is_left_out() -> None:
    found = paired_rate_difference([True, None, True, False], [False, True, None, False])
    assert (found.value, found.n, found.unscored) == (0.5, 2, 2)
    nothing = paired_rate_difference([None], [True])
    assert (nothing.value, nothing.low, nothing.n, nothing.unscored) == (None, None, 0, 1)


def test_bounds() -> None:
    found = paired_rate_difference([True] * 3, [False] * 3)
    assert found.value == 1
    assert found.high == 1.0


def test_coverage() -> None:
    """Of intervals around a known difference, at least about 95 % hold it; Wald's own hold far fewer at this size."""
    cells, n = (0.10, 0.02, 0.44, 0.44), 30  # gained, lost, both, neither
    covered = 0.0
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            weight = stats.multinomial.pmf((gained, lost, n - gained - lost), n, (cells[0], cells[1], 0.88))
            after = [True] * gained + [False] * lost + [True] * (n - gained - lost)
            before = [False] * gained + [True] * lost + [True] * (n - gained - lost)
            if weight > 1e-6:
                found = paired_rate_difference(after, before)
                assert found.low is not None
                assert found.high is not None
                covered += weight * (found.low <= cells[0] - cells[1] <= found.high)
    assert covered > 0.94


def test_compare() -> None:
    base = condition("base", {"r": [True, False, None], "m": [1.0, 2.0, 4.0], "kl": [0.0, 0.0, 0.0]})
    edit = condition("mine", {"r": [True, True, True], "m": [2.0, 2.0, None], "kl": [0.1, 0.2, 0.3]})
    (found,) = compare([base, edit])
    assert (found["label"], found["to"]) == ("mine", "base")
    assert found["differences"] == {
        "r": paired_rate_difference([True, True, True], [True, False, None]).to_json(),
        "m": paired([2.0, 2.0, None], [1.0, 2.0, 4.0]).to_json(),
    }
    assert found["differences"]["m"] == mean([1.0, 0.0, None]).to_json()
    assert compare([base]) == []


def test_pairs_are_tighter_than_two_rates_apart() -> None:
    before = [True, False] * 20
    after = [True, False] * 19 + [True, True]
    found, apart = paired_rate_difference(after, before), rate(after)
    assert found.low is not None
    assert found.high is not None
    assert apart.low is not None
    assert apart.high is not None
    assert found.high - found.low < (apart.high - apart.low) / 2
