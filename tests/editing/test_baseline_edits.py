"""ROSI and directional ablation as edits: by hand, and against the dense definitions for dense and expert sites."""

import pytest
import torch

from families import tiny_network
from steer2edit.editing import ablation, merged, rosi
from steer2edit.editing.baselines import ablation_row
from steer2edit.errors import InvalidValueError
from steer2edit.models import LanguageModel

W = torch.tensor([[1.0, 2.0, 0.0], [3.0, -4.0, 1.0]])


def test_rows_by_hand() -> None:
    # u = (0.6, 0.8): 0.6 · (1, 2, 0) + 0.8 · (3, -4, 1) = (3, -2, 0.8)
    assert ablation_row(W, torch.tensor([3.0, 4.0])).tolist() == pytest.approx([-3.0, 2.0, -0.8])
    with pytest.raises(InvalidValueError, match="must be finite and not zero"):
        ablation_row(W, torch.zeros(2))


def test_rows_are_never_computed_in_half_precision() -> None:
    assert ablation_row(W.half(), torch.ones(2)).dtype == torch.float32


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize("strength", [0.5, -2.0])
def test_in_the_weights_they_are_what_their_authors_define(family: str, strength: float) -> None:
    model = LanguageModel(tiny_network(family), name=family)
    generator = torch.Generator().manual_seed(0)
    directions = {site: torch.randn(m.shape[0], generator=generator) for site, m in model.sites.items()}
    for make in (rosi, ablation):
        edit = make(model, directions)
        before = {site: [p.weight.clone() for p in m.projections] for site, m in model.sites.items()}
        with merged(model, edit, strength):
            for site, module in model.sites.items():
                u = directions[site] / directions[site].norm()
                for projection, own in zip(module.projections, before[site], strict=True):
                    change = torch.outer(u, own.mean(dim=0)) if make is rosi else -torch.outer(u, u) @ own
                    torch.testing.assert_close(projection.weight, own + strength * change, rtol=1e-4, atol=1e-6)


def test_magnitudes_are_lengths_of_the_components_parts() -> None:
    model = LanguageModel(tiny_network("llama"), name="tiny")
    directions = {site: torch.ones(m.shape[0]) for site, m in model.sites.items()}
    for make, sign in ((rosi, 1), (ablation, -1)):
        for edit in make(model, directions).sites.values():
            parts = edit.row.view(edit.magnitude.numel(), -1)
            torch.testing.assert_close(edit.magnitude, sign * parts.norm(dim=1))
            assert not edit.importance.any()
