"""What drift costs, and what is divided by it: the natural gradient, beyond the paper.

A change of what a site writes (or of its row a) drifts by KL per token ≈ ½ mean((ψ·x)²), ψ the gradient of the score of
tokens drawn from the model. The curvature ΨᵀΨ/q of few draws is mostly noise, so it is shrunk half way to its diagonal
C and the mean of that, C̄:

    F = ½ ΨᵀΨ/q + ½ diag(C + C̄),     C = mean(ψ²)

Shapes: q = draws, n = columns, k = rows that are divided.
"""

import torch
from jaxtyping import Float
from torch import Tensor

SHRINKAGE = 0.5


def natural_direction(gradient: Float[Tensor, " n"], draws: Float[Tensor, "q n"]) -> Float[Tensor, " n"]:
    """u = F⁻¹ḡ / ‖F⁻¹ḡ‖: of all directions of one length in drift, the one that moves the decision most.

    The paper's u = v/‖v‖ says how replies differ; ḡ says what changes them, and F what else that does. On SmolLM2 the
    two are nearly orthogonal (docs/findings.md).

    ḡ is the mean over responses of Σ_t ∂A/∂y_t, of positive less that of negative ones; Ψ of every draw Σ_t
    ∂(score)/∂y_t. Scores of different tokens are uncorrelated, so the square of a sum over tokens is, in the mean, the
    sum of the squares. Zero where the decision or no drift depends on the site.
    """
    found = divided_by_drift(gradient[None], draws)[0]
    length = found.norm()
    return found / length if length > 0 else found


def shared_cost(psi: Float[Tensor, "q n"]) -> Float[Tensor, " n"]:
    """C + C̄: what a row a is multiplied by where it is stored as effects ŝ."""
    C = psi.double().square().mean(dim=0)
    return C + C.mean()


def divided_by_drift(rows: Float[Tensor, "k n"], psi: Float[Tensor, "q n"]) -> Float[Tensor, "k n"]:
    """Rows times F⁻¹, by Woodbury: as many equations as there are draws. Zero where no draw depends on any column."""
    cost = (1 - SHRINKAGE) * shared_cost(psi)  # ½ (C + C̄), the diagonal that it is shrunk to
    if not bool((cost > 0).all()):
        return torch.zeros_like(rows)
    apart, scaled = rows.double() / cost, psi.double() / cost
    small = torch.linalg.cholesky(torch.eye(len(psi)) * len(psi) / SHRINKAGE + scaled @ psi.T.double())
    return (apart - torch.cholesky_solve((apart @ psi.T.double()).T, small).T @ scaled).to(rows.dtype)
