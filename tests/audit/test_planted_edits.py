"""Edits planted in tiny checkpoints of several families and dtypes come back as the same heads and neurons."""

from pathlib import Path

import pytest
import torch
from planted_edits import Planted, changed_copy, plant

from steer2edit.audit import Audit, audit

# λ's error by dtype: 32 rows only, so that rounding averages out less than in a real model
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def assert_recovered(planted: Planted, found: Audit, tolerance: float) -> None:
    """Every component with |λ| ≥ 0.05 and no other; λ within the tolerance; u and a up to one common sign."""
    assert found.sites.keys() == planted.magnitudes.keys()
    for site, planted_lam in planted.magnitudes.items():
        own, lam = found.sites[site], found.sites[site].magnitude
        assert torch.equal(lam.abs() >= 0.05, planted_lam != 0), site
        assert (lam - planted_lam).abs().max() < tolerance, site
        sign = torch.sign(own.output_direction @ planted.directions[site])
        assert (sign * own.output_direction - planted.directions[site]).norm() < tolerance, site
        assert (sign * own.row - planted.rows[site]).abs().max() < tolerance, site


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "phi3"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda dtype: str(dtype)[6:])
def test_dense_families(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    planted = plant(tmp_path, family, dtype)
    found = audit(str(planted.base), planted.edited)
    assert found.classification.label == "steer2edit-like", found.classification
    assert {change.rank for change in found.changes} == {1}
    assert not any(change.unexplained for change in found.changes)
    assert found.identical == found.compared - len(found.changes)
    assert_recovered(planted, found, TOLERANCE[dtype])


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "deepseek_v3", "granitemoehybrid"])
def test_experts_and_mixers(family: str, tmp_path: Path) -> None:
    planted = plant(tmp_path, family, torch.float32)
    found = audit(str(planted.base), planted.edited)
    assert found.classification.label == "steer2edit-like", found.classification
    assert_recovered(planted, found, TOLERANCE[torch.float32])


def test_directions_that_are_not_along_the_sensitivity(tmp_path: Path) -> None:
    planted = plant(tmp_path, blocks=("attn",), along=False)
    found = audit(str(planted.base), planted.edited)
    assert found.classification.label == "rank-1"
    assert {str(c.place.site) for c in found.changes if c.place} == {"L0.attn", "L1.attn", "L2.attn"}
    assert list(found.to_pandas()["site"]) == [str(c.place.site) for c in found.changes if c.place]


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_ablation_is_told_from_an_edit_with_its_strength(strength: float, tmp_path: Path) -> None:
    planted = plant(tmp_path, strength=0.0)
    u = planted.directions

    def ablate(tensors: dict[str, torch.Tensor]) -> None:
        for site, module in planted.model.sites.items():
            weight = tensors[f"{module.name}.weight"]
            w = weight.double()
            weight.copy_((w - strength * torch.outer(u[site], u[site] @ w)).to(weight.dtype))

    ablated = changed_copy(planted.base, tmp_path / "ablated", ablate)
    found = audit(str(planted.base), ablated)
    assert found.classification.label == "directional-ablation"
    assert f"s = {strength:.2f}" in found.classification.sentence


def test_match_at_a_strength(tmp_path: Path) -> None:
    planted = plant(tmp_path, strength=0.5)
    found = audit(str(planted.base), planted.edited, planted.edit)
    assert found.match is not None
    assert found.match.strength == 0.5
    assert found.match.matches
    assert all(site.outside == 0 for site in found.match.sites)
    assert found.match.elsewhere == ()
    assert found.match.sentence == ("Matches the given edit at strength 0.5, in all 6 sites. Nothing else changed.")


def test_another_edit_does_not_match(tmp_path: Path) -> None:
    planted = plant(tmp_path)
    other = planted.edit.scaled(1.0)
    site = next(iter(other.sites))
    flipped = dict(other.sites)
    flipped[site] = other.sites[site].scaled(-1.0)
    found = audit(str(planted.base), planted.edited, type(other)(flipped, other.metadata))
    assert found.match is not None
    assert not found.match.matches
    assert [match.site for match in found.match.sites if not match.matches] == [site]
    assert str(site) in found.match.sentence


def test_edit_of_an_unedited_model_is_not_there(tmp_path: Path) -> None:
    planted = plant(tmp_path)
    found = audit(str(planted.base), planted.base, planted.edit)
    assert found.match is not None
    assert not found.match.matches
    assert found.match.strength is None
