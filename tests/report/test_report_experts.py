"""The report of mixtures of experts and of hybrids: which experts carry the edit, and what is left out."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from family_edits import DEEPSEEK, LEFT_OUT, family_edit, only
from test_report_page import Page

from steer2edit.artifacts.left_out import LeftOut
from steer2edit.core import Experts, Site, SiteEdit, WeightEdit
from steer2edit.errors import ArtifactError
from steer2edit.report import render_report, write_report
from steer2edit.report.figures import (
    diagnosis_figure,
    edit_figures,
    expert_figure,
    head_figure,
    neuron_figure,
)
from steer2edit.report.html import figure_json
from steer2edit.report.run_page import largest_components, largest_experts
from steer2edit.report.run_results import read_results

Json = dict[str, Any]
NOTHING = LeftOut.of({})


@pytest.fixture(scope="module")
def mixture() -> WeightEdit:
    return family_edit("deepseek_v3", DEEPSEEK, experts_left_out=LEFT_OUT)


@pytest.fixture(scope="module")
def hybrid() -> WeightEdit:
    # Mamba heads in layers 0 and 2, attention in layer 1; 4 experts of 48 neurons and a shared one of 20 everywhere
    return family_edit("granitemoehybrid", {"L0.ssm": {2: -1.0}, "L1.attn": {3: 0.5}, "L2.mlp": {192: 2.0}})


def test_the_expert_map_is_the_signed_sum_by_layer_and_expert(mixture: WeightEdit) -> None:
    content = figure_json(expert_figure(mixture, NOTHING, layers=3))
    (heat,) = content["data"]
    # rows E0, E1, E2, E3, shared; layer 0 is dense; E0 of layer 1: 1 + 0.25, the positive part is larger
    assert heat["z"] == [
        [None, 1.25, 0.0],
        [None, -2.0, 0.0],
        [None, 0.0, 0.0],
        [None, 0.0, 3.0],
        [None, 0.75, 0.5],
    ]
    assert content["layout"]["yaxis"]["ticktext"] == ["E0", "E1", "E2", "E3", "shared"]
    assert (content["layout"]["coloraxis"]["cmin"], content["layout"]["coloraxis"]["cmax"]) == (-3.0, 3.0)
    assert heat["text"][0][1] == (
        "<b>L1.E0</b><br>2 of 24 neurons<br>Σλ of 1 strengthened: +1.000<br>Σλ of 1 weakened: -0.250"
    )


def test_experts_that_are_left_out_are_crossed_and_not_called_unedited(mixture: WeightEdit) -> None:
    heat, crosses = figure_json(expert_figure(mixture, LeftOut.of(mixture.metadata), layers=3))["data"]
    assert [row[1] for row in heat["z"]] == [1.25, -2.0, None, None, 0.75]
    assert [row[2] for row in heat["z"]] == [None, 0.0, 0.0, 3.0, 0.5]
    assert list(zip(crosses["x"], crosses["y"], strict=True)) == [(1, 2), (1, 3), (2, 0)]
    assert crosses["hovertext"][0] == "<b>L1.E2</b><br>left out: 7 tokens"


def test_the_strongest_experts_as_a_table(mixture: WeightEdit) -> None:
    assert list(map(tuple, largest_experts(mixture))) == [
        ("L2.E3", "3.000", "+3.000", "+0.000", "1 of 24"),
        ("L1.E1", "2.000", "+0.000", "−2.000", "1 of 24"),
        ("L1.E0", "1.250", "+1.000", "−0.250", "2 of 24"),
        ("L1.shared", "0.750", "+0.750", "+0.000", "1 of 24"),
        ("L2.shared", "0.500", "+0.500", "+0.000", "1 of 24"),
    ]


def test_neurons_are_named_by_their_expert_beside_dense_layers(mixture: WeightEdit) -> None:
    assert [row[0] for row in largest_components(mixture, "mlp")] == [
        "L2.E3.N23", "L1.E1.N0", "L1.E0.N0", "L1.shared.N0", "L0.N31", "L2.shared.N23", "L1.E0.N23",
    ]  # fmt: skip


def test_bars_take_layers_of_different_widths(mixture: WeightEdit) -> None:
    bars = {(bar["name"], bar["yaxis"]): bar for bar in figure_json(neuron_figure(mixture, layers=3))["data"]}
    assert bars["strengthened (λ > 0)", "y"]["y"] == [0.5, 1.75, 3.5]
    assert bars["weakened (λ < 0)", "y2"]["y"] == [0, -2, 0]
    assert bars["strengthened (λ > 0)", "y2"]["customdata"] == [
        "1 of 48 neurons",
        "2 of 120 neurons",
        "2 of 120 neurons",
    ]


def test_the_page_of_a_mixture(results: Json, mixture: WeightEdit) -> None:
    page = Page(render_report(results, mixture))
    assert "Neurons of 5 of 10 experts in 2 mixtures are among them." in page.text
    assert "1 of 12 attention heads and 7 of 288 MLP neurons." in page.text
    assert "L12.N801 is MLP neuron 801 of layer 12, L12.E5.N801 is neuron 801 of expert 5 of layer 12" in page.text
    assert "Left out, because they were given fewer than 32 tokens: 3 experts of 2 layers." in page.text
    assert "L1.mlp E2 (7 tokens), E3 (0 tokens) L2.mlp E0 (1 token)" in page.text
    assert "A cross: left out" in page.text
    assert len(page.embedded("figures")["experts"]["data"]) == 2
    assert "state-space" not in page.text
    assert [tag for tag, _ in page.tags].count("table") == [tag for tag, _ in page.tags].count("caption")


def test_a_mixture_with_nothing_left_out_says_nothing_of_it(results: Json) -> None:
    page = Page(render_report(results, family_edit("qwen3_moe", {"L0.mlp": {95: -1.0}})))
    assert "leaves out" not in re.sub(r"layer[^.]*that the edit leaves out", "", page.text)
    assert "A cross: left out" not in page.text
    assert "L0.E3.N23" in page.text
    assert "shared" not in figure_ticks(page)


def figure_ticks(page: Page) -> list[str]:
    ticks: list[str] = page.embedded("figures")["experts"]["layout"]["yaxis"]["ticktext"]
    return ticks


def test_a_dense_edit_has_no_expert_map(edit: WeightEdit, results: Json) -> None:
    assert edit_figures(edit, 3).keys() == {"heads", "neurons"}
    page = Page(render_report(results, edit))
    assert "xpert" not in page.text
    assert "state-space" not in page.text


def test_heads_of_state_space_mixers(results: Json, hybrid: WeightEdit) -> None:
    (heat,) = figure_json(head_figure(hybrid, 3, "ssm"))["data"]
    assert heat["z"] == [[0.0, None, 0.0], [0.0, None, 0.0], [-1.0, None, 0.0], [0.0, None, 0.0]]
    assert heat["text"][2][0].startswith("<b>L0.S2</b>")
    page = Page(render_report(results, hybrid))
    assert page.text.count("These heads take the ρ of the attention.") == 1
    (plot,) = (attrs for _, attrs in page.tags if attrs.get("data-figure") == "mixer-heads")
    assert plot["aria-label"] == "Heat map of λ by layer and head: 1 of 8 heads are edited."


def test_the_page_of_a_hybrid(results: Json, hybrid: WeightEdit) -> None:
    results["diagnosis"]["sites"]["L0.ssm"] = results["diagnosis"]["sites"]["L2.attn"]
    page = Page(render_report(results, hybrid))
    assert "1 of 4 attention heads, 1 of 8 state-space mixer heads and 1 of 636 MLP neurons." in page.text
    assert "L12.S2 is head 2 of the state-space mixer of layer 12" in page.text
    assert "L0.S2" in page.text
    assert "L2.shared.N0" in page.text
    assert {"heads", "mixer-heads", "neurons", "experts"} <= set(page.embedded("figures"))


def test_a_layer_with_attention_and_mixer_heads(results: Json, make_edit: Callable[..., WeightEdit]) -> None:
    edit = make_edit(2, L1_ssm=[0.0, 1.0], L1_attn=[2.0, 0.0])
    figures = Page(render_report(results, edit)).embedded("figures")
    assert [[row[1] for row in figures[name]["data"][0]["z"]] for name in ("heads", "mixer-heads")] == [[2, 0], [0, 1]]


def test_a_mixer_that_is_left_alone_is_on_without_an_edited_head(results: Json, hybrid: WeightEdit) -> None:
    ssm = only(family_edit("granitemoehybrid", {}), "ssm")
    assert "The state-space mixer block is on, but no head is edited" in Page(render_report(results, ssm)).text
    text = Page(render_report(results, only(hybrid, "mlp"))).text
    assert "The attention block is off in this edit: no head is changed." in text
    assert "state-space" not in text


@pytest.mark.parametrize(
    ("family", "listed"),
    [
        ("lfm2", "model.layers.0.conv.out_proj, model.layers.2.conv.out_proj"),
        ("falcon_h1", ", ".join(f"model.layers.{i}.mamba.out_proj" for i in range(3))),
    ],
)
def test_modules_without_heads_are_listed(results: Json, family: str, listed: str) -> None:
    page = Page(render_report(results, family_edit(family, {"L1.attn": {0: 1.0}})))
    assert f"Left out, because they have no heads or neurons that an adapter could edit: {listed}." in page.text
    assert not {"mixer-heads", "experts"} & set(page.embedded("figures"))


def test_the_diagnosis_draws_mixers_between_attention_and_mlp(results: Json) -> None:
    good = results["diagnosis"]["sites"]["L10.attn"]
    results["diagnosis"]["sites"] = {f"L1.{block}": good for block in ("mlp", "ssm", "attn")}
    lines = figure_json(diagnosis_figure(read_results(results).diagnosis, layers=2))["data"]
    assert [(line["name"], line["x"]) for line in lines if line["yaxis"] == "y2"] == [
        ("attention", [0.88]), ("state-space mixer", [1.0]), ("MLP", [1.12]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "metadata",
    [
        {"experts_left_out": {"min_tokens": 32, "sites": {"<b>": {"E1": 3}}}},
        {"experts_left_out": {"min_tokens": 32, "sites": {"L1.mlp": {"<script>": 3}}}},
        {"experts_left_out": {"min_tokens": 32, "sites": {"L1.mlp": {"E1": -3}}}},
        {"experts_left_out": {"sites": {}}},
        {"experts_left_out": [1]},
        {"left_out": "all"},
        {"left_out": [{}]},
    ],
)
def test_a_list_of_what_was_left_out_that_is_none(
    results: Json, edit: WeightEdit, metadata: Json, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=r"what was left out: .*Make it again"):
        write_report(results, WeightEdit(edit.sites, metadata), tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_names_of_modules_are_escaped(results: Json, edit: WeightEdit) -> None:
    hostile = WeightEdit(edit.sites, {"left_out": ["<script>alert(1)</script>\x1b[31m"]})
    page = render_report(results, hostile)
    assert "<script>alert(1)" not in page
    assert "\x1b" not in page
    assert "<script>alert(1)</script>⟨U+001B⟩[31m" in Page(page).text


def test_a_large_mixture() -> None:
    # 256 experts of 400 neurons: 102 400 neurons a site
    sizes = Experts(256, 400, 400)
    lam = torch.randn(sizes.neurons, generator=torch.Generator().manual_seed(0))
    site = SiteEdit(torch.ones(1), lam, lam, lam, sizes)
    edit = WeightEdit({Site(layer, "mlp"): site for layer in range(6)})
    found = figure_json(edit_figures(edit, 6)["experts"])
    assert len(largest_components(edit, "mlp")) == 20
    heat = found["data"][0]
    assert len(heat["z"]) == 257
    assert heat["z"][255][3] == pytest.approx(
        lam[-800:-400].abs().sum().item() * lam[-800:-400].sum().sign().item(), rel=1e-5
    )
    assert heat["ygap"] == 0
    ticks = found["layout"]["yaxis"]["ticktext"]
    assert len(ticks) <= 17
    assert ticks[-1] == "shared"
    assert len(str(found)) < 1_000_000
