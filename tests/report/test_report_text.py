import html

import pytest

from steer2edit.evaluation.statistics import Estimate
from steer2edit.report.metrics import Metric, attribute
from steer2edit.report.text import plot_text, visible, visible_json


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "⟨U+001B⟩[31mred⟨U+001B⟩[0m"),
        ("a\x00b\x7fc\x9bd", "a⟨U+0000⟩b⟨U+007F⟩c⟨U+009B⟩d"),
        ("\u202egnp.exe", "⟨U+202E⟩gnp.exe"),
        ("\ud800", "⟨U+D800⟩"),
        ("one\r\ntwo\n\tthree", "one\ntwo\n\tthree"),
        ("a\rb", "a⟨U+000D⟩b"),
        ("👩\u200d🔬 می\u200cخواهم", "👩\u200d🔬 می\u200cخواهم"),
    ],
)
def test_control_characters_become_visible_and_text_stays(raw: str, shown: str) -> None:
    assert visible(raw) == shown
    shown.encode("utf-8")


def test_every_string_of_a_json_value_is_made_visible() -> None:
    value = {"a\x1b": ["\x07", {"b": "\x00"}, 1, None, 0.5, True]}
    assert visible_json(value) == {"a⟨U+001B⟩": ["⟨U+0007⟩", {"b": "⟨U+0000⟩"}, 1, None, 0.5, True]}


def test_plot_text_leaves_no_markup_for_plotly() -> None:
    hostile = "<a href='javascript:alert(1)'>x</a> &lt;b&gt; \x1b"
    shown = plot_text(hostile)
    assert not set("<>'\"") & set(shown)
    assert html.unescape(shown) == visible(hostile)


def test_shares_are_written_in_percent_with_interval_and_n() -> None:
    metric = Metric.named("harmful_refused")
    estimate = Estimate(0.5833, 0.443, 0.7121, 45, 3)
    assert metric.value(estimate) == "58.3\u00a0%"
    assert metric.interval(estimate) == "44.3 to 71.2\u00a0%"
    assert metric.sentence(estimate) == "58.3\u00a0% (44.3 to 71.2\u00a0%, n\u00a0=\u00a045, 3 not scored)"


def test_nats_and_tokens_carry_sign_and_unit() -> None:
    increase = Metric.named("nll_increase")
    assert increase.sentence(Estimate(-0.0204, -0.1, 0.06, 9)) == (
        "−0.020 nats per token (−0.100 to +0.060, n\u00a0=\u00a09)"
    )
    assert increase.bound(0.2) == "0.200 nats per token"
    assert increase.axis == "NLL increase (nats per token)"
    assert Metric.named("kl").value(Estimate(0.0931, 0.0, 0.2, 9)) == "0.093"
    assert Metric.named("reply_tokens").sentence(Estimate(41.25, 40.0, 42.5, 9)) == (
        "41.2 tokens (40.0 to 42.5, n\u00a0=\u00a09)"
    )


@pytest.mark.parametrize("name", ["harmful_refused", "nll_increase", "kl", "reply_tokens", "my_metric"])
def test_not_scored_is_said_and_is_never_zero(name: str) -> None:
    metric = Metric.named(name)
    nothing = Estimate(None, None, None, 0, 12)
    assert metric.value(nothing) == "not scored"
    assert metric.sentence(nothing) == "not scored (n\u00a0=\u00a00, 12 not scored)"
    assert metric.interval(Estimate(0.5, None, None, 1)) == "no interval"


def test_an_unknown_metric_is_called_by_its_name() -> None:
    metric = Metric.named("my_metric")
    assert (metric.short, metric.unit, metric.axis) == ("my metric", "", "my metric")


def test_the_attribute_follows_the_behaviour() -> None:
    assert attribute("safety") == ("harmful_refused", True)
    assert attribute("conciseness") == ("reply_tokens", False)
    assert attribute("something of my own") == ("harmful_refused", True)
