"""Whatever else may have been done to a checkpoint is reported as what it is."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from planted_edits import changed_copy, plant, plant_in, tiny_base
from safetensors.torch import load_file, save_file
from torch import Tensor

from steer2edit.audit import Audit, TensorChange, audit
from steer2edit.errors import ArtifactError, MismatchError, ModelError

Q_PROJ, O_PROJ = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.o_proj.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_base(tmp_path / "base")
    return tmp_path / "base"


def by_name(found: Audit) -> dict[str, TensorChange]:
    return {change.name: change for change in found.changes}


def test_identical(base: Path, tmp_path: Path) -> None:
    found = audit(str(base), shutil.copytree(base, tmp_path / "copy"))
    assert found.classification.label == "identical"
    assert found.identical == found.compared == len(load_file(base / "model.safetensors"))
    assert found.changes == ()
    assert found.structure.files == {}


@pytest.mark.parametrize("name", ["lm_head.weight", Q_PROJ, "model.norm.weight"])
def test_one_tampered_entry_next_to_an_edit_is_found(name: str, tmp_path: Path) -> None:
    planted = plant(tmp_path)

    def tamper(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[7] += 0.5

    found = audit(str(planted.base), changed_copy(planted.edited, tmp_path / "tampered", tamper))
    change = by_name(found)[name]
    assert (change.kind, change.changed) == ("entries", 1)
    columns = change.shape[1]
    assert change.entries == ((7 // columns, 7 % columns),)
    assert found.classification.label == "steer2edit-like"
    assert f"Besides: single entries changed in {name}" in found.classification.sentence


def test_tampered_entries_within_an_edited_projection_are_located(tmp_path: Path) -> None:
    planted = plant(tmp_path)

    def tamper(tensors: dict[str, Tensor]) -> None:
        tensors[O_PROJ][3, 5] += 0.8
        tensors[O_PROJ][20, 11] -= 0.1

    found = audit(str(planted.base), changed_copy(planted.edited, tmp_path / "tampered", tamper))
    change = by_name(found)[O_PROJ]
    assert (change.kind, change.unexplained) == ("rank-1", 2)
    assert {(row, column) for row, column, _ in change.exceptions} == {(3, 5), (20, 11)}
    assert "no rank-1 change explains" in found.classification.sentence


def test_full_fine_tune(base: Path, tmp_path: Path) -> None:
    def train(tensors: dict[str, Tensor]) -> None:
        torch.manual_seed(0)
        for tensor in tensors.values():
            tensor += 0.02 * torch.randn(tensor.shape).to(tensor.dtype)

    found = audit(str(base), changed_copy(base, tmp_path / "tuned", train))
    assert found.classification.label == "full-rank"
    assert f"full-rank change in 23 of {found.compared} tensors" in found.classification.sentence
    assert by_name(found)[Q_PROJ].kind == "full-rank"
    assert by_name(found)["model.norm.weight"].kind == "vector"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["float16", "float32"])
def test_copies_in_another_dtype(dtype: torch.dtype, base: Path, tmp_path: Path) -> None:
    found = audit(str(base), changed_copy(base, tmp_path / "cast", lambda tensors: _cast(tensors, dtype)))
    assert found.classification.label == "rounded-copy"
    assert all(change.is_tiny for change in found.changes)
    back = audit(str(tmp_path / "cast"), base)
    assert back.classification.label == "rounded-copy"


def _cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    tensors |= {name: tensor.to(dtype) for name, tensor in tensors.items()}


def test_rounded_through_float8_in_the_same_dtype(base: Path, tmp_path: Path) -> None:
    def quantise(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = tensor.to(torch.float8_e4m3fn).to(tensor.dtype)

    found = audit(str(base), changed_copy(base, tmp_path / "fp8", quantise))
    assert found.classification.label == "rounded-copy"
    assert "float8_e4m3fn" in found.classification.sentence


def test_edit_of_a_float32_base_saved_in_bfloat16(tmp_path: Path) -> None:
    planted = plant(tmp_path, dtype=torch.float32)
    changed = changed_copy(planted.edited, tmp_path / "bf16", lambda tensors: _cast(tensors, torch.bfloat16))
    found = audit(str(planted.base), changed, planted.edit)
    assert found.classification.label == "steer2edit-like"
    assert found.match is not None
    assert found.match.matches
    assert found.match.strength == 1


def test_noise_of_one_spacing_is_rounding(base: Path, tmp_path: Path) -> None:
    def jitter(tensors: dict[str, Tensor]) -> None:
        bits = tensors[Q_PROJ].view(torch.int16)
        bits[::2] ^= 1

    found = audit(str(base), changed_copy(base, tmp_path / "jitter", jitter))
    assert by_name(found)[Q_PROJ].kind == "rounding"
    assert "up to rounding" in found.classification.sentence


def test_missing_and_added_tensors_and_shapes(base: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["model.layers.2.input_layernorm.weight"]
        tensors["model.extra"] = torch.ones(3)
        tensors["copy"] = tensors["model.embed_tokens.weight"].clone()
        tensors[Q_PROJ] = torch.zeros(5, 5)

    found = audit(str(base), changed_copy(base, tmp_path / "other", change))
    assert set(found.structure.missing) == {"model.layers.2.input_layernorm.weight"}
    assert set(found.structure.added) == {"model.extra", "copy"}
    assert found.structure.other_shape == {Q_PROJ: ((32, 32), (5, 5))}
    assert found.classification.label == "other"
    for phrase in ("2 tensors added (model.extra; copy)", "1 tensor missing (", "1 tensor of another shape"):
        assert phrase in found.classification.sentence.replace("copy; model.extra", "model.extra; copy")


def test_shards_of_another_size_are_no_difference(tmp_path: Path) -> None:
    model = tiny_base(tmp_path / "base")
    plant_in(model, tmp_path / "edited", blocks=("mlp",))
    model.network.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    one, several = (audit(str(tmp_path / "base"), tmp_path / name) for name in ("edited", "sharded"))
    assert several.classification == one.classification
    assert several.structure.files == {}


def test_not_finite(base: Path, tmp_path: Path) -> None:
    def break_it(tensors: dict[str, Tensor]) -> None:
        tensors[O_PROJ][0, 0] = float("nan")

    found = audit(str(base), changed_copy(base, tmp_path / "nan", break_it))
    assert by_name(found)[O_PROJ].kind == "not-finite"
    assert "NaN or infinite" in found.classification.sentence
    json.dumps(found.as_json(), allow_nan=False)


def test_integers_are_compared_bit_by_bit(base: Path, tmp_path: Path) -> None:
    for name, value in (("one", 1), ("two", 2)):
        changed_copy(base, tmp_path / name, lambda tensors, v=value: tensors.update(count=torch.tensor([v])))
    assert by_name(audit(str(tmp_path / "one"), tmp_path / "two"))["count"].kind == "bits"


def test_formats_that_torch_has_not_are_compared_bit_by_bit(base: Path, tmp_path: Path) -> None:
    for name, content in (("one", b"\x11\x22"), ("same", b"\x11\x22"), ("two", b"\x11\x23")):
        shutil.copytree(base, tmp_path / name)
        file = tmp_path / name / "model.safetensors"
        raw = file.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
        header["packed"] = {"dtype": "F4", "shape": [4], "data_offsets": [len(data), len(data) + 2]}
        written = json.dumps(header).encode()
        file.write_bytes(len(written).to_bytes(8, "little") + written + data + content)
    assert by_name(audit(str(tmp_path / "one"), tmp_path / "two"))["packed"].kind == "bits"
    assert audit(str(tmp_path / "one"), tmp_path / "same").classification.label == "identical"


def test_other_files(base: Path, tmp_path: Path) -> None:
    other = shutil.copytree(base, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    (other / "modeling_own.py").write_text("import os")
    (other / "generation_config.json").unlink()
    (other / "pytorch_model.bin").write_bytes(b"weights in another format")
    found = audit(str(base), other)
    assert set(found.structure.files.items()) == {
        ("config.json", "differs"), ("modeling_own.py", "added"),
        ("pytorch_model.bin", "added"), ("generation_config.json", "missing"),
    }  # fmt: skip
    assert "other files that differ" in found.classification.sentence


def test_weights_with_an_adapter_beside_them(base: Path, tmp_path: Path) -> None:
    other = shutil.copytree(base, tmp_path / "other")
    (other / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="both a model's weights and an adapter"):
        audit(str(base), other)


def test_unknown_architecture_is_compared_without_names_of_heads(base: Path, tmp_path: Path) -> None:
    other = changed_copy(base, tmp_path / "edited", lambda tensors: tensors[O_PROJ].add_(0.25))
    for directory in (base, other):
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "no_such_model"}))
    found = audit(str(base), other)
    assert by_name(found)[O_PROJ].rank == 1
    assert "heads and neurons cannot be named" in found.notes[0]


def test_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    def reshape(tensors: dict[str, Tensor]) -> None:
        tensors |= {name: torch.zeros(*(size + 2 for size in tensor.shape)) for name, tensor in tensors.items()}

    with pytest.raises(MismatchError, match=r"is no edit of .* \[96, 32\] in the base and \[98, 34\]"):
        audit(str(base), changed_copy(base, tmp_path / "wide", reshape))
    tiny_base(tmp_path / "gpt2", "gpt2")
    with pytest.raises(MismatchError, match="has only 0 of the"):
        audit(str(base), tmp_path / "gpt2")


def test_bad_directories(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        audit(str(base), str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        audit(str(base), tmp_path / "empty")
    broken = shutil.copytree(base, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="truncated"):
        audit(str(base), broken)


def test_json_has_everything(tmp_path: Path) -> None:
    planted = plant(tmp_path)
    written = json.loads(json.dumps(audit(str(planted.base), planted.edited, planted.edit).as_json(), allow_nan=False))
    assert written["schema_version"] == 1
    assert written["classification"]["label"] == "steer2edit-like"
    changed = {change["site"]: change for change in written["tensors"]["changed"]}
    head = changed["L1.attn"]["components"][0]
    lam = planted.magnitudes[next(site for site in planted.magnitudes if str(site) == "L1.attn")]
    strongest = int(lam.abs().argmax())
    assert head["component"] == f"L1.H{strongest}"
    assert head["magnitude"] == pytest.approx(float(lam[strongest]), abs=0.01)
    assert written["match"]["matches"] is True


def test_large_matrices_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With blocks of a few rows, and nothing kept, the same is found."""
    from steer2edit.audit import matrices

    planted = plant(tmp_path)
    whole = audit(str(planted.base), planted.edited)
    monkeypatch.setattr(matrices, "_BLOCK_ENTRIES", 200)
    monkeypatch.setattr(matrices, "_CACHED_ENTRIES", 1200)
    parts = audit(str(planted.base), planted.edited)
    assert [(c.name, c.kind, c.changed) for c in parts.changes] == [(c.name, c.kind, c.changed) for c in whole.changes]
    for one, other in zip(parts.changes, whole.changes, strict=True):
        assert one.recovered is not None
        assert other.recovered is not None
        assert (one.recovered.magnitude - other.recovered.magnitude).abs().max() < 0.02


def test_save_file_of_the_tests_keeps_other_tensors(base: Path, tmp_path: Path) -> None:
    copy = changed_copy(base, tmp_path / "copy", lambda tensors: None)
    save_file(load_file(copy / "model.safetensors"), tmp_path / "again.safetensors", {"format": "pt"})
    assert audit(str(base), copy).classification.label == "identical"
