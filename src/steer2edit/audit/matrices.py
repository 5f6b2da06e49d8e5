"""A floating-point matrix before and after, by blocks of rows: what changed, and how far rounding can move a number.

A checkpoint holds `W' = round(W + ΔW)`. What is read back, `W' − W`, is therefore ΔW up to half the distance between
two neighbouring numbers of the dtype, entry by entry: a large weight hides more than a small one.

Shapes: p × q = the matrix as it is stored, which may be larger than memory; r rows of a block.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steer2edit.artifacts.checkpoints.files import StoredTensor

ROUNDED_TO = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
"""Dtypes that a checkpoint may have been rounded through."""
SHOWN_ENTRIES = 8

_BLOCK_ENTRIES = 1 << 19  # small enough for a processor's cache
_CACHED_ENTRIES = 1 << 22  # most matrices are read several times
_EXPONENT = {torch.float32: (torch.int32, 0x7F800000), torch.float64: (torch.int64, 0x7FF0000000000000)}
_SLACK = 1 + 2**-10  # sums of our own and others' arithmetic in float32


def spacing(values: Float[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """Distance between a number of `dtype` and the next larger in magnitude: 2^⌊log₂|x|⌋ · ε, or the subnormals'.

    The values are numbers that `dtype` holds, in float32 or float64.
    """
    integer, mask = _EXPONENT[values.dtype]
    info = torch.finfo(dtype)
    power = (values.view(integer) & mask).view(values.dtype)
    return power.clamp_min(info.tiny) * info.eps


def float_dtype(tensor: StoredTensor) -> torch.dtype | None:
    """The dtype that a tensor's numbers are compared in, or `None` for integers and packed formats."""
    return torch.float32 if tensor.computed else tensor.dtype if tensor.is_plain_float else None


@dataclass(frozen=True)
class Block:
    """Some rows before and after."""

    rows: slice  # which rows of the matrix these are
    before: Float[Tensor, "r q"]  # W, in the working dtype
    after: Float[Tensor, "r q"]  # W'
    dtype: torch.dtype  # the dtype whose rounding hides changes

    @cached_property
    def change(self) -> Float[Tensor, "r q"]:
        """W' − W."""
        return self.after - self.before

    @cached_property
    def halfwidth(self) -> Float[Tensor, "r q"]:
        """Largest distance between a change as it was meant and as it is read: ½ (spacing(W') + spacing(W' − W)).

        The sum W + ΔW is rounded once; tools that merge in the weights' dtype round ΔW itself before.
        """
        return (0.5 * _SLACK) * (spacing(self.after, self.dtype) + spacing(self.change, self.dtype))


@dataclass(frozen=True)
class MatrixPair:
    """A floating-point matrix before and after."""

    before: StoredTensor  # the tensor that holds W
    after: StoredTensor  # W', in the same shape
    expert: int | None = None  # index on the tensor's first axis, where experts are fused in it
    chosen: Tensor | None = None  # which rows of the matrix these are, where not all

    @property
    def shape(self) -> tuple[int, int]:
        """(p, q)."""
        rows = self.before.rows if self.expert is None else self.before.shape[-2]
        return rows if self.chosen is None else len(self.chosen), self.before.columns

    @property
    def dtypes(self) -> tuple[torch.dtype, torch.dtype]:
        """Of W and W' as they are stored."""
        before, after = float_dtype(self.before), float_dtype(self.after)
        assert before is not None
        assert after is not None
        return (after if self.after.computed else before, after)

    @property
    def dtype(self) -> torch.dtype:
        """The one of the two with fewer digits: its rounding hides changes."""
        return max(self.dtypes, key=lambda dtype: torch.finfo(dtype).eps)

    @property
    def working(self) -> torch.dtype:
        """The dtype of the blocks: our own arithmetic is far finer than the rounding that is measured."""
        return torch.float32 if torch.finfo(self.dtype).eps >= torch.finfo(torch.bfloat16).eps else torch.float64

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
        rows, columns = replace(self, chosen=None).shape
        first, step, done = (self.expert or 0) * rows, max(1, _BLOCK_ENTRIES // max(1, columns)), 0
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            inside: slice | Tensor = slice(None)
            if self.chosen is not None:
                inside = self.chosen[(self.chosen >= start) & (self.chosen < stop)] - start
                if not inside.numel():
                    continue
            sides = (side.read_rows(first + start, first + stop)[inside] for side in (self.before, self.after))
            before, after = (side.to(self.working) for side in sides)
            rows_here, done = slice(done, done + len(before)), done + len(before)
            yield Block(rows_here, before, after, self.dtype)

    def strongest(self, energy: Float[Tensor, " p"]) -> "MatrixPair":
        """The rows that changed most, as a small matrix of their own."""
        count = max(1, _CACHED_ENTRIES // (2 * max(1, self.shape[1])))
        return replace(self, chosen=energy.argsort(descending=True)[:count].sort().values)


@dataclass
class Totals:
    """What changed in a pair, entry by entry: how many, how much, and whether one side is the other rounded."""

    row_energy: Float[Tensor, " p"]  # squared norms of the change's rows
    row_changed: Bool[Tensor, " p"]  # in which rows anything changed
    column_changed: Bool[Tensor, " q"]  # in which columns
    rounded_to: set[torch.dtype]  # dtypes to which W' may be W rounded
    rounded_from: bool = True  # whether W may be W' rounded
    changed: int = 0  # entries that differ
    not_finite: int = 0  # entries of either side that are NaN or infinite
    entries: list[tuple[int, int]] = field(default_factory=list)  # (row, column) of the first that differ
    most_spacings: float = 0.0  # the largest change, in spacings of the dtype
    before_energy: float = 0.0  # ‖W‖²

    @classmethod
    def of(cls, pair: MatrixPair) -> "Totals":
        """Read a pair once, and sum up what changed."""
        p, q = pair.shape
        energy, rows, columns = (
            torch.zeros(n, dtype=d) for n, d in ((p, torch.float64), (p, torch.bool), (q, torch.bool))
        )
        totals = cls(energy, rows, columns, {*ROUNDED_TO, pair.dtypes[1]})
        for block in pair.blocks():
            totals.rounded_to = {to for to in totals.rounded_to if _is_rounded(block.before, block.after, to)}
            totals.rounded_from = totals.rounded_from and _is_rounded(block.after, block.before, pair.dtypes[0])
            totals.not_finite += int((~block.after.isfinite()).sum()) + int((~block.before.isfinite()).sum())
            if totals.not_finite:
                continue
            change, nonzero = block.change, block.change != 0
            totals.changed += int(nonzero.sum())
            found = nonzero.nonzero()[: SHOWN_ENTRIES - len(totals.entries)].tolist()
            totals.entries += [(row + block.rows.start, column) for row, column in found]
            totals.row_energy[block.rows] = change.double().square().sum(1)
            totals.row_changed[block.rows] = nonzero.any(1)
            totals.column_changed |= nonzero.any(0)
            totals.before_energy += float(block.before.double().square().sum())
            if change.numel():
                spacings = change.abs() / spacing(torch.maximum(block.before.abs(), block.after.abs()), block.dtype)
                totals.most_spacings = max(totals.most_spacings, float(spacings.max()))
        return totals

    @property
    def energy(self) -> float:
        """‖W' − W‖²."""
        return float(self.row_energy.sum())


def _is_rounded(before: Float[Tensor, "r q"], after: Float[Tensor, "r q"], dtype: torch.dtype) -> bool:
    """Whether `after` is `before` rounded to `dtype`, in every entry. NaN equals NaN."""
    rounded = before.to(dtype).to(after.dtype)
    return bool(((rounded == after) | (rounded.isnan() & after.isnan())).all())
