"""A checkpoint's files of weights, read by byte offset: which tensor lies where.

safetensors checks every header on opening: sizes, dtypes, and offsets that fill the file without overlap or hole. What
is added here are the offsets themselves, that index and files agree and lie in the checkpoint's directory, and the
places that tensors of a `.bin` file have in the safetensors file that they are written as.
"""

import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from steer2edit.artifacts.checkpoints.stored_tensor import StoredTensor, unreadable
from steer2edit.artifacts.manifest import parse_object
from steer2edit.artifacts.tensors import DTYPE_NAMES, laid_out, read_pt
from steer2edit.errors import ArtifactError
from steer2edit.models.model_path import INDEX_FILE, PICKLE_FILE, PICKLE_INDEX_FILE, SINGLE_FILE

_KINDS = ((SINGLE_FILE, INDEX_FILE, ".safetensors"), (PICKLE_FILE, PICKLE_INDEX_FILE, ".bin"))
_LONGEST_INDEX = 100_000_000


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint directory's tensors."""

    directory: Path
    shards: tuple[str, ...]  # names of the files with its tensors
    tensors: Mapping[str, StoredTensor]  # by name
    # by file, what a safetensors file begins with that is not there yet: its tensors are in a `.bin` file
    headers: Mapping[str, bytes] = field(default_factory=dict)


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
    kinds = [kind for kind in _KINDS if any(os.path.lexists(directory / name) for name in kind[:2])]
    if not kinds:
        raise ArtifactError(
            f"{directory} holds neither {SINGLE_FILE} nor {INDEX_FILE}, nor {PICKLE_FILE}: it is no checkpoint."
        )
    single, index, suffix = kinds[0]
    weight_map = None if os.path.lexists(directory / single) else _read_index(directory / index, suffix)
    tensors: dict[str, StoredTensor] = {}
    headers: dict[str, bytes] = {}
    shards = []
    for file in [single] if weight_map is None else sorted(set(weight_map.values())):
        path = require_inside(directory / file, directory)
        shards.append(file)
        if suffix == ".bin":
            shards[-1] = file.removeprefix("pytorch_").removesuffix(".bin") + ".safetensors"
            found, headers[shards[-1]] = _open_pickled(path, directory / shards[-1])
        else:
            found = open_tensors(path)
        if weight_map is not None:
            _require_as_indexed(directory / index, file, found, weight_map)
        tensors |= found
    return CheckpointFiles(directory, tuple(shards), MappingProxyType(tensors), MappingProxyType(headers))


def open_tensors(file: Path | str) -> dict[str, StoredTensor]:
    """Read the header of one safetensors file.

    Raises:
        ArtifactError: it is missing, truncated, or its header is damaged or contradicts the file.
    """
    file = Path(file)
    if file.exists() and not file.is_file():
        raise ArtifactError(f"{file} is not a plain file. Give a safetensors file.")
    try:
        with safe_open(file, "np"), file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            return _placed(file, parse_object(stream.read(size), f"the header of {file}"), 8 + size)
    except OSError as error:
        raise unreadable(file, error) from error
    except (SafetensorError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{file} is not a sound safetensors file ({str(error)[:200]!r}): it is truncated, damaged, of another "
            "format, or was made to mislead. Get it again."
        ) from error


def _placed(
    file: Path, header: Mapping[str, Any], data: int, values: Mapping[str, Tensor] | None = None
) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file as its header says them; its data begin at the byte `data`."""
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            own = None if values is None else values[name].detach().contiguous()
            begin, end = (data + offset for offset in entry["data_offsets"])
            found[name] = StoredTensor(file, name, entry["dtype"], tuple(entry["shape"]), begin, end, own)
    return found


def _open_pickled(source: Path, target: Path) -> tuple[dict[str, StoredTensor], bytes]:
    """The tensors of a `.bin` file, each with its place in a safetensors file, and what that file begins with.

    Tensors that share memory are each written: which of them the model ties is the config's to say.
    """
    content = read_pt(source, mapped=True)
    if not isinstance(content, Mapping) or not all(isinstance(n, str) and _is_plain(t) for n, t in content.items()):
        raise ArtifactError(f"{source} does not hold plain tensors by name, and nothing else: it is no checkpoint's.")
    header, begin = laid_out(content, {"format": "pt"})
    return _placed(target, header, len(begin), content), begin


def _is_plain(tensor: Any) -> bool:
    """A tensor with memory of its own for every number: one that repeats a few could be of any size."""
    plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.dtype in DTYPE_NAMES
    return plain and tensor.nbytes <= tensor.untyped_storage().nbytes()


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


def _read_index(path: Path, suffix: str) -> dict[str, str]:
    require_inside(path, path.parent)
    try:
        if path.stat().st_size > _LONGEST_INDEX:
            raise ArtifactError(f"{path} is larger than {_LONGEST_INDEX} bytes: it is no index of a checkpoint.")
        weight_map = parse_object(path.read_bytes(), str(path)).get("weight_map")
    except OSError as error:
        raise unreadable(path, error) from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise ArtifactError(f"{path} has no weight_map, which says which file holds which tensor. Get it again.")
    for name, shard in weight_map.items():
        plain = isinstance(shard, str) and shard.isprintable() and not set(shard) & {"/", "\\", ":"}
        if not plain or not shard.endswith(suffix) or shard.startswith("."):
            raise ArtifactError(
                f"{path} says that {name!r} is in {reprlib.repr(shard)}: it must be the name of a {suffix} file in "
                "the same directory, without a path. Do not use this checkpoint unless you know why."
            )
    return weight_map


def _require_as_indexed(
    index: Path, shard: str, tensors: Mapping[str, StoredTensor], weight_map: Mapping[str, str]
) -> None:
    wrong = sorted({name for name, where in weight_map.items() if where == shard} ^ tensors.keys())
    if wrong:
        holds = f"{shard} holds it" if wrong[0] in tensors else f"{shard} does not hold it"
        raise ArtifactError(
            f"{index.name} says that {wrong[0]!r} is in {weight_map.get(wrong[0], 'no file')}, but {holds} "
            f"({len(wrong)} such tensors). The files in {index.parent} do not belong together: get them again."
        )
