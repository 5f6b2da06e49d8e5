"""Damaged and hostile files at random: a clear error or the right result, never a wrong file or another exception."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from artifact_models import random_edit
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from families import tiny_network
from steer2edit.artifacts import CheckpointManifest, apply_to_files, open_base, read_manifest, verify_checkpoint
from steer2edit.artifacts.checkpoints.files import open_checkpoint, open_tensors
from steer2edit.core import WeightEdit
from steer2edit.errors import Steer2EditError
from steer2edit.models import LanguageModel

FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.sampled_from([0, 1, 4, 8, 12, 16]), st.floats(),
    st.text(max_size=8), st.sampled_from(["F32", "BF16", "F4", "a", "b", "../x.safetensors", "two.safetensors"]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)


def paths(value: Any) -> list[tuple[Any, ...]]:
    """Places in a JSON value, by the keys that lead there."""
    found: list[tuple[Any, ...]] = [()]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += [(key, *path) for path in paths(inner)]
    return found


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one to three places replaced, removed, or renamed."""
    content = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        places = [path for path in paths(content) if path]
        if not places:
            break
        path = draw(st.sampled_from(places))
        holder = content
        for key in path[:-1]:
            holder = holder[key]
        action = draw(st.sampled_from(["replace", "remove", "rename"]))
        if action == "replace":
            holder[path[-1]] = draw(VALUES)
        else:
            taken = holder.pop(path[-1])
            if action == "rename" and isinstance(holder, dict):
                holder[draw(st.text(max_size=5))] = taken
    return content


@st.composite
def damaged(draw: st.DrawFn, raw: bytes) -> bytes:
    """Bytes with some of them changed, cut out or put in."""
    content = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        end = min(len(content), at + draw(st.integers(0, 8)))
        content[at:end] = draw(st.binary(max_size=8))
    return bytes(content)


TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.tensor([7, 8])}


def header_of(raw: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def require_as_safetensors_reads(path: Path) -> None:
    """Refused, or read: then safetensors itself reads the same (it knows fewer rules, and all of these dtypes)."""
    try:
        found = open_tensors(path)
    except Steer2EditError:
        return
    try:
        with safe_open(path, framework="pt") as file:
            assert set(file.keys()) == found.keys()
            for name, tensor in found.items():
                assert tuple(file.get_slice(name).get_shape()) == tensor.shape
                assert file.get_slice(name).get_dtype() == tensor.dtype_name
                if tensor.dtype_name[:2] not in ("F4", "F6", "F8", "C6") and 0 not in tensor.shape:
                    raw = file.get_tensor(name).reshape(tensor.rows, tensor.columns).view(torch.uint8)
                    assert torch.equal(raw, tensor.read_rows(0, tensor.rows).view(torch.uint8))
    except (SafetensorError, ValueError, OverflowError) as error:
        raise AssertionError(f"accepted what safetensors refuses: {error}") from error


@FUZZ
@given(data=st.data())
def test_bytes_of_a_safetensors_file(tmp_path: Path, data: st.DataObject) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", {"format": "pt"})
    (tmp_path / "y.safetensors").write_bytes(data.draw(damaged((tmp_path / "x.safetensors").read_bytes())))
    require_as_safetensors_reads(tmp_path / "y.safetensors")


@FUZZ
@given(data=st.data())
def test_fields_of_a_header(tmp_path: Path, data: st.DataObject) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", {"format": "pt"})
    header, values = header_of((tmp_path / "x.safetensors").read_bytes())
    text = json.dumps(data.draw(changed(header))).encode()
    (tmp_path / "y.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + values)
    require_as_safetensors_reads(tmp_path / "y.safetensors")


@FUZZ
@given(data=st.data())
def test_fields_of_an_index(tmp_path: Path, data: st.DataObject) -> None:
    save_file({"a": TENSORS["a"]}, tmp_path / "one.safetensors")
    save_file({"b": TENSORS["b"]}, tmp_path / "two.safetensors")
    index = {"metadata": {"total_size": 32}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    raw = json.dumps(data.draw(changed(index))).encode()
    (tmp_path / "model.safetensors.index.json").write_bytes(data.draw(st.just(raw) | damaged(raw)))
    try:
        files = open_checkpoint(tmp_path)
    except Steer2EditError:
        return
    assert files.tensors
    for name, tensor in files.tensors.items():
        assert torch.equal(tensor.read_rows(0, tensor.rows).view(-1), TENSORS[name].view(-1))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, WeightEdit]:
    """A base, a checkpoint edited from it, and the edit."""
    directory = tmp_path_factory.mktemp("fuzz")
    network = tiny_network("llama")
    network.save_pretrained(directory / "base", max_shard_size="40KB")
    edit = random_edit(LanguageModel(network, name="tiny"))
    apply_to_files(str(directory / "base"), [(edit, 1.0)], directory / "out")
    return directory / "base", directory / "out", edit


@FUZZ
@given(data=st.data())
def test_fields_of_a_manifest(tmp_path: Path, written: tuple[Path, Path, WeightEdit], data: st.DataObject) -> None:
    raw = json.loads((written[1] / "steer2edit.json").read_text())
    text = json.dumps(data.draw(changed(raw))).encode()
    (tmp_path / "steer2edit.json").write_bytes(data.draw(st.just(text) | damaged(text)))
    try:
        manifest = read_manifest(tmp_path, CheckpointManifest)
    except Steer2EditError:
        return
    assert manifest.kind == "edited-checkpoint"
    assert manifest.edits
    assert all(record.file for record in manifest.edited_tensors.values())


@FUZZ
@given(data=st.data())
def test_a_damaged_base_gives_no_wrong_checkpoint(
    tmp_path: Path, written: tuple[Path, Path, WeightEdit], data: st.DataObject
) -> None:
    """One file of the base is damaged: an error and nothing at the target, or exactly that base with the edit."""
    base, out = tmp_path / "base", tmp_path / "out"
    for path in (base, out):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(written[0], base)
    path = data.draw(st.sampled_from(sorted(p for p in base.iterdir() if p.name != "generation_config.json")))
    raw = path.read_bytes()
    if path.suffix == ".safetensors":
        header, values = header_of(raw)
        text = json.dumps(data.draw(changed(header))).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + values)
    else:
        path.write_bytes(json.dumps(data.draw(changed(json.loads(raw)))).encode())
    edits = [(written[2], 1.0)]
    try:
        opened = open_base(str(base))
        apply_to_files(opened, edits, out)
    except Steer2EditError:
        assert not out.exists()
        assert {p.name for p in tmp_path.iterdir()} == {"base"}
        return
    assert verify_checkpoint(opened, edits, out) == len(opened.files.tensors)
    for side in ("config.json", "model.safetensors.index.json"):
        assert (out / side).read_bytes() == (base / side).read_bytes()
