"""The rank of a change: singular values above what rounding alone would give, and whether it is one rank-1 matrix.

Rank 1 is a fit inside every entry's rounding interval, |W' − W − l rᵀ| ≤ h. Least squares would be biased: where a
weight is large against its change, a zero is read, which tells only that it is less than half a spacing. Entries
outside their interval pull by their distance to it in units of h, so that small weights, which show the change best,
count most; one far outside (tampered with on top of an edit) pulls less the farther it is, and is reported.

Shapes: p × q = the matrix as it is stored; r rows of a block; k = directions followed.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softshrink

from steer2edit.audit.matrices import SHOWN_ENTRIES, Block, MatrixPair, Totals

LARGEST_RANK = 256
_SIZES = (8, 64, LARGEST_RANK + 16)
_SEED = 0
_MARGIN = 1.5  # for what is not independent in rounding
_FAR = 20.0  # halfwidths at which an entry's pull is halved
_INSIDE_PULL = 0.02  # curvature of entries that do not pull: keeps a step from overshooting
OUTSIDE = 2.0  # halfwidths beyond which an entry is not explained
ALLOWED_SHARE = 1e-3  # of the changed entries, that may not be explained
_FEW = 8
_SETTLED = 0.05  # halfwidths beyond its interval at which an entry may stay
_SWEEPS = 80  # at most: most fits settle within 20, very small edits take more
_FEWER_SWEEPS = 20
_SWEEPS_OF_ALL = 2  # where the fit of the strongest rows starts them
_INNER_STEPS = 2
_SMALLEST_HALFWIDTH = 1e-3  # of the median one: below, our own arithmetic would count


def spectrum(pair: MatrixPair, totals: Totals) -> tuple[Float[Tensor, " k"], Float[Tensor, "q k"], int | None, float]:
    """(Leading singular values, their right vectors, how many are above the noise or `None`: full rank, the noise's).

    A randomised range finder, grown until the smallest value found is below the noise. k directions with the share s of
    the energy tell a rank of at least k / s, which ends the search early where the rank is full: more than half of all,
    or than `LARGEST_RANK`. Source: Halko, Martinsson and Tropp, SIAM Review 53 (2011), Algorithm 4.4.
    """
    edge, noise = _rounding_noise(pair, totals)
    smaller = min(pair.shape)
    most = min(LARGEST_RANK, max(1, smaller // 2))
    meant = max(totals.energy - noise, 0.0)
    for size in _SIZES:
        values, right = _leading_directions(pair, min(size, smaller))
        above = int((values > edge).sum())
        if above < len(values) or len(values) == smaller:
            return values, right, above if above <= most or smaller <= 2 else None, edge
        captured = float(values.double().square().sum()) / meant if meant > 0 else 1.0
        if len(values) / max(captured, 1e-9) > most:
            break
    return values, right, None, edge


def _rounding_noise(pair: MatrixPair, totals: Totals) -> tuple[float, float]:
    """What rounding alone would leave in the change: its largest singular value, and its squared norm Σ h²/3.

    An error within ± h has a variance of at most about h²/3, and a matrix of independent ones a largest singular value
    of about max over rows of √(Σ_j h_ij²/3) + max over columns of √(Σ_i h_ij²/3) (Bandeira and van Handel, Ann. Probab.
    44, 2016, Theorem 1.1). Rows and columns in which nothing changed had no error.
    """
    by_column = torch.zeros(pair.shape[1], dtype=torch.float64)
    largest_row = 0.0
    for block in pair:
        counted = (totals.row_energy[block.rows] > 0)[:, None] & totals.column_changed
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
        for block in pair:
            image += block.change.T @ (block.change @ basis)
        basis = torch.linalg.qr(image)[0]
    gram = torch.zeros(count, count, dtype=torch.float64)
    for block in pair:
        projected = (block.change @ basis).double()
        gram += projected.T @ projected
    squares, vectors = torch.linalg.eigh(gram)
    return squares.flip(0).clamp_min(0).sqrt(), basis @ vectors.flip(1).to(basis.dtype)


@dataclass(frozen=True)
class RankOne:
    """A rank-1 fit `l rᵀ` that explains all entries up to rounding, but for a few."""

    left: Float[Tensor, " p"]  # l [p], of unit length
    right: Float[Tensor, " q"]  # r [q]
    outside: int  # how many entries it does not explain: at most one in a thousand of the changed ones, or 8
    exceptions: tuple[tuple[int, int, float], ...]  # (row, column, what remains) of the first of those


def fit_rank_one(pair: MatrixPair, totals: Totals, start: Float[Tensor, " q"], *, thorough: bool) -> RankOne | None:
    """Fit `l rᵀ` into the rounding intervals of a pair's change, from a first guess of r's direction, if it fits.

    A `thorough` fit goes on for very small edits, which take long to settle.
    """
    right = start.to(pair.working)
    part = pair if pair.is_small else pair.strongest(totals.row_energy)
    found = [block.halfwidth[block.change != 0] for block in part]
    smallest = _SMALLEST_HALFWIDTH * max((float(widths.median()) for widths in found if widths.numel()), default=1.0)
    left, right = _fit_blocks(part, right, smallest, _SWEEPS if thorough and pair.is_small else _FEWER_SWEEPS)
    if not pair.is_small:
        left, right = _fit_blocks(pair, right, smallest, _SWEEPS_OF_ALL)
    right = torch.where(totals.column_changed, right, 0)  # a change that shows nowhere is none
    outside = 0
    exceptions: list[tuple[int, int, float]] = []
    for block in pair:
        remains = block.change - torch.outer(left[block.rows], right)
        beyond = remains.abs() > OUTSIDE * block.halfwidth.clamp_min(smallest)
        outside += int(beyond.sum())
        for row, column in beyond.nonzero()[: max(0, SHOWN_ENTRIES - len(exceptions))].tolist():
            exceptions.append((row + block.rows.start, column, float(remains[row, column])))
    return (
        RankOne(left, right, outside, tuple(exceptions))
        if outside <= max(_FEW, ALLOWED_SHARE * totals.changed)
        else None
    )


def _fit_blocks(
    blocks: Iterable[Block], right: Float[Tensor, " q"], smallest: float, sweeps: int
) -> tuple[Float[Tensor, " p"], Float[Tensor, " q"]]:
    """Alternate: each row's coefficient given r, then r given all coefficients."""
    steps = 1 if sweeps > _SWEEPS_OF_ALL else _INNER_STEPS
    left: list[Tensor] = []  # by block
    for _ in range(sweeps):
        fitted = []
        pull, curvature, square, settled = torch.zeros_like(right), torch.zeros_like(right), 0.0, True
        for index, block in enumerate(blocks):
            inverse = 1 / block.halfwidth.clamp_min(smallest)
            own = left[index] if left else block.change @ right / right.square().sum()
            for _ in range(steps):
                gradient, weight = _pull(block.change, inverse, own, right)
                own = own + _newton(gradient @ right, weight @ right.square())
            gradient, weight = _pull(block.change, inverse, own, right)
            settled = settled and not bool((gradient.abs() > _SETTLED * inverse).any())
            pull += own @ gradient
            curvature += own.square() @ weight
            square += float(own.double().square().sum())
            fitted.append(own)
        length = square**0.5
        right = (right + _newton(pull, curvature)) * length
        left = [own / length for own in fitted]
        if settled:
            break
    return torch.cat(left), right


def _pull(
    change: Float[Tensor, "r q"], inverse: Float[Tensor, "r q"], left: Float[Tensor, " r"], right: Float[Tensor, " q"]
) -> tuple[Float[Tensor, "r q"], Float[Tensor, "r q"]]:
    """Gradient and curvature of Σ ½ (distance to the interval / h)², far entries held back."""
    residual = torch.outer(left, right).neg_().add_(change).mul_(inverse)
    excess = softshrink(residual, 1.0)  # its distance to the interval [−1, 1]
    trust = residual.copy_(excess).square_().mul_(_FAR**-2).add_(1).reciprocal_()
    gradient = torch.mul(trust, excess).mul_(inverse)
    weight = torch.where(excess == 0, _INSIDE_PULL, trust).mul_(inverse).mul_(inverse)
    return gradient, weight


def _newton(pull: Float[Tensor, " n"], curvature: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    return torch.where(curvature > 0, pull / torch.where(curvature > 0, curvature, 1), 0)
