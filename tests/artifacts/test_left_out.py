"""What an edit leaves out, in words and on the model card."""

import re
from pathlib import Path

import pytest
import torch

from families import tiny_model
from steer2edit.artifacts import load_edit, save_edit
from steer2edit.artifacts.left_out import LeftOut
from steer2edit.core import Site, SiteEdit, WeightEdit
from steer2edit.models import LanguageModel

FEW = {"min_tokens": 32, "sites": {"L10.mlp": {"E3": 1}, "L2.mlp": {"E1": 7, "shared": 0, "E4": 1200}}}


def test_words() -> None:
    found = LeftOut.of({"experts_left_out": FEW, "left_out": ["model.layers.0.conv.out_proj"], "other": 1})
    assert found.sentences == [
        "Left out, because they were given fewer than 32 tokens: 4 experts of 2 layers.",
        "Left out, because they have no heads or neurons that an adapter could edit: model.layers.0.conv.out_proj.",
    ]
    assert found.experts_of(Site(2, "mlp")) == "E1 (7 tokens), shared (0 tokens), E4 (1,200 tokens)"
    assert found.experts_of(Site(2, "mlp"), 1) == "E1 (7 tokens), and 2 more"
    assert found.experts_of(Site(10, "mlp"), 1) == "E3 (1 token)"
    assert found.experts_of(Site(3, "mlp")) == ""
    assert [str(site) for site, _ in found.tokens] == ["L2.mlp"] * 3 + ["L10.mlp"]


def test_nothing_left_out() -> None:
    assert LeftOut.of({}).sentences == []
    assert LeftOut.of({"left_out": []}).sentences == []
    assert LeftOut.of({"experts_left_out": {"min_tokens": 1, "sites": {}}}).sentences == []


def edit_of(model: LanguageModel, component: int, **metadata: object) -> WeightEdit:
    """λ = 1 of one component of every site."""
    sites = {}
    for site, module in model.sites.items():
        lam = torch.zeros(module.component_count)
        lam[component] = 1.0
        row = lam.repeat_interleave(module.component_width) * module.component_width**-0.5
        u = torch.nn.functional.one_hot(torch.tensor(0), module.shape[0]).float()
        sites[site] = SiteEdit(u, row, lam, lam / 2, module.sizes)
    return WeightEdit(sites, metadata)


def card(directory: Path) -> str:
    return (directory / "README.md").read_text(encoding="utf-8")


def test_the_card_of_a_mixture(tmp_path: Path) -> None:
    model = tiny_model("deepseek_v3")
    few = {"min_tokens": 32, "sites": {"L2.mlp": {"E2": 3, "shared": 0}}}
    save_edit(model, edit_of(model, 3, experts_left_out=few), tmp_path / "edit")
    text = card(tmp_path / "edit")
    assert (
        "| layer | experts edited | neurons edited | experts left out, with the tokens each was given |\n"
        "| ---: | ---: | ---: | --- |\n"
        "| 1 | 1 of 5 | 1 | none |\n"
        "| 2 | 1 of 5 | 1 | E2 (3 tokens), shared (0 tokens) |\n"
    ) in text
    assert "\nLeft out, because they were given fewer than 32 tokens: 2 experts of 1 layer.\n" in text
    assert {"| L0.N3 |", "| L1.E0.N3 |", "| L1.H3 |"} <= set(re.findall(r"^\| L\S+ \|", text, re.MULTILINE))
    read = load_edit(tmp_path / "edit")
    assert LeftOut.of(read.metadata).tokens == {(Site(2, "mlp"), "E2"): 3, (Site(2, "mlp"), "shared"): 0}
    assert read.sites[Site(2, "mlp")].experts == model.sites[Site(2, "mlp")].sizes


def test_a_long_list_of_experts_is_cut_on_the_card_only(tmp_path: Path) -> None:
    model = tiny_model("qwen3_moe", num_experts=20, num_hidden_layers=1)
    few = {"min_tokens": 5, "sites": {"L0.mlp": {f"E{e}": 0 for e in range(18)}}}
    save_edit(model, edit_of(model, 0, experts_left_out=few), tmp_path / "edit")
    assert "E15 (0 tokens), and 2 more |" in card(tmp_path / "edit")
    assert len(LeftOut.of(load_edit(tmp_path / "edit").metadata).tokens) == 18


def test_the_card_of_a_hybrid(tmp_path: Path) -> None:
    model = tiny_model("granitemoehybrid")
    save_edit(model, edit_of(model, 2), tmp_path / "mamba")
    assert "- state-space mixer: 2 of 8 heads in 2 layers\n  (2 promoted, λ > 0; 0 suppressed, λ < 0)\n" in card(
        tmp_path / "mamba"
    )
    assert "| L0.S2 |" in card(tmp_path / "mamba")
    model = tiny_model("lfm2")
    save_edit(model, edit_of(model, 0, left_out=list(model.structure.left_out)), tmp_path / "conv")
    assert "could edit: model.layers.0.conv.out_proj, model.layers.2.conv.out_proj.\n" in card(tmp_path / "conv")
    assert "experts" not in card(tmp_path / "conv")


@pytest.mark.parametrize("model_type", ["llama"])
def test_the_card_of_a_dense_model_says_nothing_of_it(tmp_path: Path, model_type: str) -> None:
    model = tiny_model(model_type)
    save_edit(model, edit_of(model, 0), tmp_path / "edit")
    assert "expert" not in card(tmp_path / "edit")
    assert "eft out" not in card(tmp_path / "edit")
