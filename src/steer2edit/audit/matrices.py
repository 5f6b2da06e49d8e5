"""Stored tensors as matrices whose rows are read on demand, so that they may be larger than memory.

Shapes: p × q = the matrix as it is stored; r rows of a block.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.artifacts.checkpoints.stored_tensor import StoredTensor
from steer2edit.artifacts.tensors import DTYPE_NAMES, same_bits
from steer2edit.audit.rounding import coarser, halfwidth, working_dtype

_BLOCK_ENTRIES = 1 << 19  # small enough for a processor's cache
_CACHED_ENTRIES = 1 << 22  # most matrices are read several times
_COMPARED_ENTRIES = 1 << 21
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class TensorView:
    """One tensor as a matrix [product of all axes but the last, last axis]."""

    shape: tuple[int, ...]  # of the tensor
    dtype_name: str  # as safetensors names it
    dtype: torch.dtype | None  # a floating dtype, or `None` for integers and packed formats
    read_rows: Callable[[int, int], Tensor]  # rows `start` to `stop`
    computed: bool = False  # whether it is computed when read, so that nothing in it was rounded for storage
    # all of a stored tensor, some bytes at a time, whatever its dtype
    read_bytes: Callable[[], Iterator[bytes]] | None = None

    @classmethod
    def stored(cls, tensor: StoredTensor) -> "TensorView":
        """Of a checkpoint's file."""
        dtype = tensor.dtype if tensor.is_plain_float else None
        return cls(tensor.shape, tensor.dtype_name, dtype, tensor.read_rows, read_bytes=tensor.blocks)

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorView":
        """Of a tensor that is in memory."""
        shape = tuple(tensor.shape)
        rows = tensor.contiguous().reshape(-1, shape[-1] if shape else 1)
        dtype = tensor.dtype if tensor.dtype in _FLOATS else None
        return cls(shape, DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), dtype, lambda a, b: rows[a:b])

    @property
    def rows(self) -> int:
        """Rows as a matrix."""
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """Columns as a matrix."""
        return self.shape[-1] if self.shape else 1

    def equals(self, other: "TensorView") -> bool:
        """Whether two tensors are equal bit for bit."""
        if self is other:
            return True
        if (self.shape, self.dtype_name) != (other.shape, other.dtype_name):
            return False
        if self.dtype is None and self.read_bytes and other.read_bytes:  # of some packed formats torch has no dtype
            return all(one == two for one, two in zip(self.read_bytes(), other.read_bytes(), strict=True))
        step = max(1, _COMPARED_ENTRIES // max(1, self.columns))
        ranges = [(start, min(start + step, self.rows)) for start in range(0, self.rows, step)]
        return all(same_bits(self.read_rows(*rows), other.read_rows(*rows)) for rows in ranges)

    def changed(self, change: Callable[[Tensor, int, int], None]) -> "TensorView":
        """The tensor with rows changed, in float64, whenever they are read: `change(values, start, stop)`, in place."""

        def read(start: int, stop: int) -> Tensor:
            values = self.read_rows(start, stop).double()
            change(values, start, stop)
            return values

        return TensorView(self.shape, "F32", torch.float32, read, computed=True)


Views = Mapping[str, TensorView]
"""The tensors of a checkpoint by name."""


@dataclass(frozen=True)
class Block:
    """Some rows before and after."""

    start: int  # the first row's index
    before: Float[Tensor, "r q"]  # W, in the working dtype
    after: Float[Tensor, "r q"]  # W'
    dtype: torch.dtype  # the dtype whose rounding hides changes

    @cached_property
    def change(self) -> Float[Tensor, "r q"]:
        """W' − W."""
        return self.after - self.before

    @cached_property
    def halfwidth(self) -> Float[Tensor, "r q"]:
        """How far the change may be from what was meant."""
        return halfwidth(self.after, self.change, self.dtype)

    @property
    def rows(self) -> slice:
        """Which rows of the matrix these are."""
        return slice(self.start, self.start + self.before.shape[0])


@dataclass(frozen=True)
class MatrixPair:
    """A floating-point matrix before and after."""

    before: TensorView  # the tensor that holds W
    after: TensorView  # W', in the same shape
    expert: int | None = None  # index on the tensor's first axis, where experts are fused in it

    @property
    def shape(self) -> tuple[int, int]:
        """(p, q)."""
        return self.before.rows if self.expert is None else self.before.shape[-2], self.before.columns

    @property
    def dtypes(self) -> tuple[torch.dtype, torch.dtype]:
        """Of W and W' as they are stored."""
        before, after = self.before.dtype, self.after.dtype
        assert before is not None
        assert after is not None
        return (after if self.after.computed else before, after)

    @property
    def dtype(self) -> torch.dtype:
        """The coarser of the two dtypes: its rounding hides changes."""
        return coarser(*self.dtypes)

    @property
    def working(self) -> torch.dtype:
        """The dtype of the blocks."""
        return working_dtype(self.dtype)

    @property
    def is_small(self) -> bool:
        """Whether all of it stays in memory."""
        return math.prod(self.shape) <= _CACHED_ENTRIES

    def blocks(self) -> Iterator[Block]:
        """All rows in order."""
        yield from self._cached if self.is_small else self._read()

    @cached_property
    def _cached(self) -> tuple[Block, ...]:
        return tuple(self._read())

    def _read(self) -> Iterator[Block]:
        rows, columns = self.shape
        first, step = (self.expert or 0) * rows, max(1, _BLOCK_ENTRIES // max(1, columns))
        for start in range(0, rows, step):
            span = first + start, first + min(start + step, rows)
            before, after = (view.read_rows(*span).to(self.working) for view in (self.before, self.after))
            yield Block(start, before, after, self.dtype)

    def strongest(self, energy: Float[Tensor, " p"]) -> "MatrixPair":
        """The rows that changed most, as a small matrix of their own."""
        count = max(1, _CACHED_ENTRIES // (2 * max(1, self.shape[1])))
        chosen = energy.argsort(descending=True)[:count].sort().values
        parts = [
            (block.before[inside], block.after[inside])
            for block in self._read()
            if (inside := chosen[(chosen >= block.start) & (chosen < block.rows.stop)] - block.start).numel()
        ]
        before, after = (TensorView.of(torch.cat(rows)) for rows in zip(*parts, strict=True))
        return MatrixPair(replace(before, dtype=self.dtypes[0]), replace(after, dtype=self.dtypes[1]))
