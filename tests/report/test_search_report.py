"""What the page says and draws of a search."""

import re
from typing import Any

import pytest
from search_results import search_results
from test_report_page import HOSTILE, Page, structure, with_strings

from steer2edit.core import WeightEdit
from steer2edit.errors import DataError
from steer2edit.report import render_report
from steer2edit.report.html import figure_json
from steer2edit.report.run_page import trial_rows
from steer2edit.report.run_results import read_results
from steer2edit.report.tradeoff import Plane, held_out_figure, tradeoff_figures, validation_figure

Json = dict[str, Any]


def traces(figure: Any) -> dict[str, Json]:
    return {trace["name"]: trace for trace in figure_json(figure)["data"]}


def test_every_trial_is_drawn_solid_or_faint_with_what_it_was_measured_on() -> None:
    run = read_results(search_results())
    drawn = traces(validation_figure(run, Plane("kl", run.attribute, run.direction)))
    assert drawn["edit, within the budget"]["x"] == [0.0625, 0.125, 0.1875]
    assert drawn["edit, beyond the budget"]["x"] == [0.5]
    faint = drawn["edit, stopped early"]
    assert len(faint["x"]) == 3
    assert faint["marker"]["opacity"] < 0.5
    assert "opacity" not in drawn["edit, within the budget"]["marker"]
    assert "measured on 25% of the items" in faint["hovertext"][0]
    assert "stopped = less promising than half of it" in faint["hovertext"][0]
    assert "rho_mlp = off" in faint["hovertext"][0]
    assert "alpha_mlp" not in faint["hovertext"][0]


def test_the_front_is_a_staircase_in_the_plane_it_was_made_in_and_rings_elsewhere() -> None:
    results = search_results()
    for entry in results["validation"]["conditions"]:
        entry["metrics"]["nll_increase"] = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    run = read_results(results)
    front = traces(validation_figure(run, Plane("kl", run.attribute, run.direction)))["front"]
    assert (front["x"], front["y"]) == ([0.0625, 0.125], [0.25, 0.5])
    assert (front["mode"], front["line"]["shape"]) == ("lines", "hv")
    elsewhere = traces(validation_figure(run, Plane("nll_increase", run.attribute, run.direction)))
    assert "front" not in elsewhere
    assert elsewhere["front by KL"]["y"] == [0.25, 0.5]


def test_steering_recommendation_and_budget_are_marked() -> None:
    run = read_results(search_results())
    figure = validation_figure(run, Plane("kl", run.attribute, run.direction))
    drawn = traces(figure)
    assert drawn["steering, by strength"]["y"] == [0.0, 0.125, 0.25, 0.5]
    assert (drawn["recommended"]["x"], drawn["recommended"]["y"]) == ([0.125], [0.5])
    (line,) = figure_json(figure)["layout"]["shapes"]
    assert line["x0"] == line["x1"] == 0.25


def test_held_out_points_have_intervals() -> None:
    run = read_results(search_results())
    drawn = traces(held_out_figure(run, Plane("kl", run.attribute, run.direction)))
    assert drawn["steering, by strength"]["x"] == [0.0, 0.0625, 0.125, 0.375]
    assert drawn["front of edits"]["x"] == [0.0625, 0.1875]
    assert drawn["recommended"]["x"] == [0.1875]
    for axis in ("error_x", "error_y"):
        assert drawn["front of edits"][axis]["array"] == [0.125, 0.125]
        assert drawn["front of edits"][axis]["arrayminus"] == [0.0625, 0.0625]


def test_the_filters_own_metric_has_no_axis_no_card_and_no_column(edit: WeightEdit) -> None:
    page = Page(render_report(search_results(), edit))
    assert "sanity" not in page.text
    assert not any("sanity" in name for name in page.embedded("figures"))


def test_what_the_filter_stopped_is_counted_and_not_called_unscored(edit: WeightEdit) -> None:
    assert [list(own) for own in tradeoff_figures(read_results(search_results())).values()] == [
        ["tradeoff-kl", "held-out-kl"],
        ["held-out-benign_refused"],
    ]
    text = Page(render_report(search_results(), edit)).text
    # 9 tried; 4 complete and 3 stopped are drawn
    assert "Not drawn: 2 trials that were thrown out before they were measured." in text
    assert "a metric was not scored" not in text


def test_the_comparison_is_told_in_sentences(edit: WeightEdit) -> None:
    text = Page(render_report(search_results(), edit)).text
    assert (
        "Is it ahead of steering? yes +12.5 points Harmful requests refused, against steering at the edit's own drift; "
        "positive is better (more of it), +50.0 % (+43.8 to +62.5 %) of steering's own value there. 95 % interval of "
        "the paired difference: +6.2 to +25.0 points, n = 20."
    ) in text


@pytest.mark.parametrize(
    ("low", "high", "verdict", "words"),
    [
        (-0.1, 0.2, "open", "no detectable difference"),
        (-0.3, -0.1, "bad", "no, steering is"),
        (0.1, None, "good", "yes"),
        (None, None, "open", "not to be told"),
    ],
)
def test_a_comparison_is_never_said_to_be_clearer_than_it_is(
    edit: WeightEdit, low: float | None, high: float | None, verdict: str, words: str
) -> None:
    results = search_results()
    results["comparison"]["at_equal_cost"] |= {"low": low, "high": high}
    page = render_report(results, edit)
    (said,) = re.findall(
        r'<div class="answer (\w+)">\s*<h3>Is it ahead of steering\?</h3>\s*<p class="words">(.*?)<', page
    )
    assert said == (verdict, words)


def test_what_could_not_be_compared_is_said_to_be_so(edit: WeightEdit) -> None:
    results = search_results()
    nothing = {"value": None, "low": None, "high": None, "n": 20}
    results["comparison"] |= {"at_equal_cost": nothing, "relative": nothing}
    text = Page(render_report(results, edit)).text
    assert "Is it ahead of steering? not to be told not scored" in text


def test_trials_are_counted_by_how_they_ended() -> None:
    assert trial_rows(read_results(search_results())) == [
        ("measured on all validation items", "4"),
        ("less promising than half of it", "3"),
        ("degenerate", "1"),
        ("edits next to nothing", "1"),
        ("tried in all", "9"),
    ]


def test_tables_hold_front_and_steering_and_not_hundreds_of_trials(edit: WeightEdit) -> None:
    few, many = (Page(render_report(search_results(stopped=n), edit)) for n in (3, 400))
    assert len(many.tags) == len(few.tags)
    assert len(many.embedded("figures")["tradeoff-kl"]["data"][0]["x"]) == 400
    size = sum(len(content) for attrs, content in many.scripts if attrs.get("id") == "figures")
    assert size < 400_000
    for label in ("steering 0.3", "trial a", "trial b", "edit a", "edit b"):
        assert label in many.text
    assert "trial c" not in many.text


def test_the_recommended_edit_stands_first(edit: WeightEdit) -> None:
    text = Page(render_report(search_results(), edit)).text
    # held-out: b, which is not the first edit there
    assert "Harmful requests refused: 0.0 % before, 37.5 % after the edit." in text
    assert "What did it cost? within its limits KL 0.188 nats per token" in text
    assert "ρ_attn = 0.4, ρ_mlp = off, α = 0.25" in text


def test_replies_are_those_of_base_nearest_steering_and_recommended_edit(edit: WeightEdit) -> None:
    page = Page(render_report(search_results(), edit))
    # b drifts 0.1875 on held-out items: 0.2 (0.125) is nearer than 0.3 (0.375)
    for shown in ("one", "II", "uno"):
        assert shown in page.shown
    for hidden in ("first weak", "ii"):
        assert hidden not in page.shown
    assert [attrs["data-tags"] for _, attrs in page.tags if "data-tags" in attrs] == ["changed", ""]


@pytest.mark.parametrize(
    ("name", "behaviour", "step", "arrow", "said"),
    [
        ("truth_preferred", "truthfulness", 0.125, "↑ more is better", "positive is better (more of it)"),
        ("reply_tokens", "conciseness", 8.0, "↓ less is better", "positive is better (less of it)"),
    ],
)
def test_each_behaviour_shows_its_own_direction(
    edit: WeightEdit, name: str, behaviour: str, step: float, arrow: str, said: str
) -> None:
    results = search_results(name, behaviour, step=step)
    page = Page(render_report(results, edit))
    layout = page.embedded("figures")["tradeoff-kl"]["layout"]
    assert layout["yaxis"]["title"]["text"].endswith(arrow)
    assert said in page.text
    assert f"{'Down' if '↓' in arrow else 'Up'} and to the left is better" in page.text


def test_a_limit_from_below_counts_too() -> None:
    results = search_results()
    results["chosen"]["floors"] = {"harmful_refused": 0.4}
    run = read_results(results)
    drawn = traces(validation_figure(run, Plane("kl", run.attribute, run.direction)))
    assert drawn["edit, within the budget"]["x"] == [0.125]  # b alone; a and c refuse less, d drifts more


def test_data_sets_of_a_recipe_are_a_table(edit: WeightEdit) -> None:
    results = search_results()
    base = {
        "kind": "base",
        "label": "base",
        "metrics": {"gsm8k_accuracy": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 50}},
    }
    results["data_sets"] = {"conditions": [base], "tasks": ["gsm8k"]}
    text = Page(render_report(results, edit)).text
    assert "Gsm8k accuracy" in text
    assert "50.0 % 40.0 to 60.0 % n = 50" in text


def test_hostile_text_of_a_search_adds_no_tag(edit: WeightEdit) -> None:
    def page(text: str) -> Page:
        results = with_strings(search_results(), text) | {"behaviour": "safety", "front": ["a", "b"]}
        for condition, key in zip(results["validation"]["conditions"][4:6], "ab", strict=True):
            condition["parameters"]["trial"] = key
        results["trials"] = {"tried": 5, text: 5}
        return Page(render_report(results, edit))

    hostile = page(HOSTILE)
    assert structure(hostile) == structure(page("x"))
    assert "trial" in hostile.embedded("figures")["tradeoff-kl"]["data"][0]["hovertext"][0]


def test_a_malformed_comparison_is_named() -> None:
    results = search_results()
    del results["comparison"]["relative"]
    with pytest.raises(DataError, match=r"comparison\.relative: Field required"):
        read_results(results)


def test_a_broken_budget_is_the_pages_first_line(edit: WeightEdit) -> None:
    said = "BEYOND ITS BUDGET on held-out items: benign_refused 0.125 [0.073, 0.206], budget <= 0.08."
    page = render_report({**search_results(), "beyond_budget": said}, edit)
    assert page.index("budget &lt;= 0.08.") < page.index("<h1>")
    assert "BEYOND" not in render_report(search_results(), edit)
