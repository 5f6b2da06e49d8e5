"""The limit on an edit's mean shift: `|aᵀμ| ≤ κ‖v‖`, the whole row scaled (beyond the paper, off by default)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_sites import RandomSite, alphas, random_site, rhos, sites

from dense_definitions import dense_edit, float64
from steer2edit.method import limit_shift, site_factors

# The heads of test_by_hand.py: a = (0.8, 16/15, −√2, √2), μ = (1, 0, 1, 3), ‖v‖ = 5, so aᵀμ = 0.8 + 2√2 = 3.628.
ROOT2 = math.sqrt(2)
ROW = torch.tensor([0.8, 16 / 15, -ROOT2, ROOT2])
MEAN = torch.tensor([1.0, 0.0, 1.0, 3.0])


def test_by_hand() -> None:
    # limits: none; 5, which 3.628 keeps; 2.5, which takes 2.5 / 3.628
    factor = limit_shift(ROW.expand(3, 4), MEAN, 5.0, [None, 1.0, 0.5])
    assert factor.tolist() == pytest.approx([1, 1, 2.5 / (0.8 + 2 * ROOT2)], rel=1e-6)
    assert torch.allclose(limit_shift(-ROW[None], MEAN, 5.0, [0.5]), factor[2])  # the shift counts by its size


@given(site=sites(), rho=rhos, alpha=alphas, kappa=st.floats(0.001, 3.0))
def test_against_the_dense_edit(site: RandomSite, rho: float, alpha: float, kappa: float) -> None:
    """The mean output moves by no more than κ‖v‖, in whole: ΔW is the paper's times one factor of at most 1."""
    factors = site_factors(site.weight, site.vector, site.input_mean, site.width)
    (plain,), (limited,) = factors.edits([rho], [alpha]), factors.edits([rho], [alpha], [kappa])
    moved = (dense_edit(site.weight, site.vector, site.input_mean, site.width, rho, alpha).dense) @ float64(
        site.input_mean
    )
    limit = kappa * float(site.vector.double().norm())
    size = float((moved**2).sum()) ** 0.5
    factor = min(1.0, limit / size) if size else 1.0
    slack = 1e-4 * float(plain.row.abs().max()) / (rho * (1 - alpha)) + 1e-6
    assert torch.allclose(limited.row, plain.row * factor, rtol=1e-3, atol=slack)
    assert torch.allclose(limited.magnitude, plain.magnitude * factor, rtol=1e-3, atol=slack)
    after = (limited.row.double() @ site.input_mean.double()).abs().item()
    assert after <= limit * (1 + 1e-4) + 1e-6 * float(plain.row.norm() * site.input_mean.norm())


def test_without_a_limit_nothing_changes() -> None:
    site = random_site()
    factors = site_factors(site.weight, site.vector, site.input_mean, site.width)
    (plain,) = factors.edits([0.1], [0.3])
    both = factors.edits([0.1, 0.1], [0.3, 0.3], [None, 0.01])
    assert torch.equal(both[0].row, plain.row)
    assert both[1].row.norm() < plain.row.norm()
    assert torch.allclose(both[1].row / both[1].row.norm(), plain.row / plain.row.norm(), atol=1e-6)
