"""Importance of a component: how well what it writes on average aligns with the steering vector (§3.4)."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.errors import InvalidValueError
from steer2edit.method.directions import output_direction, precise, unit_rows

ImportanceRule = Literal["cosine", "dot", "effect"]
IMPORTANCE_RULES: tuple[ImportanceRule, ...] = get_args(ImportanceRule)


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
