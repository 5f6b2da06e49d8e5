"""A model's identity: one for a checkpoint however it is loaded, another as soon as its weights differ."""

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import save_checkpoint

from families import FAMILIES, tiny_model, tiny_network
from steer2edit.core import ClassMeans, Site, SiteEdit, SiteMeans, SteeringVectors, WeightEdit
from steer2edit.editing import convert, merged, merged_weight
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import LanguageModel, load_model, sample_step, sampled_fingerprint

DTYPES = ["float32", "bfloat16", "float16"]


def fingerprint(weights: dict[str, torch.Tensor]) -> str:
    shapes = {name: (weight.shape[0], weight.shape[1]) for name, weight in weights.items()}
    return sampled_fingerprint(shapes, (weight[:: sample_step(len(weight))] for weight in weights.values()))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16], ids=str)
def test_one_checkpoint_has_one_fingerprint_in_every_dtype(stored: torch.dtype, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, stored)
    loaded = [load_model(str(tmp_path), dtype=dtype, device="cpu") for dtype in DTYPES]
    assert [model.dtype for model in loaded] == [torch.float32, torch.bfloat16, torch.float16]
    assert len({model.fingerprint for model in loaded}) == 1
    assert len(loaded[0].fingerprint) == 64


def test_by_hand() -> None:
    """SHA-256 of the names and shapes as JSON, then of every entry as bfloat16, below 2⁻¹⁶ as zero."""
    weights = {"a.o_proj": torch.tensor([[1.0, -2.0], [2.0**-16, 2.0**-17]])}
    header = json.dumps({"a.o_proj": [2, 2]}).encode()
    entries = [struct.pack(">f", value)[1::-1] for value in (1.0, -2.0, 2.0**-16, 0.0)]  # a bfloat16: the upper half
    assert fingerprint(weights) == hashlib.sha256(header + b"".join(entries)).hexdigest()


def test_sees_every_column_in_sixteen_whole_rows() -> None:
    W = torch.randn(64, 160)
    base = fingerprint({"W": W})
    for column in range(160):
        changed = W.clone()
        changed[4 * 3, column] += 1  # every 4th row is sampled
        assert fingerprint({"W": changed}) != base


@pytest.mark.parametrize("family", FAMILIES)
def test_is_the_same_for_the_same_weights_and_no_other(family: str) -> None:
    model = tiny_model(family)
    assert tiny_model(family).fingerprint == model.fingerprint
    assert tiny_model(family, seed=1).fingerprint != model.fingerprint


@pytest.mark.parametrize("site", [Site(0, "attn"), Site(1, "mlp"), Site(2, "mlp")], ids=str)
def test_differs_after_a_change_of_any_site(site: Site) -> None:
    network = tiny_network("llama")
    before = LanguageModel(network).fingerprint
    model = LanguageModel(network)
    model.sites[site].weight.mul_(1.05)
    assert model.fingerprint != before


def test_does_not_depend_on_name_device_or_memory_layout() -> None:
    model = tiny_model("gpt2")
    assert LanguageModel(model.network, name="other", revision="abc").fingerprint == model.fingerprint
    weights = {p.name: p.weight for p in model.sites.values()}
    assert not next(iter(weights.values())).is_contiguous()
    assert fingerprint({name: w.contiguous() for name, w in weights.items()}) == model.fingerprint


def test_depends_on_names_and_shapes() -> None:
    W = torch.randn(4, 6)
    different = [{"a": W}, {"b": W}, {"a": W.T}, {"a": W.reshape(6, 4)}, {"a": W, "b": W}, {"a": W[:, :5]}]
    assert len({fingerprint(weights) for weights in different}) == len(different)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rho", [(0.2, None), (None, 0.2)], ids=["heads", "neurons"])
def test_an_edited_model_is_another_one(rho: tuple[float | None, float | None], dtype: torch.dtype) -> None:
    network = tiny_network("llama").to(dtype)
    model = LanguageModel(network)
    generator = torch.Generator().manual_seed(0)

    def means(size: int) -> ClassMeans:
        return ClassMeans(torch.randn(size, generator=generator), torch.randn(size, generator=generator))

    vectors = SteeringVectors({s: SiteMeans(means(32), means(p.shape[1])) for s, p in model.sites.items()})
    with merged(model, convert(model, vectors, Hyperparameters(*rho, 0.1))):
        assert LanguageModel(network).fingerprint != model.fingerprint
    assert LanguageModel(network).fingerprint == model.fingerprint


def one_neuron(index: int) -> WeightEdit:
    row = torch.zeros(48)
    row[index] = 3.0
    return WeightEdit({Site(1, "mlp"): SiteEdit(torch.full((32,), 32**-0.5), row, row, row)})


@pytest.mark.parametrize("index", [0, 1, 2, 3, 45, 46, 47])
def test_an_edit_of_any_one_neuron_is_seen(index: int) -> None:
    model = tiny_model("llama")
    site, edit = Site(1, "mlp"), one_neuron(index)
    weights = {p.name: p.weight for p in model.sites.values()}
    weights[model.sites[site].name] = merged_weight(model.sites[site].weight, edit.sites[site])
    assert fingerprint(weights) != model.fingerprint


def test_is_that_of_the_base_while_an_edit_is_merged_in() -> None:
    model = tiny_model("llama")
    with merged(model, one_neuron(0)):
        inside = model.fingerprint
    assert inside == tiny_model("llama").fingerprint
    assert model.fingerprint == tiny_model("llama").fingerprint


def test_the_description_for_artifacts() -> None:
    model = tiny_model("qwen3")
    assert model.describe() == {
        "name": "tiny-qwen3",
        "revision": None,
        "model_type": "qwen3",
        "fingerprint": model.fingerprint,
    }


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "llama4_text", "deepseek_v3"])
def test_an_edit_of_any_one_neuron_of_one_expert_is_seen(family: str) -> None:
    model = tiny_model(family)
    module = model.sites[Site(2, "mlp")]
    seen = {model.fingerprint}
    for projection in module.projections:  # the shared expert's among them
        for neuron in (0, projection.shape[1] - 1):
            original = projection.weight[:, neuron].clone()
            projection.weight[:, neuron] += 1
            seen.add(LanguageModel(model.network).fingerprint)
            projection.weight[:, neuron] = original
    assert len(seen) == 1 + 2 * len(module.projections)
    assert LanguageModel(model.network).fingerprint == model.fingerprint
