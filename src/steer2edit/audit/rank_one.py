"""Whether a change is one rank-1 matrix up to rounding, and which: a fit inside every entry's rounding interval.

The least-squares fit (the leading singular pair) is biased: where a weight is large against its change, rounding
swallows the change and a zero is read, which is no evidence of zero, only of less than half a spacing. So the fit
asks for one thing: that |W' − W − l rᵀ| ≤ h in every entry, h the entry's halfwidth. Entries within their interval do
not pull; the others pull by their distance to it, in units of h, so that small weights, which show the change best,
count most. An entry far outside (tampered with on top of an edit) pulls less the farther it is, and is reported.

Shapes: p × q = the matrix as it is stored; r rows of a block.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softshrink

from steer2edit.audit.matrices import MatrixPair
from steer2edit.audit.totals import SHOWN_ENTRIES, Totals

_FAR = 20.0  # halfwidths at which an entry's pull is halved
_INSIDE_PULL = 0.02  # curvature of entries that do not pull: keeps a step from overshooting
_OUTSIDE = 2.0  # halfwidths beyond which an entry is not explained
_ALLOWED_SHARE = 1e-3  # of the changed entries
_FEW = 8
_SETTLED = 0.05  # halfwidths beyond its interval at which an entry may stay
_SWEEPS = 80  # at most: most fits settle within 20, very small edits take more
_FEWER_SWEEPS = 20
_SWEEPS_OF_ALL = 2  # where the fit of the strongest rows starts them
_INNER_STEPS = 2
_SMALLEST_HALFWIDTH = 1e-3  # of the median one: below, our own arithmetic would count


@dataclass(frozen=True)
class RankOne:
    """A rank-1 fit `l rᵀ`."""

    left: Float[Tensor, " p"]  # l [p], of unit length
    right: Float[Tensor, " q"]  # r [q]
    outside: int  # how many entries it does not explain up to rounding
    exceptions: tuple[tuple[int, int, float], ...]  # (row, column, what remains) of the first of those
    accepted: bool  # whether they are few enough (at most one in a thousand of the changed entries, or 8)


def fit_rank_one(pair: MatrixPair, totals: Totals, start: Float[Tensor, " q"], *, thorough: bool = True) -> RankOne:
    """Fit `l rᵀ` into the rounding intervals of a pair's change.

    Args:
        pair: before and after.
        totals: of the pair.
        start: a first guess of r's direction, such as the leading right singular vector.
        thorough: whether to go on for very small edits, which take long to settle.
    """
    right = start.to(pair.working)
    if pair.is_small:
        smallest = _smallest_halfwidth(pair)
        left, right = _fit_blocks(pair, right, smallest, _SWEEPS if thorough else _FEWER_SWEEPS)
    else:
        strongest = pair.strongest(totals.row_energy)
        smallest = _smallest_halfwidth(strongest)
        _, right = _fit_blocks(strongest, right, smallest, _FEWER_SWEEPS)
        left, right = _fit_blocks(pair, right, smallest, _SWEEPS_OF_ALL)
    right = torch.where(totals.column_changed, right, 0)  # a change that shows nowhere is none
    return _checked(pair, totals, left, right, smallest)


def _smallest_halfwidth(pair: MatrixPair) -> float:
    medians = [
        float(changed.median()) for block in pair.blocks() if (changed := block.halfwidth[block.change != 0]).numel()
    ]
    return _SMALLEST_HALFWIDTH * max(medians, default=1.0)


def _fit_blocks(
    pair: MatrixPair, right: Float[Tensor, " q"], smallest: float, sweeps: int
) -> tuple[Float[Tensor, " p"], Float[Tensor, " q"]]:
    """Alternate: each row's coefficient given r, then r given all coefficients."""
    steps = 1 if sweeps > _SWEEPS_OF_ALL else _INNER_STEPS
    left: dict[int, Tensor] = {}
    for _ in range(sweeps):
        pull, curvature, square, settled = torch.zeros_like(right), torch.zeros_like(right), 0.0, True
        for block in pair.blocks():
            inverse = 1 / block.halfwidth.clamp_min(smallest)
            own = left.get(block.start)
            if own is None:
                own = block.change @ right / right.square().sum()
            for _ in range(steps):
                gradient, weight = _pull(block.change, inverse, own, right)
                own = own + _newton(gradient @ right, weight @ right.square())
            gradient, weight = _pull(block.change, inverse, own, right)
            settled = settled and not bool((gradient.abs() > _SETTLED * inverse).any())
            pull += own @ gradient
            curvature += own.square() @ weight
            square += float(own.double().square().sum())
            left[block.start] = own
        length = square**0.5
        right = (right + _newton(pull, curvature)) * length
        left = {start: own / length for start, own in left.items()}
        if settled:
            break
    return torch.cat([left[start] for start in sorted(left)]), right


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


def _checked(
    pair: MatrixPair, totals: Totals, left: Float[Tensor, " p"], right: Float[Tensor, " q"], smallest: float
) -> RankOne:
    outside = 0
    exceptions: list[tuple[int, int, float]] = []
    for block in pair.blocks():
        remains = block.change - torch.outer(left[block.rows], right)
        beyond = remains.abs() > _OUTSIDE * block.halfwidth.clamp_min(smallest)
        outside += int(beyond.sum())
        for row, column in beyond.nonzero()[: max(0, SHOWN_ENTRIES - len(exceptions))].tolist():
            exceptions.append((row + block.start, column, float(remains[row, column])))
    accepted = outside <= max(_FEW, _ALLOWED_SHARE * totals.changed)
    return RankOne(left, right, outside, tuple(exceptions), accepted)
