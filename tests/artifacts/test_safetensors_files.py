"""Headers and indices of checkpoints, read strictly: hostile and damaged ones are refused, and why is said."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from steer2edit.artifacts.checkpoints.files import open_checkpoint, open_tensors
from steer2edit.errors import ArtifactError


def safetensors(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn]
    tensors = {f"t{i}": torch.randn(3, 5, 7).to(dtype) for i, dtype in enumerate(dtypes)}
    tensors |= {"ints": torch.arange(6).view(2, 3), "bool": torch.tensor([True, False, True])}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    found = open_tensors(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    raw = (tmp_path / "x.safetensors").read_bytes()
    for name, tensor in tensors.items():
        stored = found[name]
        assert (stored.shape, stored.dtype) == (tuple(tensor.shape), tensor.dtype)
        flat = tensor.reshape(stored.rows, stored.columns)
        assert raw[stored.begin : stored.end] == flat.view(torch.uint8).numpy().tobytes()
        assert torch.equal(stored.read_rows(0, stored.rows).view(torch.uint8), flat.view(torch.uint8))
        assert b"".join(stored.blocks()) == raw[stored.begin : stored.end]
    part = found["t1"].read_rows(4, 9)
    assert torch.equal(part, tensors["t1"].reshape(15, 7)[4:9])


def test_a_file_that_was_truncated_meanwhile(tmp_path: Path) -> None:
    save_file({"x": torch.ones(4, 2)}, tmp_path / "model.safetensors")
    stored = open_checkpoint(tmp_path).tensors["x"]
    assert torch.equal(stored.read_rows(1, 3), torch.ones(2, 2))
    os.truncate(tmp_path / "model.safetensors", stored.end - 1)
    with pytest.raises(ArtifactError, match="was truncated meanwhile"):
        stored.read_rows(0, 4)


HOSTILE: dict[str, tuple[object, bytes, str]] = {
    "not JSON": (b"{,}", b"", "invalid JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "invalid UTF-8"),
    "a list": ([1], b"", "invalid JSON"),
    "deep": (b"[" * 200_000, b"", "invalid JSON"),
    "a key twice": (
        b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, '
        b'"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', b"0000", "'x' is there twice",
    ),
    "a list for an entry": (b'{"x": ["F32", [1], [0, 4]]}', b"0000", "is not a sound safetensors file"),
    "texts that are numbers": ({"__metadata__": {"format": 1}}, b"", "invalid type: integer"),
    "an unknown dtype": ({"x": entry(0, 4, dtype="F33")}, bytes(4), "unknown variant"),
    "a negative size": ({"x": entry(0, 4, [-1])}, bytes(4), "invalid value"),
    "an astronomic shape": ({"x": entry(0, 4, [2**62] * 16)}, bytes(4), "overflow"),
    "offsets the wrong way": ({"x": {**entry(0, 4), "data_offsets": [4, 0]}}, bytes(4), "invalid offset"),
    "size against shape": ({"x": entry(0, 8, [3])}, bytes(8), "info data offset mismatch|invalid shape"),
    "half a byte": ({"x": entry(0, 1, [3], "F4")}, bytes(1), "byte boundary"),
    "out of range": ({"x": entry(0, 8)}, bytes(4), "incomplete"),
    "bytes at the end": ({"x": entry(0, 4)}, bytes(8), "not fully covered"),
    "a hole": ({"x": entry(0, 4), "y": entry(8, 12)}, bytes(12), "invalid offset"),
    "an overlap": ({"x": entry(0, 8), "y": entry(4, 12)}, bytes(12), "invalid offset"),
    "the same bytes twice": ({"x": entry(0, 8), "y": entry(0, 8)}, bytes(8), "invalid offset"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_header(tmp_path: Path, kind: str) -> None:
    """Nearly all of this is refused by safetensors itself; what counts is that nothing of it is accepted."""
    header, data, message = HOSTILE[kind]
    with pytest.raises(ArtifactError, match=message):
        open_tensors(safetensors(tmp_path / "x.safetensors", header, data))


@pytest.mark.parametrize("length", [3, 2**20, 100_000_001, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file(tmp_path: Path, length: int) -> None:
    with pytest.raises(ArtifactError, match="is not a sound safetensors file"):
        open_tensors(safetensors(tmp_path / "x.safetensors", b"{}", length=length))


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"1234")
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("short", "header too small"),
        ("pipe", "is not a plain file"),
        ("none", "cannot read .*No such"),
    ):
        with pytest.raises(ArtifactError, match=message):
            open_tensors(tmp_path / name)
    with pytest.raises(ArtifactError, match="is not a plain file"):
        open_tensors(tmp_path)
    with pytest.raises(ArtifactError, match="is no checkpoint's directory"):
        open_checkpoint(tmp_path / "none")


def test_formats_that_torch_has_not_are_listed_but_not_read(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "x.safetensors", {"x": entry(0, 3, [2, 3], "F4"), "y": entry(3, 7)}, bytes(7))
    found = open_tensors(path)
    assert not found["x"].is_plain_float
    assert found["y"].is_plain_float
    with pytest.raises(ArtifactError, match="stored as F4, which is no plain number format"):
        found["x"].read_rows(0, 1)
    assert torch.equal(found["y"].read_rows(0, 1), torch.zeros(1, 1))  # begins at an odd byte


def sharded(directory: Path, weight_map: dict[str, Any] | None = None) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    save_file({"a": torch.ones(2, 2)}, directory / "one.safetensors")
    save_file({"b": torch.zeros(3)}, directory / "two.safetensors")
    index = {"metadata": {}, "weight_map": weight_map or {"a": "one.safetensors", "b": "two.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def test_a_checkpoint_in_shards(tmp_path: Path) -> None:
    files = open_checkpoint(sharded(tmp_path))
    assert files.shards == ("one.safetensors", "two.safetensors")
    assert {name: tensor.file.name for name, tensor in files.tensors.items()} == {
        "a": "one.safetensors", "b": "two.safetensors"
    }  # fmt: skip


@pytest.mark.parametrize(
    "shard",
    ["../one.safetensors", "/etc/one.safetensors", "sub/one.safetensors", "..\\one.safetensors", "C:one.safetensors",
     "..", "", ".hidden.safetensors", "one.bin", "x\0.safetensors", "\ud800.safetensors", "a\n.safetensors", 3, None,
     ["one.safetensors"]],
)  # fmt: skip
def test_an_index_that_points_elsewhere(tmp_path: Path, shard: object) -> None:
    save_file({"a": torch.ones(2, 2)}, tmp_path / "one.safetensors")
    (tmp_path / "base" / "sub").mkdir(parents=True)
    save_file({"a": torch.ones(2, 2)}, tmp_path / "base" / "sub" / "one.safetensors")
    sharded(tmp_path / "base", {"a": shard, "b": "two.safetensors"})
    with pytest.raises(ArtifactError, match=r"says that 'a' is in .* it must be the name of a .safetensors file"):
        open_checkpoint(tmp_path / "base")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "one.safetensors"}, None),
        ({"a": "one.safetensors", "b": "three.safetensors"}, "three.safetensors is missing"),
        (
            {"a": "one.safetensors", "b": "one.safetensors"},
            "one.safetensors do not agree on 'b': the file does not hold it",
        ),
        (
            {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"},
            "two.safetensors do not agree on 'c': the file does not hold it",
        ),
        (
            {"a": "two.safetensors", "b": "two.safetensors"},
            "two.safetensors do not agree on 'a': the file does not hold it",
        ),
        ({"a": "one.safetensors", "b": "x" * 300 + ".safetensors"}, "is missing"),
    ],
)
def test_an_index_that_contradicts_the_files(tmp_path: Path, weight_map: dict[str, str], message: str | None) -> None:
    sharded(tmp_path, weight_map)
    if message is None:  # a file that the index does not name is no part of the checkpoint
        assert open_checkpoint(tmp_path).tensors.keys() == {"a"}
        return
    with pytest.raises(ArtifactError, match=message):
        open_checkpoint(tmp_path)


def test_a_tensor_that_the_index_does_not_name(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file({"b": torch.zeros(3), "extra": torch.zeros(1)}, tmp_path / "two.safetensors")
    with pytest.raises(ArtifactError, match=r"two.safetensors do not agree on 'extra': the file holds it"):
        open_checkpoint(tmp_path)
    save_file({"b": torch.zeros(3), "a": torch.zeros(1)}, tmp_path / "two.safetensors")
    with pytest.raises(ArtifactError, match=r"two.safetensors do not agree on 'a': the file holds it"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "{" * 50_000])
def test_a_damaged_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"is not sound JSON|must hold a JSON object|has no weight_map"):
        open_checkpoint(tmp_path)


def test_the_links_of_the_hub_cache_are_followed_and_no_others(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    sharded(repository / "blobs")
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in (repository / "blobs").iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert open_checkpoint(snapshot).tensors.keys() == {"a", "b"}
    (tmp_path / "elsewhere").symlink_to(snapshot)
    assert open_checkpoint(tmp_path / "elsewhere").tensors.keys() == {"a", "b"}

    sharded(tmp_path / "secret")
    (snapshot / "two.safetensors").unlink()
    (snapshot / "two.safetensors").symlink_to(tmp_path / "secret" / "two.safetensors")
    with pytest.raises(ArtifactError, match=r"two.safetensors is a link to .*secret.*, outside of its checkpoint"):
        open_checkpoint(snapshot)
    (snapshot / "two.safetensors").unlink()
    (snapshot / "two.safetensors").symlink_to("../../blobs/gone")
    with pytest.raises(ArtifactError, match=r"two.safetensors is missing"):
        open_checkpoint(snapshot)
    (snapshot / "two.safetensors").unlink()
    (snapshot / "two.safetensors").symlink_to("two.safetensors")
    with pytest.raises(ArtifactError, match=r"two.safetensors is missing"):
        open_checkpoint(snapshot)


def test_links_within_a_directory_are_followed_and_a_blobs_folder_elsewhere_is_not(tmp_path: Path) -> None:
    directory = sharded(tmp_path / "base")
    (directory / "two.safetensors").rename(directory / "real")
    (directory / "two.safetensors").symlink_to("real")
    assert open_checkpoint(directory).tensors.keys() == {"a", "b"}
    (tmp_path / "blobs").mkdir()
    (directory / "real").rename(tmp_path / "blobs" / "real")
    (directory / "two.safetensors").unlink()
    (directory / "two.safetensors").symlink_to("../blobs/real")
    with pytest.raises(ArtifactError, match="outside of its checkpoint"):
        open_checkpoint(directory)


def test_the_index_may_not_be_a_link_out_either(tmp_path: Path) -> None:
    directory = sharded(tmp_path / "base")
    (directory / "model.safetensors.index.json").rename(tmp_path / "index.json")
    (directory / "model.safetensors.index.json").symlink_to("../index.json")
    with pytest.raises(ArtifactError, match="outside of its checkpoint"):
        open_checkpoint(directory)
