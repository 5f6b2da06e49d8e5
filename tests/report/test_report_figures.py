import re
from collections.abc import Callable
from typing import Any

import pytest

from steer2edit.core import Block, Component, Site, WeightEdit
from steer2edit.report import render_report
from steer2edit.report.figures import diagnosis_figure, edit_figures, head_figure, neuron_figure
from steer2edit.report.html import figure_json
from steer2edit.report.run_page import largest_components
from steer2edit.report.run_results import RunResults, read_results
from steer2edit.report.tradeoff import Plane, held_out_figure, tradeoff_figures, validation_figure

Json = dict[str, Any]


def traces(figure: Any) -> dict[str, Json]:
    return {trace["name"]: trace for trace in figure_json(figure)["data"]}


def plane(run: RunResults, damage: str = "kl") -> Plane:
    return Plane(damage, run.attribute, run.direction)


def largest(edit: WeightEdit, block: Block) -> list[list[str]]:
    return largest_components(edit, block)


def test_the_heat_map_holds_lambda_by_head_and_layer(edit: WeightEdit) -> None:
    content = figure_json(head_figure(edit, layers=4))
    (heat,) = content["data"]
    # rows are heads, columns layers; layers 1 and 3 have no attention site
    assert heat["z"] == [[0.5, None, 0.0, None], [-0.25, None, 1.5, None]]
    assert heat["text"][1][2] == f"<b>{Component(Site(2, 'attn'), 1)}</b><br>λ = +1.5000<br>g = +0.1500"
    assert (content["layout"]["coloraxis"]["cmin"], content["layout"]["coloraxis"]["cmax"]) == (-1.5, 1.5)
    assert "template" not in content["layout"]


def test_the_heat_map_takes_wide_models(make_edit: Callable[..., WeightEdit]) -> None:
    magnitudes = {f"L{layer}_attn": [layer - head / 32 for head in range(32)] for layer in range(32)}
    content = figure_json(head_figure(make_edit(8, **magnitudes), layers=32))
    (heat,) = content["data"]
    assert all(heat["z"][head][layer] == layer - head / 32 for head in range(32) for layer in range(32))
    assert content["layout"]["height"] <= 1000


def test_a_heat_map_of_zeros_still_has_a_colour_range(make_edit: Callable[..., WeightEdit]) -> None:
    layout = figure_json(head_figure(make_edit(2, L0_attn=[0.0, 0.0]), layers=1))["layout"]
    assert (layout["coloraxis"]["cmin"], layout["coloraxis"]["cmax"]) == (-1.0, 1.0)


def test_mlp_bars_are_signed_sums_and_counts(edit: WeightEdit) -> None:
    bars = figure_json(neuron_figure(edit, layers=4))["data"]
    by_name = {(bar["name"], bar["yaxis"]): bar for bar in bars}
    # layer 0: 0.5 + 0.25 and -1 - 0.5; layer 1: 2
    assert {key: bar["y"] for key, bar in by_name.items()} == {
        ("strengthened (λ > 0)", "y"): [0.75, 2.0],
        ("strengthened (λ > 0)", "y2"): [2, 1],
        ("weakened (λ < 0)", "y"): [-1.5, 0.0],
        ("weakened (λ < 0)", "y2"): [-2, 0],
    }
    assert by_name["weakened (λ < 0)", "y2"]["customdata"] == ["2 of 5 neurons", "0 of 5 neurons"]
    assert all(bar["x"] == [0, 1] for bar in bars)


def test_top_components_are_ranked_by_size_within_a_block(edit: WeightEdit) -> None:
    assert [row[:2] for row in largest(edit, "attn")] == [
        ["L2.H1", "+1.5000"],
        ["L0.H0", "+0.5000"],
        ["L0.H1", "−0.2500"],
    ]
    assert [row[0] for row in largest(edit, "mlp")] == ["L1.N4", "L0.N2", "L0.N0", "L0.N4", "L0.N1"]


def test_top_components_stop_at_twenty(make_edit: Callable[..., WeightEdit]) -> None:
    edit = make_edit(1, L0_mlp=[float(i) for i in range(50)])
    assert [row[0] for row in largest(edit, "mlp")] == [f"L0.N{i}" for i in range(49, 29, -1)]


def test_a_block_that_is_off_has_no_figure(make_edit: Callable[..., WeightEdit]) -> None:
    only_mlp, only_attn = make_edit(1, L0_mlp=[1.0]), make_edit(2, L0_attn=[1.0])
    assert edit_figures(only_mlp, 1).keys() == {"neurons"}
    assert edit_figures(only_attn, 1).keys() == {"heads"}


def test_the_diagnosis_crosses_noise_and_leaves_gaps_for_the_unscored(run: RunResults) -> None:
    lines = figure_json(diagnosis_figure(run.diagnosis, layers=11))["data"]
    attention = next(line for line in lines if line["name"] == "attention" and line["yaxis"] == "y2")
    # sites by number, not by name: L2 before L10
    assert [round(x) for x in attention["x"]] == [2, 10]
    assert attention["y"] == [0.5, 0.75]
    assert attention["error_y"]["array"] == pytest.approx([0.1, 0.1])
    assert attention["error_y"]["arrayminus"] == pytest.approx([0.1, 0.15])
    noise = [line for line in lines if line["name"] == "noise"]
    assert [line["y"] for line in noise] == [[0.1, None], [0.5, None]]
    assert [line["showlegend"] for line in noise] == [True, False]
    mlp = next(line for line in lines if line["name"] == "MLP" and line["yaxis"] == "y2")
    assert mlp["y"] == [None]
    assert "AUROC not scored" in mlp["hovertext"][0]


def test_steering_is_a_line_from_the_base_through_the_strengths(run: RunResults) -> None:
    curve = traces(validation_figure(run, plane(run, "nll_increase")))["steering, by strength"]
    assert curve["mode"] == "lines+markers"
    assert curve["x"] == [0.0, 0.125, 0.25]
    assert curve["y"] == [0.125, 0.25, 0.75]


def test_edits_are_grouped_by_limits_and_the_choice_is_ringed(run: RunResults) -> None:
    groups = traces(validation_figure(run, plane(run)))
    assert groups["edit, within the budget"]["x"] == [0.125, 0.0625]
    assert groups["edit, beyond the budget"]["x"] == [0.375]
    assert groups["edit"]["x"] == [0.25]
    assert sorted(groups["recommended"]["y"]) == [0.5, 0.75]


def test_without_limits_no_edit_is_judged(results: Json) -> None:
    del results["chosen"]["limits"]
    run = read_results(results)
    groups = traces(validation_figure(run, plane(run)))
    assert len(groups["edit"]["x"]) == 4
    assert not any("budget" in name for name in groups)


def test_held_out_points_have_error_bars_on_both_axes(run: RunResults) -> None:
    point = traces(held_out_figure(run, plane(run, "nll_increase")))["edited, held-out"]
    assert (point["x"], point["y"]) == ([0.1875], [0.5])
    for axis in ("error_x", "error_y"):
        assert point[axis]["array"] == [0.125]
        assert point[axis]["arrayminus"] == [0.0625]


def test_an_estimate_without_interval_has_no_error_bar(results: Json) -> None:
    results["held_out"]["conditions"][2]["metrics"]["kl"].update(low=None, high=None, n=1)
    run = read_results(results)
    point = traces(held_out_figure(run, plane(run)))["edited, held-out"]
    assert point["error_x"] == {"visible": False}


def test_what_is_not_scored_is_left_out_and_counted(results: Json, edit: WeightEdit) -> None:
    run = read_results(results)
    drawn = traces(validation_figure(run, plane(run, "nll_increase")))
    assert sum(len(t["x"]) for name, t in drawn.items() if name != "recommended") == len(run.validation.conditions) - 1
    results["held_out"]["conditions"][1]["metrics"]["nll_increase"]["value"] = None
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", render_report(results, edit), flags=re.DOTALL)
    assert ["Not drawn, because a metric was not scored: 1." in caption for caption in captions[:3]] == [
        True,
        False,
        False,
    ]


def test_a_destroyed_model_does_not_squeeze_the_plot(results: Json, edit: WeightEdit) -> None:
    too_much = results["validation"]["conditions"][5]["metrics"]["nll_increase"]
    too_much.update(value=9.0, low=8.0, high=10.0)
    run = read_results(results)
    # landmarks: steering 0.25, twice the limit 0.4, held-out steering's upper end 0.375
    low, high = figure_json(validation_figure(run, plane(run, "nll_increase")))["layout"]["xaxis"]["range"]
    assert high == pytest.approx(1.05 * 0.4)
    assert low < 0
    assert "Beyond 0.420 nats per token lie 1 more" in render_report(results, edit)
    assert "range" not in figure_json(validation_figure(run, plane(run)))["layout"]["xaxis"]


def test_conciseness_is_better_downwards(results: Json, edit: WeightEdit) -> None:
    for part in ("validation", "held_out"):
        for entry in results[part]["conditions"]:
            entry["metrics"]["reply_tokens"] = {"value": 30.0, "low": 20.0, "high": 40.0, "n": 20}
    results |= {"attribute": "reply_tokens", "direction": -1}
    run = read_results(results)
    axis = figure_json(held_out_figure(run, plane(run)))["layout"]["yaxis"]
    assert axis["title"]["text"] == "Reply length (tokens)<br>↓ less is better"
    assert "range" not in axis
    assert "Down and to the left is better" in render_report(results, edit)


def test_nothing_scored_means_no_plot(results: Json) -> None:
    for part in ("validation", "held_out"):
        for entry in results[part]["conditions"]:
            entry["metrics"]["harmful_refused"].update(value=None, low=None, high=None, n=0, unscored=20)
    assert tradeoff_figures(read_results(results)) == {}
