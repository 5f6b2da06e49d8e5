"""A checkpoint's weights, read by byte offset: which tensor lies where, and any rows of it.

safetensors checks every header on opening: sizes, dtypes, and offsets that fill the file without overlap or hole. What
is added here are the offsets themselves, that index and files agree and lie in the checkpoint's directory, and the
places that tensors of a `.bin` file have in the safetensors file that they are written as.
"""

import math
import os
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from steer2edit.artifacts.manifest import parse_object
from steer2edit.artifacts.tensors import DTYPE_NAMES, DTYPES, bytes_of, laid_out, read_pt, same_bits
from steer2edit.errors import ArtifactError
from steer2edit.models.model_path import INDEX_FILE, PICKLE_FILE, PICKLE_INDEX_FILE, SINGLE_FILE

CHUNK = 2**18
"""Numbers that are worked on at a time."""
_KINDS = ((SINGLE_FILE, INDEX_FILE, ".safetensors"), (PICKLE_FILE, PICKLE_INDEX_FILE, ".bin"))
_LONGEST_INDEX = 100_000_000

Change = Callable[[Tensor, int, int], None]
"""`change(values, start, stop)` changes rows `start` to `stop`, which are given in float64, in place."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a safetensors file, as a matrix [product of all axes but the last, last axis] read by rows."""

    file: Path
    name: str  # in the file
    dtype_name: str  # the header's, e.g. `BF16`
    shape: tuple[int, ...]
    begin: int  # offset of its first byte from the beginning of the file
    end: int  # offset after its last byte
    # the tensor itself where it is not read from that file: of a `.bin` file, or one that is in memory
    values: Tensor | None = field(default=None, compare=False, repr=False)
    changes: tuple[Change, ...] = field(default=(), compare=False, repr=False)  # done to its rows when they are read

    @classmethod
    def of(cls, tensor: Tensor) -> "StoredTensor":
        """Of a tensor that is in memory."""
        dtype_name, own = DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tensor.detach().contiguous()
        return cls(Path(), "", dtype_name, tuple(tensor.shape), 0, tensor.nbytes, own)

    @property
    def dtype(self) -> torch.dtype:
        """The tensor's dtype; an ArtifactError where torch has none such (FP4, FP6 and the scales of MXFP4)."""
        if self.dtype_name not in DTYPES:
            raise ArtifactError(
                f"{self.file.name}: {self.name} is stored as {self.dtype_name}, which is no plain number format. "
                "Only tensors of plain floats and integers can be read here."
            )
        return DTYPES[self.dtype_name]

    @property
    def is_plain_float(self) -> bool:
        """Whether it holds numbers that can be edited as they are: float16, bfloat16, float32 or float64."""
        return self.dtype_name in ("F16", "BF16", "F32", "F64")

    @property
    def rows(self) -> int:
        """Rows of the matrix."""
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """Columns of the matrix."""
        return self.shape[-1] if self.shape else 1

    def chunks(self, rows: range | None = None) -> Iterator[tuple[int, int]]:
        """Ranges of rows, `CHUNK` numbers each and at least one row, that together are all of them or those given."""
        rows = range(self.rows) if rows is None else rows
        count = max(1, CHUNK // max(1, self.columns))
        for start in rows[::count]:
            yield start, min(start + count, rows.stop)

    def read_rows(
        self, start: int, stop: int, into: Shaped[Tensor, "_ columns"] | None = None
    ) -> Shaped[Tensor, "rows columns"]:
        """Rows from `start` to before `stop`, in float64 where it is changed; an ArtifactError if unreadable.

        `into` is memory of at least as many rows, in the tensor's dtype, whose first rows are filled and returned.
        """
        found = torch.empty((stop - start, self.columns), dtype=self.dtype) if into is None else into[: stop - start]
        if found.numel():
            self._read(start * self.columns * self.dtype.itemsize, bytes_of(found))
        for change in self.changes:
            found = found.double()
            change(found, start, stop)
        return found

    def blocks(self) -> Iterator[bytes]:
        """The tensor's bytes as they are stored, some at a time, whatever its dtype."""
        size = self.end - self.begin
        for start in range(0, size, CHUNK):
            block = bytearray(min(CHUNK, size - start))
            self._read(start, memoryview(block))
            yield bytes(block)

    def equals(self, other: "StoredTensor") -> bool:
        """Whether two tensors are equal bit for bit."""
        one, two = ((t.shape, t.dtype_name, bool(t.changes)) for t in (self, other))
        if self is other or one != two:
            return self is other
        if self.changes or other.changes:
            return all(same_bits(self.read_rows(*rows), other.read_rows(*rows)) for rows in self.chunks())
        return all(mine == theirs for mine, theirs in zip(self.blocks(), other.blocks(), strict=True))

    def _read(self, start: int, target: memoryview) -> None:
        """Fill a buffer with the tensor's bytes from one on."""
        if self.values is not None:
            target[:] = bytes_of(self.values)[start : start + len(target)]
            return
        try:
            with self.file.open("rb") as stream:
                stream.seek(self.begin + start)
                if stream.readinto(target) != len(target):
                    raise ArtifactError(f"{self.file} ends within {self.name}: it was truncated meanwhile.")
        except OSError as error:
            raise unreadable(self.file, error) from error


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint directory's tensors."""

    directory: Path
    shards: tuple[str, ...]  # names of the files with its tensors
    tensors: Mapping[str, StoredTensor]  # by name
    # by file, what a safetensors file begins with that is not there yet: its tensors are in a `.bin` file
    headers: Mapping[str, bytes] = field(default_factory=dict)


def unreadable(path: Path, error: OSError) -> ArtifactError:
    """The error for a file that the system does not let us read."""
    return ArtifactError(f"cannot read {path}: {error.strerror or error}. Check the path and its permissions.")


def open_checkpoint(directory: Path | str) -> CheckpointFiles:
    """Read what is in a checkpoint's weights: `model.safetensors` or the files that its index names, else the same of
    `pytorch_model.bin`, whose tensors are given names and places of safetensors files.

    Raises:
        ArtifactError: there are none; a shard is missing; a header or the index is damaged, contradicts the files, or
            points outside the directory.
    """
    directory = Path(directory)
    kinds = [kind for kind in _KINDS if any(os.path.lexists(directory / name) for name in kind[:2])]
    if not kinds:
        raise ArtifactError(
            f"{directory} is no checkpoint's directory: it has no {SINGLE_FILE}, {INDEX_FILE} or {PICKLE_FILE}."
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
        named = found.keys() if weight_map is None else {name for name, shard in weight_map.items() if shard == file}
        if wrong := sorted(named ^ found.keys()):
            holds = "holds it" if wrong[0] in found else "does not hold it"
            raise ArtifactError(
                f"{directory / index} and {file} do not agree on {wrong[0]!r}: the file {holds} ({len(wrong)} such "
                "tensors). The files do not belong together: get them again."
            )
        tensors |= found
    return CheckpointFiles(directory, tuple(shards), MappingProxyType(tensors), MappingProxyType(headers))


def open_tensors(file: Path | str) -> dict[str, StoredTensor]:
    """Read the header of one safetensors file; an ArtifactError if it is missing, damaged or contradicts the file."""
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

    Tensors that share memory are each written: which of them the model ties is the config's to say. One that repeats a
    few numbers of its memory could be of any size, and is refused.
    """
    content = read_pt(source, mapped=True)
    plain = isinstance(content, Mapping) and all(
        isinstance(name, str)
        and isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and tensor.dtype in DTYPE_NAMES
        and tensor.nbytes <= tensor.untyped_storage().nbytes()
        for name, tensor in content.items()
    )
    if not plain:
        raise ArtifactError(f"{source} does not hold plain tensors by name, and nothing else: it is no checkpoint's.")
    header, begin = laid_out(content, {"format": "pt"})
    return _placed(target, header, len(begin), content), begin


def require_inside(path: Path, directory: Path) -> Path:
    """The path, if what it leads to lies in the directory, or in the blobs of the Hub cache that it is from."""
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
