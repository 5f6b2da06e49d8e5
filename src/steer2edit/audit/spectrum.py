"""The numerical rank of a change: singular values above what rounding alone would give.

Shapes: p × q = the matrix as it is stored; k = directions followed.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.audit.matrices import MatrixPair
from steer2edit.audit.totals import Totals

LARGEST_RANK = 256
_SIZES = (8, 64, LARGEST_RANK + 16)
_SEED = 0
_MARGIN = 1.5


@dataclass(frozen=True)
class Spectrum:
    """Leading singular values of a change."""

    values: Float[Tensor, " k"]  # in descending order, as many as were needed
    right: Float[Tensor, "q k"]  # right singular vectors of the same, [q, k]
    rank: int | None  # how many lie above the noise; `None` if more than half of all, or than `LARGEST_RANK`: full rank
    noise_edge: float  # the largest singular value that rounding alone would give


def spectrum(pair: MatrixPair, totals: Totals) -> Spectrum:
    """Singular values of a pair's change, and its numerical rank.

    A randomised range finder with one power iteration, grown from 8 to at most 272 directions until the smallest
    value found lies below the noise edge. If k directions hold the share s of the change's energy, its rank is at
    least k / s, which ends the search early for a change of full rank.

    Source: Halko, Martinsson and Tropp, SIAM Review 53 (2011), Algorithm 4.4.
    """
    edge, noise = rounding_noise(pair, totals)
    smaller = min(pair.shape)
    most = min(LARGEST_RANK, max(1, smaller // 2))
    meant = max(totals.energy - noise, 0.0)
    for size in _SIZES:
        values, right = _leading_directions(pair, min(size, smaller))
        above = int((values > edge).sum())
        if above < len(values) or len(values) == smaller:
            return Spectrum(values, right, above if above <= most or smaller <= 2 else None, edge)
        captured = float(values.double().square().sum()) / meant if meant > 0 else 1.0
        if len(values) / max(captured, 1e-9) > most:
            break
    return Spectrum(values, right, None, edge)


def rounding_noise(pair: MatrixPair, totals: Totals) -> tuple[float, float]:
    """What rounding alone would leave in the change: its largest singular value, and its squared norm Σ h²/3.

    An entry's rounding error lies within ± h (its halfwidth), so its variance is at most about h²/3. A matrix of
    independent errors with these variances has its largest singular value at about

        max over rows of √(Σ_j h_ij²/3) + max over columns of √(Σ_i h_ij²/3),

    which for equal entries is σ(√p + √q); a margin of one half is for what is not independent in rounding. Only rows
    and columns in which something changed count: in the others the weight lay on the dtype's grid before and after,
    without error.

    Source: the bound is Bandeira and van Handel's for independent entries (Ann. Probab. 44, 2016, Theorem 1.1).
    """
    by_column = torch.zeros(pair.shape[1], dtype=torch.float64)
    largest_row = 0.0
    for block in pair.blocks():
        counted = totals.row_changed[block.rows][:, None] & totals.column_changed
        variance = torch.where(counted, block.halfwidth.double().square() / 3, 0)
        by_column += variance.sum(0)
        largest_row = max(largest_row, float(variance.sum(1).max()))
    return _MARGIN * (largest_row**0.5 + float(by_column.max()) ** 0.5), float(by_column.sum())


def _leading_directions(pair: MatrixPair, count: int) -> tuple[Float[Tensor, " k"], Float[Tensor, "q k"]]:
    """The `count` largest singular values of W' − W and their right vectors, in three passes over the rows."""
    generator = torch.Generator().manual_seed(_SEED)
    basis = torch.randn(pair.shape[1], count, generator=generator, dtype=torch.float64).to(pair.working)
    for _ in range(2):
        image = torch.zeros_like(basis)
        for block in pair.blocks():
            image += block.change.T @ (block.change @ basis)
        basis = torch.linalg.qr(image)[0]
    gram = torch.zeros(count, count, dtype=torch.float64)
    for block in pair.blocks():
        projected = (block.change @ basis).double()
        gram += projected.T @ projected
    squares, vectors = torch.linalg.eigh(gram)
    return squares.flip(0).clamp_min(0).sqrt(), basis @ vectors.flip(1).to(basis.dtype)
