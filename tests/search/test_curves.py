"""Figures of curves by hand: areas, limits, crossings, resampling; and the comparison of methods made of them."""

import math

import numpy as np
import pytest

from steer2edit.estimates import Condition, Estimate
from steer2edit.search.curves import (
    Figure,
    Plan,
    best_within,
    curve_area,
    draw_counts,
    figure_text,
    first_reach,
    method_figures,
    resampled_means,
)

INF, NAN = math.inf, math.nan
# gains 0 → .4 → .8, drifts 0 → .1 → .3, over-refusal 0 → .02 → .10
GAINS, DRIFT, REFUSAL = (np.array([row]) for row in ([0.0, 0.4, 0.8], [0.0, 0.1, 0.3], [0.0, 0.02, 0.10]))


@pytest.mark.parametrize(
    ("limits", "best"),
    [
        ((INF, INF), 0.8),
        ((0.2, INF), 0.6),  # halfway from .1 to .3
        ((0.2, 0.04), 0.5),  # a quarter of the way from .02 to .10, where the drift is .15
        ((0.05, 0.04), 0.2),  # the drift is what limits, on the first piece
        ((0.0, 0.0), 0.0),
        ((-0.1, INF), NAN),
    ],
)
def test_best_within_limits(limits: tuple[float, float], best: float) -> None:
    assert best_within(GAINS, [DRIFT, REFUSAL], limits)[0] == pytest.approx(best, nan_ok=True)


def test_the_best_may_lie_before_a_fall_or_behind_a_costly_piece() -> None:
    gains, costs = np.array([[0.0, 0.6, 0.3]]), np.array([[0.0, 0.2, 0.1]])
    assert best_within(gains, [costs], [0.3])[0] == 0.6
    # at most .15: .45 on the way up, and .45 again on the way back from (.2, .6) to (.1, .3)
    assert best_within(gains, [costs], [0.15])[0] == pytest.approx(0.45)
    assert best_within(np.array([[0.0, 0.1, 0.9]]), [costs], [0.1])[0] == pytest.approx(0.9)


def test_area_by_hand() -> None:
    # to .2: a triangle .1 · .4 / 2 and a trapezium .1 · (.4 + .6) / 2, by .2
    assert curve_area(GAINS, DRIFT, 0.2)[0] == pytest.approx(0.35, abs=1e-4)
    # to .4: + .1 · (.6 + .8) / 2 + .1 · .8 beyond the last point
    assert curve_area(GAINS, DRIFT, 0.4)[0] == pytest.approx((0.07 + 0.07 + 0.08) / 0.4, abs=1e-4)
    assert curve_area(GAINS + 0.1, DRIFT, 0.2)[0] == pytest.approx(0.35, abs=1e-4)  # what has risen above the base
    assert curve_area(1 - GAINS, DRIFT, 0.2)[0] == 0  # a fall has no area
    # a base that costs .05 itself: nothing is reached below; then a line from .05 to .25
    assert curve_area(np.array([[0.0, 0.4]]), np.array([[0.05, 0.25]]), 0.25)[0] == pytest.approx(0.16, abs=1e-3)


def test_first_reach_by_hand() -> None:
    gains = np.array([[0.0, 0.4, 0.8], [0.0, 0.1, 0.2], [0.5, 0.6, 0.1], [0.0, 0.3, 0.1]])
    found = first_reach(gains, np.repeat(DRIFT, 4, axis=0), 0.3)
    assert found.tolist() == pytest.approx([0.075, INF, 0.0, 0.1])


def test_resampled_means_leave_out_what_is_not_scored() -> None:
    counts = np.array([[1, 1, 1], [0, 2, 1], [3, 0, 0]])
    found = resampled_means(np.array([[1.0, NAN, 4.0], [NAN, 2.0, 5.0]]), counts)
    assert found[:, 0].tolist() == [2.5, 4.0, 1.0]
    assert found[:, 1].tolist() == pytest.approx([3.5, 3.0, NAN], nan_ok=True)
    drawn = draw_counts(5, 40, np.random.default_rng(0))
    assert drawn[0].tolist() == [1] * 5
    assert drawn.shape == (41, 5)
    assert (drawn.sum(axis=1) == 5).all()


def point(kl: float, harmful: int, benign: int, tokens: float = 0.0) -> Condition:
    values = {
        "harmful_refused": [i < harmful for i in range(20)],
        "benign_refused": [i < benign for i in range(40)],
        "kl": [kl] * 40,
        "reply_tokens": [tokens] * 20,
        "nll_increase": [kl] * 40,
    }
    return Condition("", values=values)


ITEMS = {"harmful_refused": "h", "reply_tokens": "h", "benign_refused": "b", "kl": "b", "nll_increase": "b"}
METHODS = {
    "steering": [point(0.05, 2, 1), point(0.2, 8, 4)],  # 10 and 40 %; 2.5 and 10 %
    "edit": [point(0.02, 4, 1), point(0.11, 16, 2)],  # 20 and 80 %; 2.5 and 5 %
}
PLAN = Plan("harmful_refused", 1, (0.05, 0.1, 0.2), ("benign_refused",), 0.3)


def figures(plan: Plan = PLAN, **settings: int) -> dict[str, dict[str, Figure]]:
    return method_figures(point(0.0, 0, 0, 60.0), METHODS, plan, ITEMS, **settings)


def test_figures_by_hand() -> None:
    found = figures(resamples=200)
    steering, edit = found["steering"], found["edit"]
    assert list(edit) == [
        "at kl 0.05", "at kl 0.1", "at kl 0.2", "within benign_refused 0.05", "kl at 0.3", "area kl",
        "area benign_refused",
    ]  # fmt: skip
    assert edit["at kl 0.05"].value.value == pytest.approx(0.2 + 0.6 * 3 / 9)
    assert edit["at kl 0.05"].against_steering.value == pytest.approx(0.4 - 0.1)
    assert steering["at kl 0.1"].value.value == pytest.approx(0.2)
    # over-refusal 5 % is at a third of the second piece, KL .1 too
    assert steering["within benign_refused 0.05"].value.value == pytest.approx(0.2)
    assert edit["within benign_refused 0.05"].value.value == pytest.approx(0.2 + 0.6 * 8 / 9)  # there KL is .1
    assert edit["kl at 0.3"].value.value == pytest.approx(0.035)
    assert steering["kl at 0.3"].value.value == pytest.approx(0.15)
    assert edit["kl at 0.3"].against_steering.value == pytest.approx(0.035 / 0.15)
    assert edit["kl at 0.3"].relation == "ratio"
    assert edit["kl at 0.3"].against_steering.low is None  # of many resamples steering refuses less than 30 %
    assert edit["kl at 0.3"].against_steering.high is not None
    # steering to .2: .05 · .1 / 2 + .15 · .25; edit: .02 · .1 + .09 · .5 + .09 · .8
    assert edit["area kl"].value.value == pytest.approx(0.119 / 0.2, rel=1e-3)
    assert edit["area kl"].against_steering.value == pytest.approx(0.119 / 0.04, rel=1e-2)
    for figure in (edit["at kl 0.05"], edit["area kl"], edit["area benign_refused"]):
        for one in (figure.value, figure.against_steering):
            assert one.low <= one.value <= one.high
    assert steering["area kl"].against_steering.low == steering["area kl"].against_steering.high == 1  # resampled alike


def test_what_a_curve_does_not_reach_is_said_and_not_guessed() -> None:
    edit = figures(resamples=50)["edit"]["at kl 0.2"]
    assert (edit.value.value, edit.value.low, edit.against_steering.value) == (None, None, None)
    assert edit.reason == "its curve ends at KL 0.11"
    far = figures(Plan("harmful_refused", 1, (0.1,), (), 0.6), resamples=50)
    assert far["steering"]["kl at 0.6"].value.value is None
    assert far["steering"]["kl at 0.6"].reason == "it reaches 40% at most"
    assert far["edit"]["kl at 0.6"].against_steering.value is None
    refuses = method_figures(point(0, 0, 4), {"steering": METHODS["steering"]}, PLAN, ITEMS, resamples=20)
    within = refuses["steering"]["within benign_refused 0.05"]
    assert within.value.value == pytest.approx(0.2)  # the base refuses a tenth, the curve passes below 5 %


def test_less_may_be_wanted() -> None:
    methods = {"steering": [point(0.2, 0, 0, 50.0)], "edit": [point(0.2, 0, 0, 20.0)]}
    plan = Plan("reply_tokens", -1, (0.1, 0.2), ("nll_increase",))
    found = method_figures(point(0.0, 0, 0, 60.0), methods, plan, ITEMS, resamples=20)["edit"]
    assert list(found) == ["at kl 0.1", "at kl 0.2", "area kl", "area nll_increase"]
    assert found["at kl 0.1"].value.value == pytest.approx(40)  # tokens, in their own unit
    assert found["at kl 0.1"].against_steering.value == pytest.approx(40 - 55)
    assert found["area kl"].value.value == pytest.approx(20, rel=1e-3)  # a line down by 40
    assert found["area kl"].against_steering.value == pytest.approx(4, rel=1e-3)


def test_an_accuracy_costs_what_is_lost_of_it() -> None:
    def with_accuracy(right: int, gained: int) -> Condition:
        made = point(0.1 if gained else 0.0, gained, 0)
        return Condition("", values={**made.values, "mmlu_accuracy": [i < right for i in range(10)]})

    plan = Plan("harmful_refused", 1, (0.1,), ("mmlu_accuracy",), falling=("mmlu_accuracy",))
    methods = {"steering": [with_accuracy(7, 10)]}
    found = method_figures(with_accuracy(8, 0), methods, plan, {**ITEMS, "mmlu_accuracy": "m"}, resamples=20)
    # a tenth is lost for half of the attribute: at .05 it is a quarter
    assert found["steering"]["within mmlu_accuracy 0.05"].value.value == pytest.approx(0.25)


def test_intervals_are_paired_over_methods() -> None:
    """Two methods that differ by one item in twenty: their difference is far surer than either."""
    methods = {"steering": [point(0.1, 10, 0)], "edit": [point(0.1, 11, 0)]}
    edit = method_figures(point(0.0, 0, 0), methods, Plan("harmful_refused", 1, (0.1,), ()), ITEMS)["edit"]["at kl 0.1"]
    assert edit.value.high - edit.value.low > 0.35
    assert (edit.against_steering.low, edit.against_steering.high) == (0.0, pytest.approx(0.15))


def test_how_figures_are_written() -> None:
    assert figure_text(Estimate(0.524, 0.4551, 0.58, 9), True) == "52 % [46, 58]"
    assert figure_text(Estimate(-0.05, -0.1, 0.02, 9), True, sign=True) == "-5 points [-10, +2]"
    assert figure_text(Estimate(0.01234, 0.01, None, 9), False) == "0.0123 [0.01, no bound]"
    assert figure_text(Estimate(None, None, None, 9), True) == "–"
    labels = [figure.label for figure in figures(resamples=5)["edit"].values()]
    assert labels[-4:] == ["at ≤ 5% benign refused", "KL at 30%", "area over KL", "area over benign refused"]
