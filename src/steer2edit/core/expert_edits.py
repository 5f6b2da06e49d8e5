"""What a weight edit does to each expert of its mixtures: sums over the expert's neurons.

Shapes: w = neurons of an expert.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core.components import Site
from steer2edit.core.edit import WeightEdit


@dataclass(frozen=True)
class ExpertEdit:
    """The neurons of one expert, summed.

    Args:
        site: the mixture.
        name: of the expert: E5, or shared.
        neurons: how many it has.
        strengthened: how many of them have λ > 0.
        weakened: how many have λ < 0.
        raised: the sum of the positive λ, ≥ 0.
        lowered: the sum of the negative λ, ≤ 0.
    """

    site: Site
    name: str
    neurons: int
    strengthened: int
    weakened: int
    raised: float
    lowered: float

    def __str__(self) -> str:
        return f"L{self.site.layer}.{self.name}"

    @property
    def edited(self) -> int:
        """How many neurons have λ ≠ 0."""
        return self.strengthened + self.weakened

    @property
    def mass(self) -> float:
        """Σ|λ|."""
        return self.raised - self.lowered

    @property
    def signed_mass(self) -> float:
        """Σ|λ| with the sign of Σλ: opposite neurons do not cancel, and the sign says which of them outweigh."""
        return self.mass if self.raised + self.lowered >= 0 else -self.mass


def expert_edits(edit: WeightEdit) -> list[ExpertEdit]:
    """Every expert of every mixture that the edit has, by layer and in the order of the site's columns."""
    return [
        _expert_edit(site, name, magnitude)
        for site, own in edit.sites.items()
        if own.experts is not None
        for name, magnitude in zip(own.experts.names, torch.split(own.magnitude, own.experts.widths), strict=True)
    ]


def top_experts(edit: WeightEdit, count: int | None = None) -> list[ExpertEdit]:
    """The experts of largest Σ|λ|, largest first, all unless a count is given; only those with an edited neuron."""
    edited = [expert for expert in expert_edits(edit) if expert.edited]
    return sorted(edited, key=lambda expert: -expert.mass)[:count]


def _expert_edit(site: Site, name: str, magnitude: Float[Tensor, " w"]) -> ExpertEdit:
    raised, lowered = magnitude.clamp(min=0).double(), magnitude.clamp(max=0).double()
    return ExpertEdit(
        site=site,
        name=name,
        neurons=magnitude.numel(),
        strengthened=int(raised.count_nonzero()),
        weakened=int(lowered.count_nonzero()),
        raised=raised.sum().item(),
        lowered=lowered.sum().item(),
    )
