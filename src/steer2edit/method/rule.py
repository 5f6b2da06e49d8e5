"""The paper on one page: u, k, g and λ of a site's components, and their edit (Theorems 3.1 to 3.3, §3.4, §3.5).

    u = v / ‖v‖,   k_i = W_iᵀ v / ‖W_iᵀ v‖,   g_i = cos(v, W_i μ_i),   λ_i = sign(g_i) · max(|g_i| − ρα, 0) / (ρ(1 − α))

    ΔW_i = λ_i u k_iᵀ

What the paper compares them with (Appendix E) stands beside each. Everything is computed in float32 or better.

Shapes: d = width of a site's output, m = width of its input, n = components of the site, w = m / n their width, k =
configurations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steer2edit.core import Experts, SiteEdit
from steer2edit.errors import InvalidValueError
from steer2edit.method.hyperparameters import (
    PAPER_RULES,
    ImportanceRule,
    InputDirectionRule,
    MagnitudeRule,
    Rules,
)


def output_direction(vector: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """Unit output direction `u = v / ‖v‖`, shared by all components of a site.

    An InvalidValueError where v is zero or not finite: it has no direction. Source: Theorem 3.1.
    """
    v = precise(vector)
    scale = v.abs().max()
    if not bool(torch.isfinite(scale)) or scale == 0:
        raise InvalidValueError(
            f"a steering vector must be finite and not zero, its largest entry is {scale.item()}: it has no "
            "direction. Check that the positive and negative responses differ, or leave this site out."
        )
    v = v / scale  # the norm of a tiny or a huge vector neither underflows nor overflows
    unit: Tensor = v / v.norm()
    return unit


def input_directions(
    weight: Float[Tensor, "d m"],
    vector: Float[Tensor, " d"],
    width: int,
    *,
    rule: InputDirectionRule = "sensitivity",
    input_mean: Float[Tensor, " m"] | None = None,
) -> Float[Tensor, " m"]:
    """Unit input direction k_i of every component of a site, concatenated.

        sensitivity   k_i = W_iᵀ v / ‖W_iᵀ v‖                     (the paper's rule; ±1 for a neuron)
        mean          k_i = μ_i / ‖μ_i‖                           (ablation)
        svd           k_i = top right singular vector of W_i,     (ablation)
                      with the sign that makes (W_i k_i)·v ≥ 0

    k_i is all zeros where it is not defined (W_iᵀ v = 0 or μ_i = 0).

    Source: Theorem 3.2; the alternatives are those of the ablation in Appendix E.
    """
    W = precise(weight)
    grouped = (W.T @ output_direction(vector).to(W.dtype)).view(-1, width)
    if rule == "mean":
        assert input_mean is not None
        grouped = precise(input_mean).view(-1, width)
    elif rule == "svd":
        grouped = _top_right_singular(weight, width, grouped)
    return unit_rows(grouped).flatten()


def importance(
    weight: Float[Tensor, "d m"],
    vector: Float[Tensor, " d"],
    input_mean: Float[Tensor, " m"],
    width: int,
    *,
    rule: ImportanceRule = "cosine",
) -> Float[Tensor, " n"]:
    """Signed importance g_i of every component of a site.

        cosine   g_i = cos(v, W_i μ_i) ∈ [−1, 1], 0 where W_i μ_i = 0     (the paper's rule)
        dot      g_i = v · (W_i μ_i)                                       (ablation; not bounded)

    Source: §3.4; `dot` is the ablation of Appendix E.
    """
    W = precise(weight)
    mu = precise(input_mean).to(W.dtype).view(-1, width)
    if rule == "dot":
        sensitivity = W.T @ precise(vector).to(W.dtype)
        return (sensitivity.view(-1, width) * mu).sum(dim=1)
    u = output_direction(vector).to(W.dtype)
    mu = unit_rows(mu)  # a cosine does not see the length of μ_i; with unit length its square cannot underflow
    if width == 1:  # a neuron writes ±W_i: no need to materialise the scaled columns
        return ((unit_rows(W.T) @ u) * mu.flatten()).clamp(-1, 1)
    written = torch.einsum("dnw,nw->nd", W.reshape(len(W), -1, width), mu)
    return (unit_rows(written) @ u).clamp(-1, 1)


def magnitude(
    importance: Float[Tensor, " n"],
    rho: Float[Tensor, " k"],
    alpha: Float[Tensor, " k"],
    *,
    rule: MagnitudeRule = "elastic-net",
) -> Float[Tensor, "k n"]:
    """Magnitudes λ of n components for k configurations (ρ, α) at once, signed like g.

        elastic-net   λ_i = sign(g_i) · max(|g_i| − ρα, 0) / (ρ(1 − α))    (the paper's rule)
        ridge         λ_i = g_i / ρ                                        (ablation: α = 0)
        top-k         λ_i = g_i / (ρ(1 − α)) where |g_i| > ρα, else 0      (ablation: the same components as the
                      elastic net, and its gain, without the shrinkage)

    ρ > 0 and 0 ≤ α < 1, as `Hyperparameters` sees to.

    Source: Theorem 3.3; the alternatives are those of the ablation in Appendix E.
    """
    g = importance
    rho, alpha = rho.cpu().double()[:, None], alpha.cpu().double()[:, None]  # not every device has float64
    threshold, gain = (rho * alpha).to(g), (1 / (rho * (1 - alpha))).to(g)
    if rule == "ridge":
        return g * (1 / rho).to(g)
    if rule == "top-k":
        return torch.where(g.abs() > threshold, g, 0) * gain
    return g.sign() * (g.abs() - threshold).clamp(min=0) * gain


@dataclass(frozen=True)
class SiteFactors:
    """u, k and g of one site: all of an edit that does not depend on (ρ, α)."""

    output_direction: Float[Tensor, " d"]  # u
    input_directions: Float[Tensor, " m"]  # k = concat_i(k_i); zero where a component has no direction
    importance: Float[Tensor, " n"]  # g
    magnitude: MagnitudeRule = "elastic-net"  # which λ `edits` takes
    experts: Experts | None = None  # how the components divide into experts, where the site is a mixture of experts

    @property
    def largest_importance(self) -> float:
        """Largest |g| of the components that have an input direction, or 0."""
        return (self.importance.abs() * self._directed).max().item()

    @property
    def _per_component(self) -> Float[Tensor, "n w"]:
        return self.input_directions.view(self.importance.numel(), -1)

    @property
    def _directed(self) -> Bool[Tensor, " n"]:
        return (self._per_component != 0).any(dim=1)

    def edits(self, rho: Sequence[float], alpha: Sequence[float]) -> list[SiteEdit]:
        """The site's edit for each (ρ, α): `a = concat_i(λ_i k_i)`, all configurations in one product.

        A component without an input direction gets λ = 0, as in the official code.
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
    """u, k and g of one site from its weight, steering vector and input mean, on the CPU."""
    k = input_directions(weight, vector, width, rule=rules.input_direction, input_mean=input_mean)
    g = importance(weight, vector, input_mean, width, rule=rules.importance)
    return SiteFactors(output_direction(vector).cpu(), k.cpu(), g.cpu(), rules.magnitude)


def joined(parts: Sequence[SiteFactors], experts: Experts) -> SiteFactors:
    """The factors of a mixture from those of its experts, in order, the shared one last. They share u:

        a token's output changes by  Σ_e r_e (x_e · a_e) u,   r_e the routing weight, 0 where e is not chosen

    so k, g and λ of the experts stand side by side.
    """
    return replace(
        parts[0],
        input_directions=torch.cat([part.input_directions for part in parts]),
        importance=torch.cat([part.importance for part in parts]),
        experts=experts,
    )


def precise(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The tensor in float32, or untouched if it is float64: no closed form is computed in half precision."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


def unit_rows(grouped: Float[Tensor, "n w"]) -> Float[Tensor, "n w"]:
    """Every row divided by its length; a zero row stays zero."""
    scale = grouped.abs().amax(dim=1, keepdim=True)
    scaled = grouped / torch.where(scale > 0, scale, 1)
    norm = scaled.norm(dim=1, keepdim=True)
    return scaled / torch.where(norm > 0, norm, 1)


def _top_right_singular(
    weight: Float[Tensor, "d m"], width: int, sensitivity: Float[Tensor, "n w"]
) -> Float[Tensor, "n w"]:
    W = weight.to(torch.float64).reshape(weight.shape[0], -1, width)
    gram = torch.einsum("dnw,dnx->nwx", W, W)
    top: Tensor = torch.linalg.eigh(gram).eigenvectors[..., -1].to(sensitivity.dtype)
    sign = torch.where((top * sensitivity).sum(dim=1, keepdim=True) < 0, -1.0, 1.0).to(top.dtype)
    return top * sign
