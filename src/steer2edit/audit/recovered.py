"""From a rank-1 change of a projection to the heads and neurons that carry it.

    ΔW = u aᵀ,   k_i = W_iᵀu / ‖W_iᵀu‖,   λ_i = a_i · k_i

λ does not depend on the sign of u, which a change alone cannot tell: with −u, both a and k turn round. Nothing but
W and W' is needed: no vectors, no hyper-parameters.

Shapes: d = width of the projection's output, m = of its input, n = its components.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steer2edit.audit.matrices import MatrixPair
from steer2edit.audit.rank_one import RankOne
from steer2edit.models import StoredMatrix

_SIGMAS = 4.0


@dataclass(frozen=True)
class Recovered:
    """A projection's rank-1 change by component."""

    place: StoredMatrix  # the projection
    direction: Float[Tensor, " d"]  # u [d], of unit length; its sign is arbitrary
    row: Float[Tensor, " m"]  # a [m]
    magnitude: Float[Tensor, " n"]  # λ [n], 0 where a component is not found to be edited
    norm: Float[Tensor, " n"]  # ‖a_i‖ [n]
    error: Float[Tensor, " n"]  # standard error of λ [n] from rounding
    sensitivity: Float[Tensor, " m"]  # Wᵀu [m]

    @property
    def edited(self) -> Bool[Tensor, " n"]:
        """Which components carry the change: ‖a_i‖ is more than four standard errors."""
        return self.norm > 0

    @property
    def along(self) -> float | None:
        """Share of ‖a‖² along W_iᵀu: 1 for the paper's rule; `None` for neurons, which have one column only."""
        width = self.row.numel() // self.magnitude.numel()
        if width == 1 or not bool(self.edited.any()):
            return None
        noise = (self.error.square() * width)[self.edited].sum()
        whole = self.norm.square()[self.edited].sum() - noise
        return float(self.magnitude.square()[self.edited].sum() / whole.clamp_min(1e-30))

    @property
    def ablation(self) -> tuple[float, float]:
        """(s, cosine) of the fit a = −s Wᵀu: with cosine 1, directional ablation ΔW = −s u uᵀW; s = 1 removes u."""
        energy = self.sensitivity.square().sum().clamp_min(1e-30)
        product = -(self.row @ self.sensitivity)
        return float(product / energy), float(product / (energy.sqrt() * self.row.norm()).clamp_min(1e-30))

    @property
    def components(self) -> list[dict[str, Any]]:
        """The heads or neurons that carry the change, strongest first."""
        order = self.magnitude.abs().argsort(descending=True, stable=True).tolist()
        values = {"magnitude": self.magnitude, "error": self.error, "norm": self.norm}
        return [
            {"component": str(self.place.component(i)), **{name: float(of[i]) for name, of in values.items()}}
            for i in order
            if bool(self.edited[i])
        ]

    def as_json(self) -> dict[str, Any]:
        """As JSON (docs/audit.md)."""
        strength, cosine = self.ablation
        return {
            "norm": float(self.row.norm()),
            "along_sensitivity": self.along,
            "ablation": {"strength": strength, "cosine": cosine},
            "components": self.components,
        }


def recover(pair: MatrixPair, fit: RankOne, place: StoredMatrix) -> Recovered:
    """Heads or neurons of a projection's rank-1 change, from the fit of its stored matrix."""
    u, a = (fit.right, fit.left) if place.transposed else (fit.left, fit.right)
    length = u.norm()
    u, a = (u / length).double(), (a * length).double()
    sensitivity, variance = torch.zeros_like(a), torch.zeros_like(a)
    for block in pair.blocks():
        before, noise = block.before.double(), block.halfwidth.double().square() / 3
        if place.transposed:
            sensitivity[block.rows], variance[block.rows] = before @ u, noise @ u.square()
        else:
            sensitivity += u[block.rows] @ before
            variance += u[block.rows].square() @ noise
    a_i, s_i, variance_i = (values.view(-1, place.module.component_width) for values in (a, sensitivity, variance))
    k = s_i / s_i.norm(dim=1, keepdim=True).clamp_min(1e-300)
    found = a_i.norm(dim=1) > _SIGMAS * variance_i.sum(1).sqrt()
    return Recovered(
        place=place,
        direction=u,
        row=a,
        magnitude=torch.where(found, (a_i * k).sum(1), 0),
        norm=torch.where(found, a_i.norm(dim=1), 0),
        error=(k.square() * variance_i).sum(1).sqrt(),
        sensitivity=sensitivity,
    )
