"""A floating-point matrix before and after, by blocks of rows: what changed, and how far rounding can move a number.

A checkpoint holds `W' = round(W + ΔW)`, so that `W' − W` is ΔW up to half the distance between two neighbouring numbers
of the dtype, entry by entry: a large weight hides more than a small one.

Shapes: p × q = the matrix as it is stored, which may be larger than memory; r rows of a block.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
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
    """A floating-point matrix before and after, read by blocks of rows as often as it is iterated over."""

    before: StoredTensor  # the tensor that holds W
    after: StoredTensor  # W', in the same shape
    expert: int | None = None  # index on the tensor's first axis, where experts are fused in it

    @property
    def shape(self) -> tuple[int, int]:
        """(p, q)."""
        return self.before.rows if self.expert is None else self.before.shape[-2], self.before.columns

    @property
    def dtypes(self) -> tuple[torch.dtype, torch.dtype]:
        """Of W and W' as they are stored; of a sum that is computed, float32 for both."""
        return (torch.float32, torch.float32) if self.after.changes else (self.before.dtype, self.after.dtype)

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

    def __iter__(self) -> Iterator[Block]:
        yield from self._cached if self.is_small else self._read()

    @cached_property
    def _cached(self) -> tuple[Block, ...]:
        return tuple(self._read())

    def _read(self) -> Iterator[Block]:
        rows, columns = self.shape
        first, step = (self.expert or 0) * rows, max(1, _BLOCK_ENTRIES // max(1, columns))
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            before, after = (
                t.read_rows(first + start, first + stop).to(self.working) for t in (self.before, self.after)
            )
            yield Block(slice(start, stop), before, after, self.dtype)

    def strongest(self, energy: Float[Tensor, " p"]) -> list[Block]:
        """The rows with most energy, as blocks of a small matrix of their own."""
        count = max(1, _CACHED_ENTRIES // (2 * max(1, self.shape[1])))
        chosen = energy.argsort(descending=True)[:count].sort().values
        blocks, done = list[Block](), 0
        for block in self:
            inside = chosen[(chosen >= block.rows.start) & (chosen < block.rows.stop)] - block.rows.start
            rows, done = slice(done, done + len(inside)), done + len(inside)
            blocks.append(Block(rows, block.before[inside], block.after[inside], block.dtype))
        return blocks


@dataclass
class Totals:
    """What changed in a pair, entry by entry: how many, how much, and whether one side is the other rounded."""

    row_energy: Float[Tensor, " p"]  # squared norms of the change's rows
    column_changed: Bool[Tensor, " q"]  # in which columns anything changed
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
        totals = cls(
            torch.zeros(p, dtype=torch.float64), torch.zeros(q, dtype=torch.bool), {*ROUNDED_TO, pair.dtypes[1]}
        )
        for block in pair:
            totals.rounded_to = {to for to in totals.rounded_to if _is_rounded(block.before, block.after, to)}
            totals.rounded_from = totals.rounded_from and _is_rounded(block.after, block.before, pair.dtypes[0])
            totals.not_finite += int((~block.after.isfinite()).sum()) + int((~block.before.isfinite()).sum())
            if not totals.not_finite and block.change.numel():
                totals._add(block)
        return totals

    def _add(self, block: Block) -> None:
        change, nonzero = block.change, block.change != 0
        self.changed += int(nonzero.sum())
        found = nonzero.nonzero()[: SHOWN_ENTRIES - len(self.entries)].tolist()
        self.entries += [(row + block.rows.start, column) for row, column in found]
        self.row_energy[block.rows] = change.double().square().sum(1)
        self.column_changed |= nonzero.any(0)
        self.before_energy += float(block.before.double().square().sum())
        spacings = change.abs() / spacing(torch.maximum(block.before.abs(), block.after.abs()), block.dtype)
        self.most_spacings = max(self.most_spacings, float(spacings.max()))

    @property
    def energy(self) -> float:
        """‖W' − W‖²."""
        return float(self.row_energy.sum())


def _is_rounded(before: Float[Tensor, "r q"], after: Float[Tensor, "r q"], dtype: torch.dtype) -> bool:
    """Whether `after` is `before` rounded to `dtype`, in every entry. NaN equals NaN."""
    rounded = before.to(dtype).to(after.dtype)
    return bool(((rounded == after) | (rounded.isnan() & after.isnan())).all())
