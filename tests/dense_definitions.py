"""The paper's definitions taken literally, as an oracle: NumPy, float64, one component at a time, W_i materialised.

It shares no code with the package. Next to every value stands how far float32 arithmetic may be from it.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

EPS = 2.0**-23  # of float32
SLACK = 16 * EPS  # roundings of one short dot product, its norm and its quotient


@dataclass
class DenseEdit:
    """Values by component, and tolerances of the same shapes."""

    u: np.ndarray
    k: list[np.ndarray] = field(default_factory=list)
    g: list[float] = field(default_factory=list)
    magnitude: list[float] = field(default_factory=list)
    delta: list[np.ndarray] = field(default_factory=list)
    k_error: list[float] = field(default_factory=list)
    g_error: list[float] = field(default_factory=list)
    magnitude_error: list[float] = field(default_factory=list)
    delta_error: list[float] = field(default_factory=list)

    @property
    def dense(self) -> np.ndarray:
        """ΔW [d, m], from its blocks."""
        return np.concatenate(self.delta, axis=1)


def float64(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to(torch.float64).numpy()


def blocks(W: np.ndarray, width: int) -> list[np.ndarray]:
    """[W_0, W_1, ...], each [d, w]."""
    return [W[:, start : start + width] for start in range(0, W.shape[1], width)]


def unit(vector: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector)
    return vector / length if length > 0 else np.zeros_like(vector)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(unit(a) @ unit(b))


def input_direction(W_i: np.ndarray, v: np.ndarray, mu_i: np.ndarray, rule: str) -> np.ndarray:
    if rule == "mean":
        return unit(mu_i)
    if rule == "svd":
        top = np.linalg.svd(W_i)[2][0]
        return -top if (W_i @ top) @ v < 0 else top
    return unit(W_i.T @ v)


def importance(W_i: np.ndarray, v: np.ndarray, mu_i: np.ndarray, rule: str) -> float:
    return float(v @ (W_i @ mu_i)) if rule == "dot" else cosine(v, W_i @ mu_i)


def magnitude(g: float, rho: float, alpha: float, rule: str) -> float:
    if rule == "ridge":
        return g / rho
    if rule == "top-k":
        return g / (rho * (1 - alpha)) if abs(g) > rho * alpha else 0.0
    return float(np.sign(g)) * max(abs(g) - rho * alpha, 0.0) / (rho * (1 - alpha))


def dense_edit(
    weight: Tensor,
    vector: Tensor,
    input_mean: Tensor,
    width: int,
    rho: float,
    alpha: float,
    *,
    k_rule: str = "sensitivity",
    g_rule: str = "cosine",
    magnitude_rule: str = "elastic-net",
) -> DenseEdit:
    """Every quantity of one site, component after component."""
    W, v, mu = float64(weight), float64(vector), float64(input_mean)
    edit = DenseEdit(unit(v))
    for i, W_i in enumerate(blocks(W, width)):
        mu_i = mu[i * width : (i + 1) * width]
        k = input_direction(W_i, v, mu_i, k_rule)
        g = importance(W_i, v, mu_i, g_rule)
        lam = magnitude(g, rho, alpha, magnitude_rule) if k.any() else 0.0
        edit.k.append(k)
        edit.g.append(g)
        edit.magnitude.append(lam)
        edit.delta.append(lam * np.outer(edit.u, k))
        _bound(edit, W_i, v, mu_i, rho * (1 - alpha), g_rule)
    return edit


def _bound(edit: DenseEdit, W_i: np.ndarray, v: np.ndarray, mu_i: np.ndarray, gain: float, g_rule: str) -> None:
    """A quotient by the length of a sum is as uncertain as its terms are longer than the sum."""
    size, written, sensitivity = np.linalg.norm(W_i), W_i @ mu_i, W_i.T @ edit.u
    k_error = SLACK * _ratio(size, np.linalg.norm(sensitivity))
    if g_rule == "dot":
        g_error = SLACK * size * np.linalg.norm(v) * np.linalg.norm(mu_i)
    elif len(mu_i) == 1:
        g_error = SLACK
    else:
        g_error = SLACK * _ratio(size * np.linalg.norm(mu_i), np.linalg.norm(written))
    lam = abs(edit.magnitude[-1])
    magnitude_error = g_error / gain + SLACK * lam
    edit.k_error.append(k_error)
    edit.g_error.append(g_error)
    edit.magnitude_error.append(magnitude_error)
    edit.delta_error.append(magnitude_error + lam * (k_error + SLACK))


def _ratio(terms: float, total: float) -> float:
    return 1.0 if terms == 0 else max(1.0, terms / total) if total > 0 else np.inf
