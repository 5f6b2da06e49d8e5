"""Rows from measured effects and costs, beyond the paper: what an edit gains, per bit of what it costs.

The paper weighs components by a cosine, and every component costs the same. Here s is what a unit of each input column
adds to the attribute when the site writes it along u, and C what it costs in drift, both measured
(`models.effects`):

    maximise   sᵀa − ½ Σ_j (C_j + ρ(1 − α) C̄) a_j² − ρα S Σ_i ‖a_i‖

over the whole row a, component by component (a_i ∈ R^w: w columns of a head, 1 of a neuron), with C̄ the mean of the
site's C, so that ρ is a share, and S the largest ‖s_i‖ of the block, so that α is one.

Shapes: d, m = widths of a site's output and input, n = components of the site, w = m / n, k = configurations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Experts, SiteEdit


def effect_rows(
    attribute: Float[Tensor, " m"],
    drift: Float[Tensor, " m"],
    components: int,
    largest: float,
    rho: Float[Tensor, " k"],
    alpha: Float[Tensor, " k"],
) -> Float[Tensor, "k m"]:
    """The row of each configuration (ρ, α).

        a_j = max(1 − ρα S / ‖s_i‖, 0) · s_j / (C_j + ρ(1 − α) C̄),   j a column of component i

    It solves the problem above for neurons, and for heads where C is the same in all columns of a head. With C = 0 and
    C̄ = 1 it is the paper's magnitude of s. Its scale is in nats; what drift it spends is calibrated afterwards. Zero
    where the drift does not depend on a site at all.
    """
    s, C = attribute.double(), drift.double()
    norms = s.view(components, -1).norm(dim=1)
    threshold = (rho * alpha).double()[:, None] * largest
    share = (1 - threshold / norms.clamp(min=torch.finfo(torch.float64).tiny)).clamp(min=0)
    cost = C + (rho * (1 - alpha)).double()[:, None] * C.mean()
    rows = share.repeat_interleave(s.numel() // components, dim=1) * s / cost
    return torch.where(cost > 0, rows, 0).to(attribute.dtype)


@dataclass(frozen=True)
class EffectFactors:
    """All of a site's edit by effects that does not depend on (ρ, α)."""

    output_direction: Float[Tensor, " d"]  # u
    wanted: Float[Tensor, " m"]  # what rows are made of: s, or the gated ŝ; zero in columns that are left out
    attribute: Float[Tensor, " m"]  # s
    drift: Float[Tensor, " m"]  # C ≥ 0
    components: int  # n
    largest: float  # S, the largest ‖s_i‖ (or ‖ŝ_i‖) over all sites of the block
    experts: Experts | None = None  # how the components divide into experts, where the site is a mixture of experts

    @property
    def largest_importance(self) -> float:
        """Largest ‖s_i‖ of the site, as a share of the block's."""
        return largest_effect(self.wanted, self.components) / max(self.largest, 1e-30)

    def edits(self, rho: Sequence[float], alpha: Sequence[float]) -> list[SiteEdit]:
        """The site's edit for each (ρ, α), as `effect_rows` has it.

        A component's part of the row a_i has a direction of its own; λ_i = s_iᵀ a_i is what the component adds to the
        attribute, in nats, and g_i = λ_i / ‖a_i‖ what a unit of it adds.
        """
        budget = (torch.tensor(values, dtype=torch.float64) for values in (rho, alpha))
        rows = effect_rows(self.wanted, self.drift, self.components, self.largest, *budget)
        parts = rows.view(len(rows), self.components, -1)
        lam = (parts * self.attribute.view(self.components, -1)).sum(dim=-1)
        length = parts.norm(dim=-1)
        g = torch.where(length > 0, lam / torch.where(length > 0, length, 1), 0)
        return [SiteEdit(self.output_direction, *own, self.experts) for own in zip(rows, lam, g, strict=True)]


def largest_effect(effects: Float[Tensor, " m"], components: int) -> float:
    """The largest ‖s_i‖ of a site's components."""
    return float(effects.view(components, -1).norm(dim=1).max())
