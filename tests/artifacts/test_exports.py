"""One adapter per strength, in three formats: exact keys, the strength folded in, complete or absent."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from artifact_models import logits, relative
from factor_models import sparse_edit
from peft import PeftModel
from safetensors.torch import load_file, save_file

from families import tiny_model, tiny_network
from steer2edit.artifacts import load_edit, save_edit
from steer2edit.artifacts.edits.adapter import read_members, save_combined
from steer2edit.artifacts.exports.engines import max_lora_rank
from steer2edit.artifacts.exports.export import export_edit, read_export
from steer2edit.core import Site
from steer2edit.editing import merged
from steer2edit.errors import ArtifactError, InvalidValueError, ModelError
from steer2edit.models import LanguageModel


def saved(folder: Path, family: str = "llama", name: str = "edit", seed: int = 1) -> tuple[LanguageModel, Path]:
    model = tiny_model(family)
    save_edit(model, sparse_edit(model, seed), folder / name)
    return model, folder / name


def test_peft_one_adapter_per_strength(tmp_path: Path) -> None:
    model, edit = saved(tmp_path)
    manifest = export_edit(edit, "peft", [0.5, 1.0, -2.0], tmp_path / "out")
    names = ["strength-0.5", "strength-1", "strength-minus-2"]
    assert [a.path for a in manifest.adapters] == names
    assert {p.name for p in (tmp_path / "out").iterdir()} == {*names, "steer2edit.json", "README.md"}
    for name, strength in zip(names, (0.5, 1.0, -2.0), strict=True):
        with merged(model, load_edit(edit), strength):
            expected_logits = logits(model.network)
        adapter = PeftModel.from_pretrained(tiny_network("llama"), tmp_path / "out" / name)
        assert relative(logits(adapter), expected_logits) < 1e-4
        require_scaled(edit, tmp_path / "out" / name, strength)
    assert read_export(tmp_path / "out") == manifest


def require_scaled(edit: Path, adapter: Path, strength: float) -> None:
    """The adapter is PEFT's two files of the edit, with every A multiplied, and at strength 1 the same bytes."""
    assert {p.name for p in adapter.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (edit, adapter))
    assert before.keys() == after.keys()
    for key in before:
        assert torch.equal(after[key], before[key] * (strength if "lora_A" in key else 1.0))
    for path in adapter.iterdir():
        if strength == 1 or path.suffix == ".json":
            assert path.read_bytes() == (edit / path.name).read_bytes()


def test_a_combined_edit_as_peft(tmp_path: Path) -> None:
    model, edit = saved(tmp_path)
    saved(tmp_path, name="other", seed=2)
    save_combined(model, read_members([edit, tmp_path / "other"], [1.0, -0.5]), tmp_path / "both")
    export_edit(tmp_path / "both", "peft", [3.0], tmp_path / "out")
    require_scaled(tmp_path / "both", tmp_path / "out/strength-3", 3.0)


def test_gguf(tmp_path: Path) -> None:
    model, edit = saved(tmp_path)
    manifest = export_edit(edit, "gguf-lora", [0.5, 1.0], tmp_path / "out", model=model)
    assert [a.path for a in manifest.adapters] == ["edit-strength-0.5.gguf", "edit-strength-1.gguf"]
    reader = gguf.GGUFReader(tmp_path / "out" / "edit-strength-0.5.gguf")
    notes = {k: f.contents() for k, f in reader.fields.items() if k.startswith("steer2edit.")}
    assert notes["steer2edit.strength"] == "0.5"
    assert notes["steer2edit.base_model.fingerprint"] == model.fingerprint
    (a,) = [t for t in reader.tensors if t.name == "blk.2.ffn_down.weight.lora_a"]
    assert np.array_equal(np.array(a.data)[0], 0.5 * load_edit(edit).sites[Site(2, "mlp")].row.numpy())


def test_gguf_of_a_combined_edit_has_its_rank(tmp_path: Path) -> None:
    model, edit = saved(tmp_path)
    saved(tmp_path, name="other", seed=2)
    save_combined(model, read_members([edit, tmp_path / "other"], [1.0, 1.0]), tmp_path / "both")
    export_edit(tmp_path / "both", "gguf-lora", [1.0], tmp_path / "out", model=model)
    reader = gguf.GGUFReader(tmp_path / "out" / "both-strength-1.gguf")
    assert reader.get_field("adapter.lora.alpha").contents() == 2.0
    assert {int(t.shape[1 if t.name.endswith("a") else 0]) for t in reader.tensors} == {2}


def test_vllm_takes_a_dense_edit_as_it_is(tmp_path: Path) -> None:
    _, edit = saved(tmp_path)
    manifest = export_edit(edit, "vllm", [1.0], tmp_path / "out")
    require_scaled(edit, tmp_path / "out" / "strength-1", 1.0)
    assert "--enable-lora --max-lora-rank 1 --max-loras 2 --lora-modules strength-1=" in manifest.usage[0]


VLLM_EXPERTS = {
    "qwen3_moe": ("mlp.experts", ("gate_proj", "up_proj", "down_proj")),
    "olmoe": ("mlp.experts", ("gate_proj", "up_proj", "down_proj")),
    "deepseek_v3": ("mlp.experts", ("gate_proj", "up_proj", "down_proj")),
    "qwen3_next": ("mlp.experts", ("gate_proj", "up_proj", "down_proj")),
    "granitemoe": ("block_sparse_moe.experts", ("gate_proj", "up_proj", "down_proj")),
    "mixtral": ("block_sparse_moe.experts", ("w1", "w3", "w2")),
}


@pytest.mark.parametrize("family", VLLM_EXPERTS)
def test_vllm_wants_every_projection_of_every_expert(tmp_path: Path, family: str) -> None:
    path, (gate, up, down) = VLLM_EXPERTS[family]
    model, edit = saved(tmp_path, family)
    export_edit(edit, "vllm", [2.0], tmp_path / "out", model=model)
    tensors = load_file(tmp_path / "out" / "strength-2" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "out" / "strength-2" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_parameters"]) == (1, 1, None)
    site_edit = load_edit(edit).sites[Site(2, "mlp")]
    routed = model.sites[Site(2, "mlp")].routed
    for p in routed:
        prefix = f"base_model.model.model.layers.2.{path}.{p.expert}"
        width = p.shape[1]
        for name in (gate, up):
            assert tensors[f"{prefix}.{name}.lora_A.weight"].shape == (1, 32)
            assert tensors[f"{prefix}.{name}.lora_B.weight"].shape == (width, 1)
            assert not tensors[f"{prefix}.{name}.lora_A.weight"].any()
        assert torch.equal(tensors[f"{prefix}.{down}.lora_A.weight"][0], 2 * site_edit.row[p.columns])
        assert torch.equal(tensors[f"{prefix}.{down}.lora_B.weight"][:, 0], site_edit.output_direction)
    in_layer = [key for key in tensors if f"layers.2.{path}." in key]
    assert len(in_layer) == 6 * len(routed)


def test_vllm_with_fused_experts(tmp_path: Path) -> None:
    model, edit = saved(tmp_path, "gpt_oss")
    export_edit(edit, "vllm", [1.0], tmp_path / "out", model=model)
    tensors = load_file(tmp_path / "out" / "strength-1" / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.1.mlp.experts"
    site_edit = load_edit(edit).sites[Site(1, "mlp")]
    assert torch.equal(tensors[f"{prefix}.lora_A.weight"], site_edit.row.view(4, 48))
    assert torch.equal(tensors[f"{prefix}.lora_B.weight"], site_edit.output_direction[:, None].expand(-1, 4))
    assert tensors[f"{prefix}.base_layer.lora_A.weight"].shape == (4, 32)
    assert tensors[f"{prefix}.base_layer.lora_B.weight"].shape == (96, 4)
    assert not tensors[f"{prefix}.base_layer.lora_B.weight"].any()


def test_vllm_ranks() -> None:
    assert [max_lora_rank(rank) for rank in (1, 2, 8, 9, 500)] == [1, 8, 8, 16, 512]


class TestRefused:
    @pytest.mark.parametrize(
        ("strengths", "message"),
        [
            ([], "no strength is given"),
            ([0.0], "other than 0, got 0.0: 1 is the edit as it is, 0 the base"),
            ([float("nan")], "got nan"),
            ([float("inf")], "got inf"),
            ([1.0, 0.5, 1.0], "the strength 1 is given twice"),
            ([1e39], r"is not finite at strength 1e\+39"),
        ],
    )
    def test_strengths(self, tmp_path: Path, strengths: list[float], message: str) -> None:
        _, edit = saved(tmp_path)
        with pytest.raises(InvalidValueError, match=message):
            export_edit(edit, "peft", strengths, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_too_strong_for_a_gguf(self, tmp_path: Path) -> None:
        model, edit = saved(tmp_path)
        with pytest.raises(InvalidValueError, match="the edits are not finite"):
            export_edit(edit, "gguf-lora", [1e39], tmp_path / "out", model=model)

    def test_strengths_that_look_alike(self, tmp_path: Path) -> None:
        _, edit = saved(tmp_path)
        manifest = export_edit(edit, "peft", [0.1234567, 0.1234568], tmp_path / "out")
        assert [a.path for a in manifest.adapters] == ["strength-0.1234567", "strength-0.1234568"]

    def test_a_format(self, tmp_path: Path) -> None:
        _, edit = saved(tmp_path)
        with pytest.raises(InvalidValueError, match=r"unknown format 'gguf'\. Did you mean 'gguf-lora'\?"):
            export_edit(edit, "gguf", [1.0], tmp_path / "out")

    def test_a_base_that_is_not_where_the_edit_says(self, tmp_path: Path) -> None:
        model, edit = saved(tmp_path)
        with pytest.raises(ModelError, match=model.name):
            export_edit(edit, "gguf-lora", [1.0], tmp_path / "out")
        with pytest.raises(ModelError, match="nowhere"):
            export_edit(edit, "gguf-lora", [1.0], tmp_path / "out", model=str(tmp_path / "nowhere"))

    def test_experts_that_vllm_is_not_known_to_take(self, tmp_path: Path) -> None:
        model, edit = saved(tmp_path, "llama4_text")
        with pytest.raises(ModelError, match="where vLLM looks for adapters of the experts of 'llama4_text'"):
            export_edit(edit, "vllm", [1.0], tmp_path / "out", model=model)
        assert not (tmp_path / "out").exists()

    def test_a_damaged_edit(self, tmp_path: Path) -> None:
        _, edit = saved(tmp_path)
        tensors = load_file(edit / "adapter_model.safetensors")
        next(iter(tensors.values())).fill_(float("nan"))
        save_file(tensors, edit / "adapter_model.safetensors")
        with pytest.raises(ArtifactError, match="another SHA-256"):
            export_edit(edit, "peft", [1.0], tmp_path / "out")

    def test_what_is_there_is_not_replaced(self, tmp_path: Path) -> None:
        _, edit = saved(tmp_path)
        export_edit(edit, "peft", [1.0], tmp_path / "out")
        with pytest.raises(ArtifactError, match="exists already"):
            export_edit(edit, "peft", [1.0], tmp_path / "out")
        export_edit(edit, "peft", [2.0], tmp_path / "out", overwrite=True)
        assert not (tmp_path / "out" / "strength-1").exists()
