"""The formulas of the authors' code, one head at a time and with its sign folded into a neuron's λ, on the same inputs.

Source: `edit.py` of Trustworthy-ML-Lab/Steer2Edit, which stores (λ, k̂) per head and λ·sign(W_iᵀ v̂) per neuron.
"""

import pytest
import torch
from hypothesis import given, strategies as st
from random_sites import RandomSite, random_site
from torch import Tensor
from torch.nn.functional import cosine_similarity

from steer2edit.method.rule import site_factors


def official_magnitude(g: Tensor, rho: float, alpha: float) -> Tensor:
    return torch.sign(g) * (torch.clamp(g.abs() - rho * alpha, min=0.0) / (rho * (1.0 - alpha)))


def official_unit_vector(v: Tensor) -> Tensor:
    return v / (v.norm() + 1e-12)


def official_heads(site: RandomSite, rho: float, alpha: float) -> Tensor:
    """ΔW [d, m] from what is stored per head."""
    v_hat, delta = official_unit_vector(site.vector), torch.zeros_like(site.weight)
    for head in range(site.count):
        columns = slice(head * site.width, (head + 1) * site.width)
        block = site.weight[:, columns]
        g = cosine_similarity(v_hat, block @ site.input_mean[columns], dim=0)
        k = block.T @ v_hat
        if k.norm() > 0:
            delta[:, columns] = official_magnitude(g, rho, alpha) * torch.outer(v_hat, k / k.norm())
    return delta


def official_neurons(site: RandomSite, rho: float, alpha: float) -> Tensor:
    """ΔW [d, m] from the signed λ stored per neuron: every edited column is λ·sign(W_iᵀ v̂)·v̂."""
    v_hat = official_unit_vector(site.vector)
    written = site.weight * site.input_mean[None]
    g = cosine_similarity(v_hat[:, None], written, dim=0)
    folded = official_magnitude(g, rho, alpha) * torch.sign(site.weight.T @ v_hat)
    return v_hat[:, None] * folded[None]


@given(
    d=st.integers(2, 24), n=st.integers(1, 9), seed=st.integers(0, 2**31),
    rho=st.floats(0.05, 1.0), alpha=st.floats(0.0, 0.9),
)  # fmt: skip
@pytest.mark.parametrize(("width", "official"), [(1, official_neurons), (4, official_heads), (16, official_heads)])
def test_edit_equals_the_official_one(
    width: int, official: object, d: int, n: int, seed: int, rho: float, alpha: float
) -> None:
    site = random_site(d, n, width, seed)
    (edit,) = site_factors(site.weight, site.vector, site.input_mean, width).edits([rho], [alpha])
    expected = official(site, rho, alpha)
    # both sides round in float32, and λ amplifies g's rounding by 1/(ρ(1 − α))
    assert torch.allclose(edit.dense(), expected, rtol=1e-4, atol=1e-5 / (rho * (1 - alpha)))


@pytest.mark.parametrize(("width", "official"), [(1, official_neurons), (4, official_heads)])
def test_the_comparison_compares_edits_that_are_there(width: int, official: object) -> None:
    site = random_site(n=12, width=width)
    assert official(site, 0.1, 0.5).norm() > 1
