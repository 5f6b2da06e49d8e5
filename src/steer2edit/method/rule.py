"""The paper's rule on one page: u, k, g and λ of a site's components (Theorems 3.1 to 3.3, §3.4).

    u = v / ‖v‖,   k_i = W_iᵀ v / ‖W_iᵀ v‖,   g_i = cos(v, W_i μ_i),   λ_i = sign(g_i) · max(|g_i| − ρα, 0) / (ρ(1 − α))

and the edit is ΔW_i = λ_i u k_iᵀ. What the paper compares them with (Appendix E) stands beside each.

Shapes: d = width of a site's output, m = width of its input, n = components of the site, w = m / n their width, k =
configurations.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.errors import InvalidValueError

InputDirectionRule = Literal["sensitivity", "mean", "svd", "gated"]
INPUT_DIRECTION_RULES: tuple[InputDirectionRule, ...] = get_args(InputDirectionRule)
ImportanceRule = Literal["cosine", "dot", "effect"]
IMPORTANCE_RULES: tuple[ImportanceRule, ...] = get_args(ImportanceRule)
MagnitudeRule = Literal["elastic-net", "top-k", "ridge"]
MAGNITUDE_RULES: tuple[MagnitudeRule, ...] = get_args(MagnitudeRule)


def output_direction(vector: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """Unit output direction `u = v / ‖v‖`, shared by all components of a site.

    Args:
        vector: steering vector v, [d].

    Returns:
        u, [d], float32 or better.

    Raises:
        InvalidValueError: v is zero or not finite: it has no direction.

    Source: Theorem 3.1.
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

    Args:
        weight: W, [d, m].
        vector: v, [d].
        width: w, columns per component; divides m.
        rule: which of the above.
        input_mean: μ, [m]; only needed by the rule `mean`.

    Returns:
        k = concat_i(k_i), [m]; all zeros for a component whose direction is not defined (W_iᵀ v = 0 or μ_i = 0).

    Source: Theorem 3.2; the alternatives are those of the ablation in Appendix E.
    """
    sensitivity = precise(weight).T @ output_direction(vector).to(precise(weight).dtype)
    grouped = _groups(sensitivity, width)
    if rule == "mean":
        if input_mean is None:
            raise InvalidValueError("the input direction rule 'mean' needs the input mean μ, got None.")
        grouped = _groups(precise(input_mean), width)
    elif rule == "svd":
        grouped = _top_right_singular(weight, width, grouped)
    elif rule != "sensitivity":
        raise InvalidValueError(f"{rule!r} gives no input direction of the weights: use sensitivity, mean or svd.")
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
        effect   measured, not computed here: `method.effect_rows`          (beyond the paper)

    Args:
        weight: W, [d, m].
        vector: v, [d].
        input_mean: μ, [m].
        width: w, columns per component; divides m.
        rule: which of the above.

    Returns:
        g, [n], float32 or better.

    Source: §3.4; `dot` is the ablation of Appendix E.
    """
    if rule not in ("cosine", "dot"):
        raise InvalidValueError(f"unknown importance rule {rule!r}: use cosine or dot.")
    W, mu = precise(weight), precise(input_mean)
    mu = mu.to(W.dtype).view(-1, width)
    if rule == "dot":
        sensitivity = W.T @ precise(vector).to(W.dtype)
        return (sensitivity.view(-1, width) * mu).sum(dim=1)
    # A cosine does not see the length of μ_i; with unit length its square cannot underflow.
    mu = unit_rows(mu)
    if width == 1:  # a neuron writes ±W_i: no need to materialise the scaled columns
        u = output_direction(vector).to(W.dtype)
        return ((unit_rows(W.T) @ u) * mu.flatten()).clamp(-1, 1)
    written = torch.einsum("dnw,nw->nd", W.reshape(len(W), -1, width), mu)
    return (unit_rows(written) @ output_direction(vector).to(W.dtype)).clamp(-1, 1)


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


def precise(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The tensor in float32, or untouched if it is float64: no closed form is computed in half precision."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


def unit_rows(grouped: Float[Tensor, "n w"]) -> Float[Tensor, "n w"]:
    """Every row divided by its length; a zero row stays zero."""
    scale = grouped.abs().amax(dim=1, keepdim=True)
    scaled = grouped / torch.where(scale > 0, scale, 1)
    norm = scaled.norm(dim=1, keepdim=True)
    return scaled / torch.where(norm > 0, norm, 1)


def _groups(row: Float[Tensor, " m"], width: int) -> Float[Tensor, "n w"]:
    if width < 1 or row.numel() % width:
        raise InvalidValueError(f"component width {width} must divide the input width {row.numel()}.")
    return row.view(-1, width)


def _top_right_singular(
    weight: Float[Tensor, "d m"], width: int, sensitivity: Float[Tensor, "n w"]
) -> Float[Tensor, "n w"]:
    W = weight.to(torch.float64).reshape(weight.shape[0], -1, width)
    gram = torch.einsum("dnw,dnx->nwx", W, W)
    top: Tensor = torch.linalg.eigh(gram).eigenvectors[..., -1].to(sensitivity.dtype)
    sign = torch.where((top * sensitivity).sum(dim=1, keepdim=True) < 0, -1.0, 1.0).to(top.dtype)
    return top * sign
