"""One tensor of a checkpoint: where its bytes are in a safetensors file, and any rows of it, read by offset."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor

from steer2edit.artifacts.tensors import DTYPES, bytes_of
from steer2edit.errors import ArtifactError, InvalidValueError

CHUNK = 2**18
"""Numbers that are worked on at a time."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a safetensors file, or of a `.bin` file, for a place in a safetensors file that is to be written.

    Args:
        file: of the tensor.
        name: in the file.
        dtype_name: the header's, e.g. `BF16`.
        shape: of the tensor.
        begin: offset of its first byte from the beginning of the file.
        end: offset after its last byte.
        values: the tensor itself where it is not read from that file.
    """

    file: Path
    name: str
    dtype_name: str
    shape: tuple[int, ...]
    begin: int
    end: int
    values: Tensor | None = field(default=None, compare=False, repr=False)

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
        """Rows of the tensor as a matrix: the product of all axes but the last."""
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """Columns of the tensor as a matrix: its last axis."""
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
        """Rows `start` to `stop` of the tensor as a matrix [product of all axes but the last, last axis].

        Args:
            start: the first.
            stop: the one after the last.
            into: memory of at least as many rows, in the tensor's dtype, whose first rows are filled and returned.

        Raises:
            InvalidValueError: there are no such rows.
            ArtifactError: torch has no such dtype, or the file cannot be read.
        """
        if not 0 <= start <= stop <= self.rows:
            raise InvalidValueError(f"{self.name} has rows 0 to {self.rows}, and {start} to {stop} are asked for.")
        found = torch.empty((stop - start, self.columns), dtype=self.dtype) if into is None else into[: stop - start]
        if found.numel():
            self._read(self.row_offset(start), bytes_of(found))
        return found

    def blocks(self) -> Iterator[bytes]:
        """The tensor's bytes, some at a time, whatever its dtype."""
        for start in range(0, self.size, CHUNK):
            block = bytearray(min(CHUNK, self.size - start))
            self._read(start, memoryview(block))
            yield bytes(block)

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
