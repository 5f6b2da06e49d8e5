"""Edits `ΔW = u aᵀ` that others make of a direction: the baselines of a comparison, and attacks.

Shapes: d = width of a site's output, m = width of its input.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Site, SiteEdit, WeightEdit
from steer2edit.method.rule import output_direction, precise
from steer2edit.models import LanguageModel

Directions = Mapping[Site, Float[Tensor, " d"]]
"""u by site, of any length but zero."""


def rosi(model: LanguageModel, directions: Directions) -> WeightEdit:
    """Rank-1 injection, `ΔW = u w̄ᵀ` at every site, with `λ_i = ‖w̄_i‖`; its strength is ROSI's α.

    Source: ROSI, "Turning the Spell Around", arXiv 2508.20766.
    """
    return _edit(model, directions, lambda weight, _: precise(weight).mean(dim=0), 1, "rosi")


def ablation(model: LanguageModel, directions: Directions) -> WeightEdit:
    """The edit after which each site writes nothing along its direction, with `λ_i = −‖W_iᵀu‖`; a bias's share stays.

    Weights are read as they are now: inside `merged`, those with the edit.

    Source: directional ablation, Arditi et al., arXiv 2406.11717.
    """
    return _edit(model, directions, ablation_row, -1, "ablation")


def ablation_row(weight: Float[Tensor, "d m"], direction: Float[Tensor, " d"]) -> Float[Tensor, " m"]:
    """a = −Wᵀu, for u of any length but zero."""
    return -(precise(weight).T @ output_direction(direction).to(precise(weight).dtype))


def _edit(
    model: LanguageModel, directions: Directions, row_of: Callable[[Tensor, Tensor], Tensor], sign: int, method: str
) -> WeightEdit:
    sites = {}
    for site, direction in directions.items():
        module, u = model.sites[site], output_direction(direction).cpu()
        row = torch.cat([row_of(p.weight, u.to(p.device)).cpu() for p in module.projections])
        lengths = row.view(-1, module.component_width).norm(dim=1)
        sites[site] = SiteEdit(u, row, sign * lengths, torch.zeros_like(lengths), module.sizes)
    return WeightEdit(sites, {"method": method, "model": model.describe()})
