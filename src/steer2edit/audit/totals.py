"""What changed in a matrix, entry by entry: how many, how much, and whether one side is the other rounded."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steer2edit.audit.matrices import Block, MatrixPair
from steer2edit.audit.rounding import ROUNDED_TO, is_rounded, spacing

SHOWN_ENTRIES = 8


@dataclass
class Totals:
    """Sums over the blocks of a pair."""

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

    @property
    def energy(self) -> float:
        """‖W' − W‖²."""
        return float(self.row_energy.sum())


def total(pair: MatrixPair) -> Totals:
    """Read a pair once, and sum up what changed."""
    (p, q), before_dtype = pair.shape, pair.dtypes[0]
    totals = Totals(
        torch.zeros(p, dtype=torch.float64),
        torch.zeros(p, dtype=torch.bool),
        torch.zeros(q, dtype=torch.bool),
        {*ROUNDED_TO, pair.dtypes[1]},
    )
    for block in pair.blocks():
        totals.rounded_to = {dtype for dtype in totals.rounded_to if is_rounded(block.before, block.after, dtype)}
        totals.rounded_from = totals.rounded_from and is_rounded(block.after, block.before, before_dtype)
        totals.not_finite += int((~block.after.isfinite()).sum()) + int((~block.before.isfinite()).sum())
        if not totals.not_finite:
            _add(totals, block)
    return totals


def _add(totals: Totals, block: Block) -> None:
    change = block.change
    nonzero = change != 0
    totals.changed += int(nonzero.sum())
    found = nonzero.nonzero()[: SHOWN_ENTRIES - len(totals.entries)].tolist()
    totals.entries += [(row + block.start, column) for row, column in found]
    totals.row_energy[block.rows] = change.double().square().sum(1)
    totals.row_changed[block.rows] = nonzero.any(1)
    totals.column_changed |= nonzero.any(0)
    totals.before_energy += float(block.before.double().square().sum())
    if change.numel():
        spacings = change.abs() / spacing(torch.maximum(block.before.abs(), block.after.abs()), block.dtype)
        totals.most_spacings = max(totals.most_spacings, float(spacings.max()))
