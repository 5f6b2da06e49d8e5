"""One site's factors, and edits from them by the paper's rule: what does not depend on (ρ, α) is computed once.

Shapes: d = width of a site's output, m = width of its input, n = components of the site, k = configurations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Experts, SiteEdit
from steer2edit.errors import InvalidValueError
from steer2edit.method.hyperparameters import PAPER_RULES, Rules
from steer2edit.method.rule import MagnitudeRule, importance, input_directions, magnitude, output_direction


@dataclass(frozen=True)
class SiteFactors:
    """u, k and g of one site: all of an edit that does not depend on (ρ, α).

    Args:
        output_direction: u, [d].
        input_directions: k = concat_i(k_i), [m]; zero where a component has no direction.
        importance: g, [n].
        magnitude: which λ `edits` takes.
        experts: how the components divide into experts, where the site is a mixture of experts.
    """

    output_direction: Float[Tensor, " d"]
    input_directions: Float[Tensor, " m"]
    importance: Float[Tensor, " n"]
    magnitude: MagnitudeRule = "elastic-net"
    experts: Experts | None = None

    @property
    def largest_importance(self) -> float:
        """Largest |g| of the components that have an input direction, or 0."""
        return (self.importance.abs() * self._directed).max().item()

    @property
    def _per_component(self) -> Float[Tensor, "n w"]:
        return self.input_directions.view(self.importance.numel(), -1)

    @property
    def _directed(self) -> Tensor:
        return (self._per_component != 0).any(dim=1)

    def left_out(self) -> "SiteFactors":
        """The same factors without any input direction, so that no component is edited."""
        return replace(self, input_directions=torch.zeros_like(self.input_directions))

    def cpu(self) -> "SiteFactors":
        """The same factors on the CPU."""
        return replace(
            self,
            output_direction=self.output_direction.cpu(),
            input_directions=self.input_directions.cpu(),
            importance=self.importance.cpu(),
        )

    def edits(self, rho: Sequence[float], alpha: Sequence[float]) -> list[SiteEdit]:
        """The site's edit for each (ρ, α): `a = concat_i(λ_i k_i)`, all configurations in one product.

        A component without an input direction gets λ = 0, as in the official code.

        Args:
            rho: ρ by configuration.
            alpha: α by configuration.

        Raises:
            InvalidValueError: some ρ ≤ 0, or some α outside [0, 1).
        """
        budget = (torch.tensor(values, dtype=torch.float64) for values in (rho, alpha))
        lam = magnitude(self.importance, *budget, rule=self.magnitude) * self._directed
        rows = (lam[:, :, None] * self._per_component).flatten(1)
        return [
            SiteEdit(self.output_direction, row, own, self.importance, self.experts)
            for row, own in zip(rows, lam, strict=True)
        ]


def site_factors(
    weight: Float[Tensor, "d m"],
    vector: Float[Tensor, " d"],
    input_mean: Float[Tensor, " m"],
    width: int,
    rules: Rules = PAPER_RULES,
) -> SiteFactors:
    """Factors of one site from its weight, steering vector and input mean.

    Args:
        weight: W, [d, m], any floating dtype.
        vector: v, [d].
        input_mean: μ, [m].
        width: columns per component; divides m.
        rules: which k, g and λ.

    Returns:
        u, k and g, in float32 (float64 if W is).

    Raises:
        InvalidValueError: v is zero or not finite, or shapes do not fit together.
    """
    d, m = weight.shape
    if vector.shape != (d,) or input_mean.shape != (m,) or width < 1 or m % width:
        raise InvalidValueError(
            f"a weight of shape [{d}, {m}] with components of {width} columns needs a vector of [{d}] and an input "
            f"mean of [{m}], got {list(vector.shape)} and {list(input_mean.shape)}."
        )
    return SiteFactors(
        output_direction(vector),
        input_directions(weight, vector, width, rule=rules.input_direction, input_mean=input_mean),
        importance(weight, vector, input_mean, width, rule=rules.importance),
        rules.magnitude,
    )


def joined(parts: Sequence[SiteFactors], experts: Experts) -> SiteFactors:
    """The factors of a mixture of experts from those of its experts, which share u.

        a token's output changes by  Σ_e r_e (x_e · a_e) u,   r_e the routing weight, 0 where e is not chosen

    so k, g and λ of the experts stand side by side.

    Args:
        parts: factors of each expert, in order, the shared one last.
        experts: their sizes.
    """
    return replace(
        parts[0],
        input_directions=torch.cat([part.input_directions for part in parts]),
        importance=torch.cat([part.importance for part in parts]),
        experts=experts,
    )
