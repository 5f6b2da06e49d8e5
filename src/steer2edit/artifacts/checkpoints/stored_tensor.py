"""One tensor of a checkpoint: where its bytes are in a safetensors file, and any rows of it, read by offset."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor

from steer2edit.artifacts.tensors import DTYPE_NAMES, DTYPES, bytes_of, same_bits
from steer2edit.errors import ArtifactError

CHUNK = 2**18
"""Numbers that are worked on at a time."""

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
    computed: bool = False  # whether it is computed when read, so that nothing in it was rounded for storage

    @classmethod
    def of(cls, tensor: Tensor, *, computed: bool = False) -> "StoredTensor":
        """Of a tensor that is in memory."""
        dtype_name, own = DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tensor.detach().contiguous()
        return cls(Path(), "", dtype_name, tuple(tensor.shape), 0, tensor.nbytes, own, computed=computed)

    @property
    def dtype(self) -> torch.dtype:
        """The tensor's dtype.

        Raises:
            ArtifactError: torch has no such dtype (FP4, FP6 and the scales of MXFP4).
        """
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

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.begin

    def row_offset(self, row: int) -> int:
        """Offset of a row's first byte from the tensor's first."""
        return row * self.columns * self.dtype.itemsize

    def chunks(self, rows: range | None = None) -> Iterator[tuple[int, int]]:
        """Ranges of rows, `CHUNK` numbers each and at least one row, that together are all of them or those given."""
        rows = range(self.rows) if rows is None else rows
        count = max(1, CHUNK // max(1, self.columns))
        for start in rows[::count]:
            yield start, min(start + count, rows.stop)

    def read_rows(
        self, start: int, stop: int, into: Shaped[Tensor, "_ columns"] | None = None
    ) -> Shaped[Tensor, "rows columns"]:
        """Rows from `start` to before `stop`, in float64 where the tensor is changed.

        `into` is memory of at least as many rows, in the tensor's dtype, whose first rows are filled and returned.

        Raises:
            ArtifactError: torch has no such dtype, or the file cannot be read.
        """
        found = torch.empty((stop - start, self.columns), dtype=self.dtype) if into is None else into[: stop - start]
        if found.numel():
            self._read(self.row_offset(start), bytes_of(found))
        for change in self.changes:
            found = found.double()
            change(found, start, stop)
        return found

    def changed(self, change: Change) -> "StoredTensor":
        """The tensor with rows changed, in float64, whenever they are read."""
        return replace(self, changes=(*self.changes, change), computed=True)

    def blocks(self) -> Iterator[bytes]:
        """The tensor's bytes as they are stored, some at a time, whatever its dtype."""
        for start in range(0, self.size, CHUNK):
            block = bytearray(min(CHUNK, self.size - start))
            self._read(start, memoryview(block))
            yield bytes(block)

    def equals(self, other: "StoredTensor") -> bool:
        """Whether two tensors are equal bit for bit."""
        one, two = ((t.shape, t.dtype_name, t.computed) for t in (self, other))
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


def unreadable(path: Path, error: OSError) -> ArtifactError:
    """The error for a file that the system does not let us read."""
    return ArtifactError(f"cannot read {path}: {error.strerror or error}. Check the path and its permissions.")
