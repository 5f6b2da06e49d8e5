"""A checkpoint's files of weights, read by byte offset: which tensor lies where, and any rows of it.

Only headers are read on opening, and they are not trusted: an index or a header that contradicts itself or the file
is refused, because bytes are later written at the offsets it gives. Memory is that of the headers, plus the rows that
are asked for.
"""

import math
import os
import reprlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from steer2edit.artifacts.checkpoints.pickled_files import open_pickled
from steer2edit.artifacts.checkpoints.stored_tensor import BITS, StoredTensor, unreadable
from steer2edit.artifacts.strict_json import parse_object
from steer2edit.errors import ArtifactError
from steer2edit.models.model_path import INDEX_FILE, PICKLE_FILE, PICKLE_INDEX_FILE, SINGLE_FILE

_FILES = ((SINGLE_FILE, INDEX_FILE), (PICKLE_FILE, PICKLE_INDEX_FILE))
_LONGEST_HEADER = 100_000_000  # the format's own limit
_LONGEST_INDEX = 100_000_000
_MOST_AXES = 16


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint directory's tensors.

    Args:
        directory: of the checkpoint.
        shards: names of the files with its tensors.
        tensors: by name.
        headers: by file, what a safetensors file begins with that is not there yet: its tensors are in a `.bin` file.
    """

    directory: Path
    shards: tuple[str, ...]
    tensors: Mapping[str, StoredTensor]
    headers: Mapping[str, bytes] = field(default_factory=dict)

    def of_shard(self, shard: str) -> list[StoredTensor]:
        """The tensors of a file."""
        return [tensor for tensor in self.tensors.values() if tensor.file.name == shard]


def open_checkpoint(directory: Path | str) -> CheckpointFiles:
    """Read what is in a checkpoint's weights: `model.safetensors` or the files that its index names, else the same of
    `pytorch_model.bin`, whose tensors are given names and places of safetensors files.

    Raises:
        ArtifactError: there are none; a shard is missing; a header or the index is damaged, contradicts the files, or
            points outside the directory.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ArtifactError(f"there is no checkpoint directory {directory}. Check the path.")
    there = [pair for pair in _FILES if any(os.path.lexists(directory / name) for name in pair)]
    if not there:
        raise ArtifactError(
            f"{directory} holds neither {SINGLE_FILE} nor {INDEX_FILE}, nor {PICKLE_FILE}: it is no checkpoint."
        )
    single, index = there[0]
    weight_map = None if os.path.lexists(directory / single) else _read_index(directory, index)
    found: dict[str, StoredTensor] = {}
    headers: dict[str, bytes] = {}
    shards = []
    for shard in [single] if weight_map is None else sorted(set(weight_map.values())):
        path = require_inside(directory / shard, directory)
        shards.append(shard if shard.endswith(".safetensors") else _as_safetensors(shard))
        if shards[-1] == shard:
            tensors = open_tensors(path)
        else:
            tensors, headers[shards[-1]] = open_pickled(path, directory / shards[-1])
        if weight_map is not None:
            _require_as_indexed(directory / index, shard, tensors, weight_map)
        found |= tensors
    return CheckpointFiles(directory, tuple(shards), MappingProxyType(found), MappingProxyType(headers))


def open_tensors(file: Path | str) -> dict[str, StoredTensor]:
    """Read the header of one safetensors file.

    Raises:
        ArtifactError: it is missing, truncated, or its header is damaged or contradicts the file.
    """
    file = Path(file)
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise ArtifactError(f"{file} is not a plain file. Give a safetensors file.")
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _LONGEST_HEADER):
                raise ArtifactError(
                    f"{file} is not a readable safetensors file: it has {size} bytes, and says that its header has "
                    f"{length} (the most allowed is {_LONGEST_HEADER}). It is truncated, damaged, or of another format."
                )
            raw = stream.read(length)
    except OSError as error:
        raise unreadable(file, error) from error
    header = parse_object(raw, f"the header of {file}")
    texts = header.pop("__metadata__", {})
    if not isinstance(texts, dict) or not all(isinstance(value, str) for value in texts.values()):
        raise _damaged(file, "__metadata__ must hold texts")
    tensors = {name: _stored(file, name, entry, 8 + length) for name, entry in header.items()}
    _require_contiguous(file, list(tensors.values()), 8 + length, size)
    return tensors


def require_inside(path: Path, directory: Path) -> Path:
    """The path, if what it leads to lies in the directory, or in the blobs of the Hub cache that it is a snapshot of.

    Raises:
        ArtifactError: it leads elsewhere, or nowhere.
    """
    try:
        root, target = directory.resolve(strict=True), path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError before Python 3.13
        raise ArtifactError(
            f"{path} is missing ({getattr(error, 'strerror', None) or error}): the checkpoint is incomplete. Get it "
            "again, whole."
        ) from error
    blobs = [parent.parent / "blobs" for parent in (root, *root.parents) if parent.name == "snapshots"][:1]
    if not any(target.is_relative_to(allowed) for allowed in (root, *blobs)):
        raise ArtifactError(
            f"{path} is a link to {target}, outside of its checkpoint. Put the file itself into the directory, if you "
            "trust it."
        )
    return path


def _as_safetensors(shard: str) -> str:
    return shard.removeprefix("pytorch_").removesuffix(".bin") + ".safetensors"


def _read_index(directory: Path, index: str) -> dict[str, str]:
    path = require_inside(directory / index, directory)
    suffix = ".safetensors" if index == INDEX_FILE else ".bin"
    try:
        if path.stat().st_size > _LONGEST_INDEX:
            raise ArtifactError(f"{path} is larger than {_LONGEST_INDEX} bytes: it is no index of a checkpoint.")
        raw = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    weight_map = parse_object(raw, str(path)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ArtifactError(f"{path} has no weight_map, which says which file holds which tensor. Get it again.")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_file_name(shard, suffix):
            raise ArtifactError(
                f"{path} says that {name!r} is in {reprlib.repr(shard)}: it must be the name of a {suffix} file in "
                "the same directory, without a path. Do not use this checkpoint unless you know why."
            )
    return weight_map


def _is_file_name(shard: str, suffix: str) -> bool:
    """A plain name: no folder, drive, or character that a file name cannot hold."""
    plain = shard.isprintable() and not set(shard) & {"/", "\\", ":"}
    return plain and shard.endswith(suffix) and not shard.startswith(".")


def _require_as_indexed(
    index: Path, shard: str, tensors: Mapping[str, StoredTensor], weight_map: Mapping[str, str]
) -> None:
    lacking = sorted(name for name, where in weight_map.items() if where == shard and name not in tensors)
    surplus = sorted(name for name in tensors if weight_map.get(name) != shard)
    if lacking:
        raise ArtifactError(
            f"{index.name} says that {shard} holds {lacking[0]!r}, but it does not ({len(lacking)} such tensors). The "
            f"files in {index.parent} do not belong together: get them again."
        )
    if surplus:
        raise ArtifactError(
            f"{shard} holds {surplus[0]!r}, which {index.name} does not place there ({len(surplus)} such tensors). The "
            f"files in {index.parent} do not belong together: get them again."
        )


def _stored(file: Path, name: str, entry: Any, data_begin: int) -> StoredTensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(file, f"{name!r} must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _damaged(file, f"{name!r} has the unknown dtype {reprlib.repr(dtype)}")
    if not _are_counts(shape, _MOST_AXES) or not _are_counts(offsets, 2) or not _is_range(offsets):
        raise _damaged(file, f"{name!r} has shape {reprlib.repr(shape)} and data_offsets {reprlib.repr(offsets)}")
    bits = math.prod(shape) * BITS[dtype][0]
    if bits != 8 * (offsets[1] - offsets[0]):
        size = offsets[1] - offsets[0]
        raise _damaged(
            file, f"{name!r} has {size} bytes, which is not what {dtype} of shape {reprlib.repr(shape)} takes"
        )
    return StoredTensor(file, name, dtype, tuple(shape), data_begin + offsets[0], data_begin + offsets[1])


def _are_counts(values: Any, most: int) -> bool:
    plain = isinstance(values, list) and len(values) <= most
    return plain and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _is_range(offsets: list[int]) -> bool:
    return len(offsets) == 2 and offsets[0] <= offsets[1]


def _require_contiguous(file: Path, tensors: list[StoredTensor], begin: int, end: int) -> None:
    """Tensors fill the file from its header to its end: no two share a byte, and none belongs to nobody."""
    for tensor in sorted(tensors, key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.begin != begin:
            fault = "overlaps another tensor" if tensor.begin < begin else "begins after bytes of no tensor"
            raise _damaged(file, f"{tensor.name!r} at byte {tensor.begin} {fault} (expected {begin})")
        begin = tensor.end
    if begin != end:
        raise _damaged(file, f"its tensors end at byte {begin}, the file at {end}")


def _damaged(file: Path, problem: str) -> ArtifactError:
    return ArtifactError(
        f"{file} is not a sound safetensors file: {problem}. It is truncated, damaged, or was made to mislead; get it "
        "again."
    )
