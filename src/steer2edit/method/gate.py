"""Gated rows, beyond the paper: they fire where the behaviour is wanted, and stay silent where it is not.

One row over the columns of all sites at once, by ridge regression on what requests say of them:

    minimise over a   Σ_i (φ_i·a − y_i)² + ρ κ Σ_j a_j² (C_j + C̄)

φ_i is what a unit of each column adds to the decision on request i (effects on the wanted response less those on the
model's own, `models.effects`); y_i = 1 for requests that the behaviour is wanted on, 0 for those it is not; C what a
column costs in drift, C̄ its mean over the site; κ the mean of φᵀHφ over the wanted requests, so that ρ counts
requests. With H = 1 / (C + C̄) the solution is

    a = H Φᵀβ,   β = (Φ H Φᵀ + ρ κ I)⁻¹ y

a system of as many equations as there are requests, however wide the sites are. So a = H ŝ with ŝ = Φᵀβ: effects
summed over requests, as s is, but each weighed by what it takes for the wanted ones to move and the others not to.

Shapes: n = requests, m = width of a site's input.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

RIDGE = 0.05
"""ρ: on SmolLM2, requests that are left out are told apart best at .01 to .1 (docs/findings.md)."""

_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True)
class Gate(Generic[_Key]):
    """What gated rows are made of, and how well they tell requests apart that they were not made from.

    Args:
        effects: ŝ by site, [m].
        left_out: φ_i·a of every request i, with a made from all others, [n].
    """

    effects: Mapping[_Key, Float[Tensor, " m"]]
    left_out: Float[Tensor, " n"]


def gated_effects(
    features: Mapping[_Key, Float[Tensor, "n m"]],
    drift: Mapping[_Key, Float[Tensor, " m"]],
    targets: Float[Tensor, " n"],
    ridge: float = RIDGE,
) -> Gate[_Key]:
    """ŝ of all sites, solved together.

    Args:
        features: Φ by site.
        drift: C ≥ 0 by site; columns of a site without any drift count for nothing.
        targets: y, at least one of them not 0.
        ridge: ρ > 0.

    Returns:
        ŝ by site, and the predictions left out, in closed form: with G that inverse, y_i − (G y)_i / G_ii.
    """
    y = targets.double()
    kernel = torch.zeros(len(y), len(y), dtype=torch.float64)
    for site, phi in features.items():
        cost = drift[site].double() + drift[site].double().mean()
        weight = torch.where(cost > 0, 1 / cost.clamp(min=torch.finfo(torch.float64).tiny), 0)
        kernel += ((phi * weight.to(phi.dtype)) @ phi.T).double()
    energy = kernel.diagonal()[y != 0].mean()
    solver = torch.linalg.inv(kernel + ridge * energy * torch.eye(len(y), dtype=torch.float64))
    beta = solver @ y
    return Gate({site: beta.to(phi.dtype) @ phi for site, phi in features.items()}, y - beta / solver.diagonal())
