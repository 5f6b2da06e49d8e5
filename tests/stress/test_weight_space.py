"""Directions taken out of weights: by algebra, and on a model known by hand."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "editing"))  # for edit_models.py

from edit_models import logits, random_vectors, relative

from families import tiny_network
from steer2edit.core import Editing, Site, WeightEdit
from steer2edit.editing import ablation, convert, intervened, merged
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import LanguageModel

H = Hyperparameters(0.1, 0.1, 0.2)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe", "opt"])
def test_after_a_removal_no_matrix_of_a_site_writes_along_the_direction(family: str) -> None:
    model = LanguageModel(tiny_network(family), name=family)
    generator = torch.Generator().manual_seed(0)
    directions = {site: torch.randn(m.shape[0], generator=generator) for site, m in model.sites.items()}
    edit = ablation(model, directions)
    with merged(model, edit):
        for site, u in directions.items():
            for projection in model.sites[site].projections:
                along = (u / u.norm()) @ projection.weight
                assert along.norm() < 1e-5 * projection.weight.norm()
        in_weights = logits(model)
    with intervened(model, [Editing(edit)]):
        assert relative(logits(model), in_weights) < 1e-4


def test_the_output_at_run_time_has_nothing_along_the_direction() -> None:
    model = LanguageModel(tiny_network("llama"), name="tiny")
    site = Site(1, "mlp")
    u = torch.nn.functional.normalize(torch.randn(model.sites[site].shape[0]), dim=0)
    seen: list[torch.Tensor] = []
    with intervened(model, [Editing(ablation(model, {site: u}))]):
        # after the intervention's own hook
        handle = model.sites[site].module.register_forward_hook(lambda module, args, output: seen.append(output))
        logits(model)
        handle.remove()
    assert seen[0].norm() > 0.01
    assert (seen[0] @ u).abs().max() < 1e-5 * seen[0].norm()


def test_without_its_directions_the_edited_model_is_the_base_without_them() -> None:
    model = LanguageModel(tiny_network("llama"), name="tiny")
    edit = convert(model, random_vectors(model), H)
    directions = {site: own.output_direction for site, own in edit.sites.items()}
    with intervened(model, [Editing(ablation(model, directions))]):
        base = logits(model)
    with merged(model, edit):
        from_edited = ablation(model, directions)
        with intervened(model, [Editing(from_edited)]):
            assert relative(logits(model), base) < 1e-4
        # the base's rows would leave the edit in
        with intervened(model, [Editing(removal_of_base := _restored(model, edit, directions))]):
            assert relative(logits(model), base) > 1e-2
    assert all(
        not torch.allclose(from_edited.sites[s].row, removal_of_base.sites[s].row, atol=1e-3) for s in directions
    )


def _restored(model: LanguageModel, edit: WeightEdit, directions: dict) -> WeightEdit:
    """The removal that belongs to the base, computed inside `merged`: a' + a, since Wᵀu = W'ᵀu − a."""
    rows = ablation(model, directions).sites
    return WeightEdit({s: replace(rows[s], row=rows[s].row + edit.sites[s].row) for s in directions})
