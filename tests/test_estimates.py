"""How an estimate is written, everywhere: terminal, page, card and sentence."""

import pytest

from steer2edit.errors import DataError
from steer2edit.estimates import CHANGE, NUMBER, PERCENT, POINTS, Condition, Estimate, Notation, column
from steer2edit.evaluation import attribute_of, metric_name

RATE = Estimate(0.5833, 0.443, 0.7121, 45, 3)
NOTHING = Estimate(None, None, None, 0, 12)


def test_in_a_line() -> None:
    assert PERCENT.text(RATE) == "58 % [44, 71] (3 not scored)"
    assert PERCENT.text(RATE, n=True) == "58 % [44, 71] (n = 45, 3 not scored)"
    assert POINTS.text(Estimate(-0.05, -0.1, 0.02, 9)) == "-5 points [-10, +2]"
    assert CHANGE.text(Estimate(0.01234, -0.001, 0.0262, 9)) == "+0.0123 [-0.001, +0.0262]"
    assert Notation(unit=" nats", signed=True).text(Estimate(0.5, 0.25, 1.0, 9)) == "+0.5 nats [+0.25, +1]"


def test_an_end_that_is_not_known_and_no_interval() -> None:
    assert NUMBER.text(Estimate(0.01234, 0.01, None, 9)) == "0.0123 [0.01, no bound]"
    assert PERCENT.text(Estimate(0.5, None, None, 1), n=True) == "50 % [no interval] (n = 1)"


def test_a_rounded_loss_has_no_sign_of_zero() -> None:
    assert POINTS.text(Estimate(-0.001, -0.004, 0.001, 9)) == "+0 points [+0, +0]"
    assert NUMBER.value(-0.0) == "0"


def test_columns_of_a_terminal() -> None:
    found = Estimate(0.5, 0.25, 0.75, 4)
    assert [column(share).text(found) for share in (True, False)] == ["50 % [25, 75]", "0.500 [0.250, 0.750]"]
    assert [column(share, change=True).text(found) for share in (True, False)] == [
        "+50 points [+25, +75]",
        "+0.500 [+0.250, +0.750]",
    ]


def test_shares_on_a_page() -> None:
    metric = metric_name("harmful_refused")
    assert metric.in_cells.value(RATE) == "58.3\u00a0%"
    assert metric.in_cells.interval(RATE) == "44.3 to 71.2\u00a0%"
    assert metric.in_words.sentence(RATE) == "58.3\u00a0% (44.3 to 71.2\u00a0%, n\u00a0=\u00a045, 3 not scored)"


def test_nats_and_tokens_on_a_page_carry_sign_and_unit() -> None:
    increase = metric_name("nll_increase")
    assert increase.in_words.sentence(Estimate(-0.0204, -0.1, 0.06, 9)) == (
        "−0.020 nats per token (−0.100 to +0.060, n\u00a0=\u00a09)"
    )
    assert increase.bound(0.2) == "0.200 nats per token"
    assert increase.axis == "NLL increase (nats per token)"
    assert metric_name("kl").in_cells.value(Estimate(0.0931, 0.0, 0.2, 9)) == "0.093"
    assert metric_name("reply_tokens").in_words.sentence(Estimate(41.25, 40.0, 42.5, 9)) == (
        "41.2 tokens (40.0 to 42.5, n\u00a0=\u00a09)"
    )
    assert metric_name("reply_tokens").change.text(Estimate(-1.5, -2, 1, 9)) == "−1.5 tokens [−2.0, +1.0]"


@pytest.mark.parametrize("name", ["harmful_refused", "nll_increase", "kl", "reply_tokens", "my_metric"])
def test_not_scored_is_said_and_is_never_zero(name: str) -> None:
    metric = metric_name(name)
    assert metric.in_cells.value(NOTHING) == NUMBER.text(NOTHING, n=True) == "not scored"
    assert metric.in_words.sentence(NOTHING) == "not scored (n\u00a0=\u00a00, 12 not scored)"
    assert metric.in_cells.interval(Estimate(0.5, None, None, 1)) == "no interval"


def test_an_unknown_metric_is_called_by_its_name() -> None:
    metric = metric_name("my_metric")
    assert (metric.short, metric.unit, metric.axis) == ("my metric", "", "my metric")


def test_a_condition_reads_what_it_wrote() -> None:
    whole = Condition(
        "e", {"kl": RATE}, "steering", {"strength": 0.2}, {"a": ["x"]}, {"a": [None]}, {"kl": [0.5, None]}
    )
    assert Condition.from_json(whole.to_json()) == whole
    assert Condition("e", values={"kl": [float("nan"), True]}).to_json()["values"] == {"kl": [None, True]}
    assert whole.for_card() == {"label": "e", "metrics": {"kl": RATE.to_json()}}
    assert (whole.value("kl"), whole.value("other"), whole.scored("kl"), whole.scored("kl", "other")) == (
        RATE.value, None, True, False,
    )  # fmt: skip


def test_the_attribute_follows_the_behaviour_and_another_behaviour_is_an_error() -> None:
    assert attribute_of("safety") == ("harmful_refused", 1)
    assert attribute_of("conciseness") == ("reply_tokens", -1)
    with pytest.raises(DataError, match="no behaviour 'something of my own'"):
        attribute_of("something of my own")
