"""The edit in the weights themselves, `W ← W + strength · u aᵀ`, undone bit for bit on leaving."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import SiteEdit, WeightEdit, finite_strength
from steer2edit.models import LanguageModel


def merged_weight(weight: Float[Tensor, "d m"], edit: SiteEdit, strength: float = 1.0) -> Float[Tensor, "d m"]:
    """`W + strength · u aᵀ`, added in float32 (float64 if W is) and rounded once to W's dtype."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
    add_outer(wide, edit.output_direction.to(wide.device), (strength * edit.row).to(wide.device))
    return wide.to(weight.dtype)


def add_outer(wide: Float[Tensor, "d m"], u: Float[Tensor, " d"], a: Float[Tensor, " m"]) -> None:
    """`W ← W + u aᵀ` in place: the one definition of what an edit does to weights.

    The product is rounded before it is added, as a LoRA's is when it is merged; a fused multiply-add would differ.

    Args:
        wide: W, float32 or float64.
        u: output direction.
        a: row, with its strength.
    """
    wide.add_(torch.outer(u, a))


@contextmanager
def merged(
    model: LanguageModel, edit: WeightEdit, strength: float = 1.0, *, allow_mismatch: bool = False
) -> Iterator[None]:
    """Hold the edited weights in the model within the context.

    The original weights are kept and copied back on leaving, also after an exception: subtracting the edit again
    would leave rounding behind.

    Raises:
        MismatchError: the edit is for another model (unless `allow_mismatch`) or another shape.
        ModelError: a weight is quantised.
    """
    model.require_fit(edit, allow_mismatch=allow_mismatch)
    finite_strength(strength)
    _ = model.fingerprint  # taken now, of the base weights
    parts = [(p, e.part(p.columns)) for site, e in edit.sites.items() for p in model.sites[site].projections]
    for projection, _ in parts:
        projection.require_plain("adding the edit to it")
    originals = [projection.weight.clone() for projection, _ in parts]
    try:
        for projection, part in parts:
            projection.weight.copy_(merged_weight(projection.weight, part, strength))
        yield
    finally:
        for (projection, _), original in zip(parts, originals, strict=True):
            projection.weight.copy_(original)
