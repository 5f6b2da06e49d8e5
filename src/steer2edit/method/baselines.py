"""What others do with a direction, as rows of rank-1 edits `ΔW = u aᵀ`: injection (ROSI) and directional ablation.

Shapes: d = width of a site's output, m = width of its input.
"""

from jaxtyping import Float
from torch import Tensor

from steer2edit.method.rule import output_direction, precise


def injection_row(weight: Float[Tensor, "d m"]) -> Float[Tensor, " m"]:
    """`a = w̄`, the mean of the rows of W: `ΔW = α u w̄ᵀ` makes a site write α times its mean output along u.

    Args:
        weight: W, [d, m], any floating dtype.

    Returns:
        w̄, [m], float32 or better.

    Source: ROSI, "Turning the Spell Around", arXiv 2508.20766.
    """
    mean: Tensor = precise(weight).mean(dim=0)
    return mean


def ablation_row(weight: Float[Tensor, "d m"], direction: Float[Tensor, " d"]) -> Float[Tensor, " m"]:
    """`a = −Wᵀu`: W + u aᵀ = (I − u uᵀ) W writes nothing along u.

    Args:
        weight: W, [d, m], any floating dtype.
        direction: u, [d], of any length but zero.

    Returns:
        −Wᵀu for u of unit length, [m], float32 or better.

    Raises:
        InvalidValueError: u is zero or not finite.

    Source: directional ablation, Arditi et al., arXiv 2406.11717.
    """
    return -(precise(weight).T @ output_direction(direction).to(precise(weight).dtype))
