"""From vectors to an edit of a whole model: the right columns of the right weights, all configurations, provenance."""

import numpy as np
import pytest
import torch
from edit_models import all_sites, only, random_vectors

from dense_definitions import dense_edit, float64
from families import FAMILIES, tiny_model, tiny_network
from steer2edit.core import Site, SteeringVectors
from steer2edit.editing import compute_factors, convert
from steer2edit.errors import InvalidValueError, MismatchError
from steer2edit.method.hyperparameters import Hyperparameters, Rules, grid
from steer2edit.models import LanguageModel

# Names in the state dict, and whether the weight is stored [m, d] there; written by hand, not taken from the layouts.
STORED = {
    "llama": ("model.layers.{}.self_attn.o_proj.weight", "model.layers.{}.mlp.down_proj.weight", False),
    "qwen3": ("model.layers.{}.self_attn.o_proj.weight", "model.layers.{}.mlp.down_proj.weight", False),
    "gpt_neox": ("gpt_neox.layers.{}.attention.dense.weight", "gpt_neox.layers.{}.mlp.dense_4h_to_h.weight", False),
    "gpt2": ("transformer.h.{}.attn.c_proj.weight", "transformer.h.{}.mlp.c_proj.weight", True),
}
HEAD_DIM = {"llama": 8, "qwen3": 12, "gpt_neox": 8, "gpt2": 8}


@pytest.mark.parametrize("family", STORED)
def test_the_edit_of_a_model_is_the_papers_edit_of_each_weight(family: str) -> None:
    model = tiny_model(family)
    vectors = random_vectors(model)
    edit = convert(model, vectors, Hyperparameters(0.2, 0.3, 0.4))
    assert list(edit.sites) == all_sites(3)
    state = model.network.state_dict()
    for site, ours in edit.sites.items():
        name = STORED[family][0 if site.block == "attn" else 1].format(site.layer)
        weight = state[name].T if STORED[family][2] else state[name]
        means, width = vectors.sites[site], HEAD_DIM[family] if site.block == "attn" else 1
        v = means.output.positive - means.output.negative
        mu = (means.input.positive + means.input.negative) / 2
        dense = dense_edit(weight, v, mu, width, 0.2 if site.block == "attn" else 0.3, 0.4)
        assert np.linalg.norm(float64(ours.dense()) - dense.dense) < 1e-4
        assert np.abs(float64(ours.magnitude) - dense.magnitude).max() < 1e-4
        assert np.abs(float64(ours.importance) - dense.g).max() < 1e-5
        assert np.linalg.norm(dense.dense) > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_models_are_converted_in_float32(dtype: torch.dtype) -> None:
    network = tiny_network("llama").to(dtype)
    half, wide = LanguageModel(network), LanguageModel(tiny_network("llama").to(dtype).float())
    vectors = SteeringVectors(random_vectors(half).sites)
    ours = convert(half, vectors, Hyperparameters(0.2, 0.3, 0.4))
    theirs = convert(wide, vectors, Hyperparameters(0.2, 0.3, 0.4))
    for site, edit in ours.sites.items():
        assert edit.row.dtype == torch.float32
        assert torch.equal(edit.row, theirs.sites[site].row)


def test_the_whole_grid_equals_one_configuration_after_another() -> None:
    model = tiny_model("qwen3")
    factors = compute_factors(model, random_vectors(model))
    off = [Hyperparameters(None, 0.3, 0.5), Hyperparameters(0.3, None, 0.5)]
    configurations = [*grid(), *off]
    assert len(configurations) == 127
    for h, together in zip(configurations, factors.edits(configurations), strict=True):
        (alone,) = factors.edits([h])
        assert list(together.sites) == list(alone.sites)
        assert {site.block for site in alone.sites} == {b for b in ("attn", "mlp") if h.rho(b) is not None}
        assert together.metadata == alone.metadata
        assert together.metadata["hyperparameters"] == h.to_json()
        for site, edit in together.sites.items():
            assert torch.equal(edit.row, alone.sites[site].row)
            assert torch.equal(edit.magnitude, alone.sites[site].magnitude)
            assert edit.output_direction is alone.sites[site].output_direction


def test_a_configuration_that_edits_nothing() -> None:
    model = tiny_model("llama")
    vectors = only(random_vectors(model), Site(0, "mlp"), Site(1, "mlp"))
    factors = compute_factors(model, vectors, allow_missing=True)
    assert {site.block for site in factors.edit(Hyperparameters(0.2, 0.2, 0.5)).sites} == {"mlp"}
    message = r"ρ_attn=0\.2 ρ_mlp=off α=0\.5: the vectors have no site of a block that is on; nothing to edit"
    with pytest.raises(MismatchError, match=message):
        factors.edit(Hyperparameters(0.2, None, 0.5))


def test_an_edit_says_where_it_comes_from() -> None:
    model = tiny_model("llama")
    vectors = random_vectors(model, contrast="safety")
    rules = Rules("mean", "dot", "ridge")
    metadata = convert(model, vectors, Hyperparameters(0.2, None, 0.5), rules).metadata
    assert metadata["method"] == "steer2edit"
    assert metadata["rules"] == {"input_direction": "mean", "importance": "dot", "magnitude": "ridge"}
    assert metadata["model"] == model.describe()
    assert metadata["model"]["fingerprint"] == model.fingerprint
    assert metadata["vectors"]["sha256"] == vectors.digest()
    assert metadata["vectors"]["contrast"] == "safety"


@pytest.mark.parametrize("family", FAMILIES)
def test_importances_are_cosines_of_every_component(family: str) -> None:
    model = tiny_model(family)
    for site, factors in compute_factors(model, random_vectors(model)).sites.items():
        assert factors.importance.numel() == model.sites[site].component_count
        assert factors.importance.abs().max() <= 1
        assert bool((factors.importance != 0).all())
        assert factors.output_direction.norm().item() == pytest.approx(1, abs=1e-6)
        assert {t.device.type for t in (factors.importance, factors.input_directions)} == {"cpu"}


def test_sites_of_the_vectors_alone_are_edited_when_missing_ones_are_allowed() -> None:
    model = tiny_model("llama")
    vectors = only(random_vectors(model), Site(1, "mlp"), Site(2, "attn"))
    edit = convert(model, vectors, Hyperparameters(0.2, 0.2, 0.2), allow_missing=True)
    assert list(edit.sites) == [Site(1, "mlp"), Site(2, "attn")]


@pytest.mark.parametrize("block", ["attn", "mlp"])
def test_a_zero_vector_is_refused_with_the_name_of_its_site(block: str) -> None:
    model = tiny_model("llama")
    vectors = random_vectors(model)
    means = vectors.sites[Site(1, block)].output
    means.negative.copy_(means.positive)
    with pytest.raises((InvalidValueError, MismatchError), match=rf"L1\.{block}: the steering vector is zero.*leave"):
        convert(model, vectors, Hyperparameters(0.2, 0.2, 0.2))
