"""A limit on how far an edit may move a site's mean output. Beyond the paper, as an option next to its rule.

Shapes: m = width of a site's input, k = configurations.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def limit_shift(
    rows: Float[Tensor, "k m"], input_mean: Float[Tensor, " m"], vector_norm: float, max_shift: Sequence[float | None]
) -> Float[Tensor, " k"]:
    """Factor in (0, 1] that keeps an edit's mean shift within that of activation steering at strength κ.

        |aᵀμ| ≤ κ ‖v‖,   a ← a · min(1, κ‖v‖ / |aᵀμ|)

    The edit moves the site's mean output by (aᵀμ) u; steering moves it by γ v = γ‖v‖ u. The paper's λ depends on
    cosines alone, so where a site writes little of the behaviour (‖v‖ small) but writes it consistently (|g| large)
    its edit can exceed the vector it was made from many times over. The whole row is scaled, so the edit stays
    rank 1 and the site's components keep their proportions.

    Args:
        rows: a by configuration, [k, m].
        input_mean: μ, [m].
        vector_norm: ‖v‖.
        max_shift: κ by configuration; `None` for no limit.

    Returns:
        The factor by configuration, [k].
    """
    limit = torch.tensor([float("inf") if kappa is None else kappa * vector_norm for kappa in max_shift])
    shift = (rows @ input_mean.to(rows.dtype)).abs()
    limit = limit.to(shift)
    return torch.where(shift > limit, limit / shift.clamp(min=torch.finfo(shift.dtype).tiny), 1.0)
