"""Which directions are taken out of what sites write, and what is to be compared with that.

Shapes: d = width of a site's output.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import SiteEdit, WeightEdit


def common_direction(edit: WeightEdit) -> tuple[Float[Tensor, " d"], float]:
    """(the one direction that most of the edit writes along, its share of ‖ΔW‖²).

    It is the leading left singular vector of the sites' edits side by side, whose columns are ‖a‖ u.
    """
    written = torch.stack([e.row.norm() * e.output_direction for e in edit.sites.values()]).double()
    _, values, directions = torch.linalg.svd(written, full_matrices=False)
    return directions[0].float(), float(values[0].square() / values.square().sum())


def random_direction(width: int, seed: int) -> Float[Tensor, " d"]:
    """A direction drawn evenly from the sphere."""
    drawn: Tensor = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    drawn /= drawn.norm()
    return drawn


def random_like(edit: WeightEdit, seed: int) -> WeightEdit:
    """An edit with random u and a, each site of the size it has in the given one: what knowledge of neither gives."""
    generator = torch.Generator().manual_seed(seed)
    sites = {}
    for site, own in edit.sites.items():
        u = torch.randn(own.output_direction.shape, generator=generator)
        a = torch.randn(own.row.shape, generator=generator)
        row = a / a.norm() * (own.row.norm() * own.output_direction.norm())
        nothing = torch.zeros_like(own.importance)
        magnitude = row.view(own.magnitude.numel(), -1).norm(dim=1)
        sites[site] = SiteEdit(u / u.norm(), row, magnitude, nothing, own.experts)
    return WeightEdit(sites)
