"""A real bf16 checkpoint: the heads and neurons that were edited come back, and nothing else."""

from pathlib import Path

import pytest
import torch

from steer2edit.artifacts import apply_to_files
from steer2edit.audit import audit
from steer2edit.core import SiteEdit, WeightEdit
from steer2edit.models import LanguageModel, load_model

LAYERS = (2, 27)
SHOWN = 0.05


def random_edit(model: LanguageModel) -> WeightEdit:
    """The paper's rule (ρ = 0.1, α = 0.5) for random directions v and random mean inputs μ."""
    generator = torch.Generator().manual_seed(0)
    sites = {}
    for site, module in model.sites.items():
        if site.layer not in LAYERS:
            continue
        W, width = module.weight.double(), module.component_width
        u = torch.randn(W.shape[0], generator=generator, dtype=torch.float64)
        u /= u.norm()
        mu = torch.randn(W.shape[1], generator=generator, dtype=torch.float64)
        pieces = (W * mu).view(W.shape[0], -1, width).sum(2)  # W_i μ_i, one column per component
        g = (u @ pieces) / pieces.norm(dim=0)
        lam = torch.sign(g) * (g.abs() - 0.05).clamp_min(0) / 0.05
        k = (W.T @ u).view(-1, width)
        row = (lam[:, None] * k / k.norm(dim=1, keepdim=True)).flatten()
        sites[site] = SiteEdit(u.float(), row.float(), lam.float(), g.float())
    return WeightEdit(sites, {"model": model.describe()})


@pytest.mark.slow
def test_heads_and_neurons_of_a_bfloat16_edit_are_recovered(tmp_path: Path) -> None:
    model = load_model("smollm2", dtype="bfloat16", device="cpu")
    edit = random_edit(model)
    apply_to_files("smollm2", [(edit, 1.0)], tmp_path / "edited")
    found = audit("smollm2", tmp_path / "edited", edit)
    assert found.classification.label == "steer2edit-like"
    assert len(found.changes) == 2 * len(LAYERS)
    assert found.match is not None
    assert found.match.matches
    assert (found.match.strength, found.match.elsewhere) == (1, ())
    assert all(site.outside == 0 for site in found.match.sites)
    true = torch.cat([edit.sites[site].magnitude.double() for site in edit.sites])
    seen = torch.cat([found.sites[site].magnitude for site in edit.sites])
    assert int((true.abs() >= SHOWN).sum()) > 300
    sure = (true.abs() < SHOWN - 0.005) | (true.abs() >= SHOWN + 0.005)
    assert torch.equal((seen.abs() >= SHOWN)[sure], (true.abs() >= SHOWN)[sure])
    assert (seen - true).abs().max() < 0.01
