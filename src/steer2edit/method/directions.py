"""Output and input directions of the edit (Theorems 3.1 and 3.2).

Shapes: d = width of a site's output, m = width of its input, n = components of the site, w = m / n their width.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.errors import InvalidValueError

InputDirectionRule = Literal["sensitivity", "mean", "svd", "gated"]
INPUT_DIRECTION_RULES: tuple[InputDirectionRule, ...] = get_args(InputDirectionRule)


def precise(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The tensor in float32, or untouched if it is float64: no closed form is computed in half precision."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


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
