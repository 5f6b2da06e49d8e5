"""Each projection is found in the files that `save_pretrained` writes, whatever names and layouts they use there."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from families import ALL_FAMILIES, tiny_model, tiny_network
from steer2edit.core import Site
from steer2edit.errors import ModelError
from steer2edit.models import LanguageModel, StoredMatrix, load_skeleton, stored_matrices
from steer2edit.models.loading import model_class

# names in the files of Hub checkpoints of layer 1, by hand: of expert 2, or of fused experts
PER_EXPERT = {
    "qwen3_moe": "model.layers.1.mlp.experts.2.down_proj.weight",
    "qwen2_moe": "model.layers.1.mlp.experts.2.down_proj.weight",
    "olmoe": "model.layers.1.mlp.experts.2.down_proj.weight",
    "mixtral": "model.layers.1.block_sparse_moe.experts.2.w2.weight",
    "deepseek_v3": "model.layers.1.mlp.experts.2.down_proj.weight",
    "glm4_moe": "model.layers.1.mlp.experts.2.down_proj.weight",
    "qwen3_next": "model.layers.1.mlp.experts.2.down_proj.weight",
    "lfm2_moe": "model.layers.1.feed_forward.experts.2.w2.weight",
}
FUSED = {
    "gpt_oss": ("model.layers.1.mlp.experts.down_proj", True),
    "llama4_text": ("model.layers.1.feed_forward.experts.down_proj", True),
    "granitemoe": ("model.layers.1.block_sparse_moe.output_linear.weight", False),
    "granitemoeshared": ("model.layers.1.block_sparse_moe.output_linear.weight", False),
    "granitemoehybrid": ("model.layers.1.block_sparse_moe.output_linear.weight", False),
}


def saved(family: str, directory: Path) -> tuple[LanguageModel, dict[str, Tensor]]:
    """A checkpoint in the layout of the Hub's, the model loaded from it, and the tensors in its files."""
    tiny_network(family).save_pretrained(directory)
    config = AutoConfig.from_pretrained(directory)
    loaded = model_class(config).from_pretrained(directory)
    return LanguageModel(loaded), load_file(directory / "model.safetensors")


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...] | None]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def read(tensors: dict[str, Tensor], where: StoredMatrix) -> Tensor:
    stored = tensors[where.tensor]
    own = stored if where.expert is None else stored[where.expert]
    return own.T if where.transposed else own


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_the_stored_matrix_is_the_weight_bit_for_bit(family: str, tmp_path: Path) -> None:
    model, tensors = saved(family, tmp_path)
    found = stored_matrices(load_skeleton(str(tmp_path)), shapes(tensors))
    projections = {p.key: p for site in model.sites.values() for p in site.projections}
    assert found.keys() == projections.keys()
    for key, projection in projections.items():
        assert torch.equal(read(tensors, found[key]), projection.weight), key
    places = [(where.tensor, where.expert) for where in found.values()]
    assert len(places) == len(set(places))  # no two projections share a place
    if family in PER_EXPERT:
        key = f"{model.sites[Site(1, 'mlp')].name}.down_proj[2]"
        assert (found[key].tensor, found[key].expert, found[key].transposed) == (PER_EXPERT[family], None, False)
    if family in FUSED:
        key = f"{model.sites[Site(1, 'mlp')].name}.down_proj[2]"
        assert (found[key].tensor, found[key].expert, found[key].transposed) == (FUSED[family][0], 2, FUSED[family][1])


@pytest.mark.parametrize("other_way_round", [False, True])
def test_qwen3_vl_moe_files_of_either_layout(other_way_round: bool, tmp_path: Path) -> None:
    """Hub checkpoints hold the experts as [m, d], later ones as [d, m]: loading goes by the shape, and so do we."""
    _, tensors = saved("qwen3_vl_moe", tmp_path)
    fused = [name for name in tensors if re.search(r"experts\.(down|gate_up)_proj$", name)]
    assert len(fused) == 6
    if other_way_round:
        for name in fused:
            tensors[name] = tensors[name].transpose(1, 2).contiguous()
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    config = AutoConfig.from_pretrained(tmp_path)
    model = LanguageModel(model_class(config).from_pretrained(tmp_path))
    found = stored_matrices(load_skeleton(str(tmp_path)), shapes(tensors))
    for projection in model.sites[Site(1, "mlp")].projections:
        assert found[projection.key].transposed == other_way_round
        assert torch.equal(read(tensors, found[projection.key]), projection.weight)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt_oss", "llava"])
def test_a_missing_tensor(family: str, tmp_path: Path) -> None:
    model, tensors = saved(family, tmp_path)
    site = model.sites[Site(1, "mlp")]
    found = stored_matrices(model, shapes(tensors))
    del tensors[found[site.projections[-1].key].tensor]
    with pytest.raises(ModelError) as caught:
        stored_matrices(model, shapes(tensors))
    lost = len(site.projections) if family == "gpt_oss" else 1
    first = site.projections[0 if family == "gpt_oss" else -1].key
    assert f"have no tensor for {lost} of its projections ({first}, ...)" in str(caught.value)
    assert "config.json and the weights belong together" in str(caught.value)


def test_no_tensors_at_all() -> None:
    with pytest.raises(ModelError, match="no tensor for 6 of its projections"):
        stored_matrices(tiny_model("llama"), {})


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "mixtral"])
def test_shards_and_single_files_are_the_same_model(family: str, tmp_path: Path) -> None:
    """One fingerprint however the experts are stored: in many small shards, one file, or in memory."""
    network = tiny_network(family)
    network.save_pretrained(tmp_path / "one")
    network.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    loaded = [
        LanguageModel(model_class(network.config).from_pretrained(tmp_path / name)).fingerprint
        for name in ("one", "many")
    ]
    assert set(loaded) == {LanguageModel(network).fingerprint}
