"""GGUF adapters: exact keys, shapes and bytes; every architecture's names; what cannot be exported is refused."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from factor_models import sparse_edit

from families import FAMILIES, MULTIMODAL, tiny_model
from steer2edit.artifacts.edits.lora import lora_targets
from steer2edit.artifacts.edits.low_rank import combined_factors
from steer2edit.artifacts.exports.engines import write_gguf_lora
from steer2edit.core import Site, SiteEdit, WeightEdit
from steer2edit.errors import MismatchError, ModelError
from steer2edit.models import LanguageModel

# Family → architecture in GGUF, and the tensor names of layer 1's sites (of layer 2's, if that says 2), by hand from
# llama.cpp's models: attn_output, ffn_down, ffn_down_exps, ffn_down_shexp, ssm_out.
DENSE = ("attn_output", "ffn_down")
EXPERTS = ("attn_output", "ffn_down_exps")
SHARED = ("attn_output", "ffn_down_exps", "ffn_down_shexp")
EXPECTED: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "llama": ("llama", 1, DENSE),
    "mistral": ("llama", 1, DENSE),
    "qwen2": ("qwen2", 1, DENSE),
    "qwen3": ("qwen3", 1, DENSE),
    "gemma2": ("gemma2", 1, DENSE),
    "gemma3_text": ("gemma3", 1, DENSE),
    "phi3": ("phi3", 1, DENSE),
    "olmo2": ("olmo2", 1, DENSE),
    "granite": ("granite", 1, DENSE),
    "smollm3": ("smollm3", 1, DENSE),
    "cohere2": ("cohere2", 1, DENSE),
    "stablelm": ("stablelm", 1, DENSE),
    "starcoder2": ("starcoder2", 1, DENSE),
    "gpt_neox": ("gptneox", 1, DENSE),
    "falcon": ("falcon", 1, DENSE),
    "gpt2": ("gpt2", 1, DENSE),
    "qwen3_moe": ("qwen3moe", 1, EXPERTS),
    "mixtral": ("llama", 1, EXPERTS),
    "olmoe": ("olmoe", 1, EXPERTS),
    "gpt_oss": ("gpt-oss", 1, EXPERTS),
    "granitemoe": ("granitemoe", 1, EXPERTS),
    "granitemoeshared": ("granitemoe", 1, SHARED),
    "deepseek_v3": ("deepseek2", 1, SHARED),
    "glm4_moe": ("glm4moe", 1, SHARED),
    "llama4_text": ("llama4", 1, SHARED),
    "qwen3_next": ("qwen3next", 2, ("ssm_out", "ffn_down_exps", "ffn_down_shexp")),
    "lfm2": ("lfm2", 1, DENSE),
    "lfm2_moe": ("lfm2moe", 1, EXPERTS),
    "granitemoehybrid": ("granitehybrid", 2, ("ssm_out", "ffn_down_exps", "ffn_down_shexp")),
    "falcon_h1": ("falcon-h1", 1, DENSE),
    "gemma3": ("gemma3", 1, DENSE),
    "qwen2_5_vl": ("qwen2vl", 1, DENSE),
    "qwen3_vl": ("qwen3vl", 1, DENSE),
    "qwen3_vl_moe": ("qwen3vlmoe", 1, EXPERTS),
    "llava": ("llama", 1, DENSE),
    "mistral3": ("mistral3", 1, DENSE),
}
REFUSED = {
    "opt": r"'opt': llama\.cpp does not run OPT",
    "qwen2_moe": r"'qwen2moe' has no tensor for the output projection model\.layers\.0\.mlp\.down_proj\.weight",
}


def write(model: LanguageModel, edit: WeightEdit, path: Path, weight: float = 1.0) -> gguf.GGUFReader:
    factors = combined_factors([(edit, weight)])
    write_gguf_lora(model, lora_targets(model, factors), {"strength": "1.0"}, path)
    return gguf.GGUFReader(path)


def test_keys_shapes_and_bytes(tmp_path: Path) -> None:
    """Layer 1's attention only: u = −e_3, a = 0 … 31."""
    model = tiny_model("llama")
    u = torch.zeros(32)
    u[3] = -1
    edit = WeightEdit({Site(1, "attn"): SiteEdit(u, torch.arange(32.0), torch.ones(4), torch.ones(4))}, {"model": {}})
    reader = write(model, edit, tmp_path / "a.gguf")
    fields = {key: f.contents() for key, f in reader.fields.items() if not key.startswith("GGUF.")}
    assert fields == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 1.0,
        "steer2edit.schema_version": 1,
        "steer2edit.strength": "1.0",
    }
    assert reader.get_field("adapter.lora.alpha").types == [gguf.GGUFValueType.FLOAT32]
    a, b = reader.tensors
    assert (a.name, a.shape.tolist(), a.tensor_type.name) == ("blk.1.attn_output.weight.lora_a", [32, 1], "F32")
    assert (b.name, b.shape.tolist(), b.tensor_type.name) == ("blk.1.attn_output.weight.lora_b", [1, 32], "F32")
    raw = (tmp_path / "a.gguf").read_bytes()
    assert raw.startswith(b"GGUF\x03\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x06")  # version 3, 2 tensors, 6 keys
    assert raw[-256:] == np.arange(32, dtype="<f4").tobytes() + u.numpy().tobytes()


def test_the_same_adapter_gives_the_same_bytes(tmp_path: Path) -> None:
    model = tiny_model("qwen3_moe")
    for name in ("a.gguf", "b.gguf"):
        write(model, sparse_edit(model), tmp_path / name)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("family", [f for f in [*FAMILIES, *MULTIMODAL] if f not in REFUSED])
def test_every_family(tmp_path: Path, family: str) -> None:
    """Names by hand; and B A of every tensor is the edit of the weight as llama.cpp has it."""
    architecture, layer, expected = EXPECTED[family]
    model = tiny_model(family)
    edit = sparse_edit(model)
    reader = write(model, edit, tmp_path / "a.gguf")
    assert reader.get_field("general.architecture").contents() == architecture
    read = {t.name: np.array(t.data) for t in reader.tensors}
    in_layer = {name.removeprefix(f"blk.{layer}.") for name in read if name.startswith(f"blk.{layer}.")}
    assert in_layer == {f"{name}.weight.lora_{side}" for name in expected for side in "ab"}
    changes = {
        n.removesuffix(".lora_a"): read[n.replace("lora_a", "lora_b")] @ read[n] for n in read if n.endswith("a")
    }
    found = [changes.pop(name) for name in sorted(changes)]
    assert sum(f.size for f in found) == sum(
        p.shape[0] * p.shape[1] for s in model.sites.values() for p in s.projections
    )
    for site, site_edit in edit.sites.items():
        for p in model.sites[site].projections:
            dense = site_edit.part(p.columns).dense().numpy()
            candidates = found if p.expert is None else [f[p.expert] for f in found if f.ndim == 3]
            assert any(c.shape == dense.shape and np.abs(c - dense).max() < 1e-6 for c in candidates), p.key


def test_falcon_h1s_multipliers_are_in_its_gguf(tmp_path: Path) -> None:
    """llama.cpp has W · multiplier, so the edit is multiplied too."""
    model = tiny_model("falcon_h1", attention_out_multiplier=0.5, mlp_multipliers=[1.0, 3.0])
    edit = sparse_edit(model)
    read = {t.name: np.array(t.data) for t in write(model, edit, tmp_path / "a.gguf").tensors}
    for block, name, multiplier in (("attn", "attn_output", 0.5), ("mlp", "ffn_down", 3.0)):
        row = edit.sites[Site(1, block)].row
        assert np.array_equal(read[f"blk.1.{name}.weight.lora_a"][0], row.numpy() * np.float32(multiplier))


def test_a_layer_that_llamacpp_does_not_know(tmp_path: Path) -> None:
    """llama.cpp's Qwen2-MoE has no layers without experts; with experts in all of them there is nothing to refuse."""
    model = tiny_model("qwen2_moe", mlp_only_layers=[])
    reader = write(model, sparse_edit(model), tmp_path / "a.gguf")
    assert reader.get_field("general.architecture").contents() == "qwen2moe"
    assert {t.name.split(".")[2] for t in reader.tensors} == set(SHARED)


def test_every_claimed_family_is_covered() -> None:
    assert set(EXPECTED) | set(REFUSED) == {*FAMILIES, *MULTIMODAL}


@pytest.mark.parametrize("family", REFUSED)
def test_refused(tmp_path: Path, family: str) -> None:
    model = tiny_model(family)
    with pytest.raises(ModelError, match=REFUSED[family]):
        write(model, sparse_edit(model), tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_a_granite_hybrid_without_mixers_is_a_granite(tmp_path: Path) -> None:
    model = tiny_model("granitemoehybrid", layer_types=["attention"] * 3)
    reader = write(model, sparse_edit(model), tmp_path / "a.gguf")
    assert reader.get_field("general.architecture").contents() == "granitemoe"
    model = tiny_model("granitemoehybrid", layer_types=["attention"] * 3, num_local_experts=0)
    reader = write(model, sparse_edit(model), tmp_path / "b.gguf")
    assert reader.get_field("general.architecture").contents() == "granite"
    assert "blk.2.ffn_down.weight.lora_a" in {t.name for t in reader.tensors}


def test_an_unknown_model_type(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.network.config.model_type = "lama"
    with pytest.raises(ModelError, match=r"'lama': it has no known name in GGUF.* Did you mean 'llama'\?"):
        write(model, sparse_edit(model), tmp_path / "a.gguf")


def test_an_edit_of_another_shape(tmp_path: Path) -> None:
    edit = sparse_edit(tiny_model("llama"))
    with pytest.raises(MismatchError, match=r"L0\.attn: these edits are for a weight of shape \[32, 32\]"):
        write(tiny_model("qwen3"), edit, tmp_path / "a.gguf")
