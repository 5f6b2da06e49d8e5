"""Magnitude of a component's edit from its importance: the elastic net in closed form (Theorem 3.3)."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.errors import InvalidValueError

MagnitudeRule = Literal["elastic-net", "top-k", "ridge"]
MAGNITUDE_RULES: tuple[MagnitudeRule, ...] = get_args(MagnitudeRule)


def check_rho(rho: float, name: str = "rho") -> None:
    """Require ρ > 0.

    Raises:
        InvalidValueError: ρ is zero, negative or not a number.
    """
    if not 0 < rho < float("inf"):
        raise InvalidValueError(
            f"{name} must be > 0, got {rho}: the magnitude divides by it. Use 'off' to leave a block out."
        )


def check_alpha(alpha: float) -> None:
    """Require 0 ≤ α < 1.

    Raises:
        InvalidValueError: α is outside [0, 1).
    """
    if not 0 <= alpha < 1:
        raise InvalidValueError(f"alpha must be in [0, 1), got {alpha}: the magnitude divides by 1 − alpha. Try 0.9.")


def magnitude(
    importance: Float[Tensor, " n"],
    rho: Float[Tensor, " k"],
    alpha: Float[Tensor, " k"],
    *,
    rule: MagnitudeRule = "elastic-net",
) -> Float[Tensor, "k n"]:
    """Magnitudes λ of n components for k configurations (ρ, α) at once.

        elastic-net   λ_i = sign(g_i) · max(|g_i| − ρα, 0) / (ρ(1 − α))    (the paper's rule)
        ridge         λ_i = g_i / ρ                                        (ablation: α = 0)
        top-k         λ_i = g_i / (ρ(1 − α)) where |g_i| > ρα, else 0      (ablation: the same components as the
                      elastic net, and its gain, without the shrinkage)

    Args:
        importance: g, [n].
        rho: ρ > 0, one per configuration, [k].
        alpha: α ∈ [0, 1), the l1 share, one per configuration, [k].
        rule: which of the above.

    Returns:
        λ, [k, n], signed like g.

    Raises:
        InvalidValueError: some ρ ≤ 0, or some α outside [0, 1).

    Source: Theorem 3.3; the alternatives are those of the ablation in Appendix E.
    """
    for value in rho.tolist():
        check_rho(value)
    for value in alpha.tolist():
        check_alpha(value)
    g = importance
    rho, alpha = rho.cpu().double()[:, None], alpha.cpu().double()[:, None]  # not every device has float64
    threshold, gain = (rho * alpha).to(g), (1 / (rho * (1 - alpha))).to(g)
    if rule == "ridge":
        return g * (1 / rho).to(g)
    if rule == "top-k":
        return torch.where(g.abs() > threshold, g, 0) * gain
    if rule == "elastic-net":
        return g.sign() * (g.abs() - threshold).clamp(min=0) * gain
    raise InvalidValueError(f"unknown magnitude rule {rule!r}: use {', '.join(MAGNITUDE_RULES)}.")
