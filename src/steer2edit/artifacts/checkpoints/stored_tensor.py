"""One tensor of a checkpoint: where its bytes are in a safetensors file, and any rows of it, read by offset."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor

from steer2edit.errors import ArtifactError, InvalidValueError

BITS: dict[str, tuple[int, torch.dtype | None]] = {
    "BOOL": (8, torch.bool),
    "U8": (8, torch.uint8),
    "I8": (8, torch.int8),
    "U16": (16, torch.uint16),
    "I16": (16, torch.int16),
    "U32": (32, torch.uint32),
    "I32": (32, torch.int32),
    "U64": (64, torch.uint64),
    "I64": (64, torch.int64),
    "F16": (16, torch.float16),
    "BF16": (16, torch.bfloat16),
    "F32": (32, torch.float32),
    "F64": (64, torch.float64),
    "C64": (64, torch.complex64),
    "F8_E4M3": (8, torch.float8_e4m3fn),
    "F8_E5M2": (8, torch.float8_e5m2),
    "F8_E4M3FNUZ": (8, torch.float8_e4m3fnuz),
    "F8_E5M2FNUZ": (8, torch.float8_e5m2fnuz),
    "F8_E8M0": (8, None),
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
    "F4": (4, None),
}
"""Bits of a number, and torch's dtype where it has one, by the format's name of a dtype."""


CHUNK = 2**18
"""Numbers that are worked on at a time."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a safetensors file, or of another file, for a place in a safetensors file that is to be written.

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
        dtype = BITS[self.dtype_name][1]
        if dtype is None:
            raise ArtifactError(
                f"{self.file.name}: {self.name} is stored as {self.dtype_name}, which is no plain number format. "
                "Only tensors of plain floats and integers can be read here."
            )
        return dtype

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
        """Offset of a row's first byte from the beginning of the file."""
        return self.begin + row * self.columns * self.dtype.itemsize

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows, `CHUNK` numbers each, that together are the whole tensor."""
        yield from row_chunks(0, self.rows, self.columns)

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
        count = stop - start
        values = torch.empty((count, self.columns), dtype=self.dtype) if into is None else into[:count]
        if self.values is not None:
            return values.copy_(self.values.reshape(self.rows, self.columns)[start:stop])
        if values.numel():
            read_into(self.file, self.row_offset(start), memoryview(values.view(torch.uint8).numpy().data).cast("B"))
        return values

    def memory(self, dtype: torch.dtype | None = None) -> Shaped[Tensor, "rows columns"]:
        """Memory for one chunk's rows, in the tensor's dtype unless another is given."""
        return torch.empty((min(chunk_rows(self.columns), self.rows), self.columns), dtype=dtype or self.dtype)

    def blocks(self) -> Iterator[bytes]:
        """The tensor's bytes, some at a time, whatever its dtype."""
        if self.values is not None:
            raw = self.values.reshape(-1).view(torch.uint8).numpy()
            yield from (raw[start : start + CHUNK].tobytes() for start in range(0, self.size, CHUNK))
            return
        for start in range(self.begin, self.end, CHUNK):
            block = bytearray(min(CHUNK, self.end - start))
            read_into(self.file, start, memoryview(block))
            yield bytes(block)


def row_chunks(start: int, stop: int, columns: int) -> Iterator[tuple[int, int]]:
    """Ranges from `start` to `stop`, of as many rows as `CHUNK` numbers are, and at least one."""
    count = chunk_rows(columns)
    for first in range(start, stop, count):
        yield first, min(first + count, stop)


def chunk_rows(columns: int) -> int:
    """How many rows are taken at once."""
    return max(1, CHUNK // max(1, columns))


def read_into(file: Path, offset: int, target: memoryview) -> None:
    """Fill a buffer with a file's bytes from an offset on.

    Raises:
        ArtifactError: the file cannot be read, or ends before.
    """
    try:
        with file.open("rb", buffering=0) as stream:
            stream.seek(offset)
            done = 0
            while done < len(target):
                count = stream.readinto(target[done:])
                if not count:
                    raise ArtifactError(f"{file} ends before byte {offset + len(target)}: it was truncated meanwhile.")
                done += count
    except OSError as error:
        raise unreadable(file, error) from error


def unreadable(path: Path, error: OSError) -> ArtifactError:
    """The error for a file that the system does not let us read."""
    return ArtifactError(f"cannot read {path}: {error.strerror or error}. Check the path and its permissions.")
