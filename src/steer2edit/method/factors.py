"""One site's factors, and edits from them: everything that does not depend on (ρ, α) is computed once.

Shapes: d = width of a site's output, m = width of its input, n = components of the site, k = configurations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Experts, SiteEdit, SiteEffects
from steer2edit.errors import InvalidValueError
from steer2edit.method.effect import effect_rows
from steer2edit.method.hyperparameters import PAPER_RULES, Rules
from steer2edit.method.rule import importance, input_directions, magnitude, output_direction, precise
from steer2edit.method.shift import limit_shift
from steer2edit.method.sparing import spare


@dataclass(frozen=True)
class SiteFactors:
    """u, k and g of one site: all of an edit that does not depend on (ρ, α).

    Args:
        output_direction: u, [d].
        input_directions: k = concat_i(k_i), [m]; zero where a component has no direction.
        importance: g, [n].
        vector_norm: ‖v‖.
        input_mean: μ, [m].
        rules: the rules that made them; the magnitude rule is the one `edits` applies.
        benign_mean: mean input on benign text, [m], which sparing needs.
        experts: how the components divide into experts, where the site is a mixture of experts.
        effects: measured effects and costs of the columns, which the rule `effect` makes rows of.
        largest_effect: of a component of any site of the block: the unit of that rule's threshold.
    """

    output_direction: Float[Tensor, " d"]
    input_directions: Float[Tensor, " m"]
    importance: Float[Tensor, " n"]
    vector_norm: float
    input_mean: Float[Tensor, " m"]
    rules: Rules = PAPER_RULES
    benign_mean: Float[Tensor, " m"] | None = None
    experts: Experts | None = None
    effects: SiteEffects | None = None
    largest_effect: float = 0.0

    @property
    def largest_importance(self) -> float:
        """Largest |g| of the components that have an input direction, or 0; by effect, a share of the block's."""
        directed = (self.input_directions.view(self.importance.numel(), -1) != 0).any(dim=1)
        if self.rules.importance == "effect":
            norms = self.wanted_effects.view(len(directed), -1).norm(dim=1)
            return float((norms * directed).max()) / max(self.largest_effect, 1e-30)
        return (self.importance.abs() * directed).max().item()

    @property
    def wanted_effects(self) -> Float[Tensor, " m"]:
        """The measured effects that the rule `effect` makes rows of: s, or the gated ŝ."""
        assert self.effects is not None
        return self.effects.gated if self.rules.input_direction == "gated" else self.effects.attribute

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
            input_mean=self.input_mean.cpu(),
            benign_mean=None if self.benign_mean is None else self.benign_mean.cpu(),
        )

    def edits(
        self,
        rho: Sequence[float],
        alpha: Sequence[float],
        max_shift: Sequence[float | None] | None = None,
        gain: Sequence[float | None] | None = None,
    ) -> list[SiteEdit]:
        """The site's edit for each (ρ, α): `a = concat_i(λ_i k_i)`, all configurations in one product.

        A component without an input direction gets λ = 0, as in the official code. A spared row is not made of the
        k_i alone; its λ_i is then `a_i · k_i`, what the component's part of the row has along k_i.

        Args:
            rho: ρ by configuration.
            alpha: α by configuration.
            max_shift: κ of `limit_shift` by configuration, `None` for no limit (the paper's rule).
            gain: s of `spare` by configuration, `None` for no sparing (the paper's rule).

        Raises:
            InvalidValueError: some ρ ≤ 0, some α outside [0, 1), or sparing without a benign mean.
        """
        rows, lam, g = self._rows(torch.tensor(rho, dtype=torch.float64), torch.tensor(alpha, dtype=torch.float64))
        if max_shift is not None:
            factor = limit_shift(rows, self.input_mean, self.vector_norm, max_shift)[:, None]
            rows, lam = rows * factor, lam * factor
        if gain is not None and any(s is not None for s in gain):
            rows, lam = self._spared(rows, lam, gain)
        return [SiteEdit(self.output_direction, rows[c], lam[c], g[c], self.experts) for c in range(len(rho))]

    def _rows(
        self, rho: Float[Tensor, " k"], alpha: Float[Tensor, " k"]
    ) -> "tuple[Float[Tensor, 'k m'], Float[Tensor, 'k n'], Float[Tensor, 'k n']]":
        """(a, λ, g) of each configuration.

        By effect, a component's part of the row a_i has a direction of its own; λ_i = s_iᵀ a_i is what the component
        adds to the attribute, in nats, and g_i = λ_i / ‖a_i‖ what a unit of it adds.
        """
        per_component = self.input_directions.view(self.importance.numel(), -1)
        directed = (per_component != 0).any(dim=1)
        if self.rules.importance != "effect":
            lam = magnitude(self.importance, rho, alpha, rule=self.rules.magnitude) * directed
            return (lam[:, :, None] * per_component).flatten(1), lam, self.importance.expand(len(rho), -1)
        assert self.effects is not None
        n = self.importance.numel()
        rows = effect_rows(self.wanted_effects, self.effects.drift, n, self.largest_effect, rho, alpha)
        parts = rows.view(len(rho), n, -1) * directed[:, None]
        lam = (parts * self.effects.attribute.view(n, -1)).sum(dim=-1)
        length = parts.norm(dim=-1)
        return parts.flatten(1), lam, torch.where(length > 0, lam / torch.where(length > 0, length, 1), 0)

    def _spared(
        self, rows: Float[Tensor, "k m"], lam: Float[Tensor, "k n"], gain: Sequence[float | None]
    ) -> "tuple[Float[Tensor, 'k m'], Float[Tensor, 'k n']]":
        if self.benign_mean is None:
            raise InvalidValueError(
                "sparing needs the mean input on benign text, and these factors have none. Give benign prompts: "
                "--spare benign|FILE (spare=...)."
            )
        rows = spare(rows, lam, self.benign_mean, gain)
        along = (rows.view(*lam.shape, -1) * self.input_directions.view(lam.shape[1], -1)).sum(dim=-1)
        spared = torch.tensor([s is not None for s in gain], device=lam.device)[:, None]
        return rows, torch.where(spared, along, lam)


def site_factors(
    weight: Float[Tensor, "d m"],
    vector: Float[Tensor, " d"],
    input_mean: Float[Tensor, " m"],
    width: int,
    rules: Rules = PAPER_RULES,
    benign_mean: Float[Tensor, " m"] | None = None,
) -> SiteFactors:
    """Factors of one site from its weight, steering vector and input mean.

    Args:
        weight: W, [d, m], any floating dtype.
        vector: v, [d].
        input_mean: μ, [m].
        width: columns per component; divides m.
        rules: which k, g and λ.
        benign_mean: mean input on benign text, [m], if edits are to be spared.

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
    direction = "sensitivity" if rules.input_direction == "gated" else rules.input_direction  # a has one of its own
    return SiteFactors(
        output_direction(vector),
        input_directions(weight, vector, width, rule=direction, input_mean=input_mean),
        importance(weight, vector, input_mean, width, rule="dot" if rules.importance == "dot" else "cosine"),
        precise(vector).norm().item(),
        precise(input_mean),
        rules,
        None if benign_mean is None else precise(benign_mean),
    )


def joined(parts: Sequence[SiteFactors], experts: Experts, usage: Float[Tensor, " e"]) -> SiteFactors:
    """The factors of a mixture of experts from those of its experts, which share u.

        a token's output changes by  Σ_e r_e (x_e · a_e) u,   r_e the routing weight, 0 where e is not chosen

    so k, g and λ of the experts stand side by side, and what the whole row writes on average (for the limit κ) is
    `Σ_e r̄_e (a_eᵀμ_e)`: the mean input of the wide projection is each expert's own times its mean routing weight.
    This takes r_e and x_e as uncorrelated within the tokens of an expert.

    Args:
        parts: factors of each expert, in order, the shared one last.
        experts: their sizes.
        usage: r̄, mean routing weight over all tokens, [e].
    """
    share = usage.repeat_interleave(torch.tensor(experts.widths))
    benign = [part.benign_mean for part in parts if part.benign_mean is not None]
    return replace(
        parts[0],
        input_directions=torch.cat([part.input_directions for part in parts]),
        importance=torch.cat([part.importance for part in parts]),
        input_mean=torch.cat([part.input_mean for part in parts]) * share,
        benign_mean=torch.cat(benign) if benign else None,
        experts=experts,
    )
