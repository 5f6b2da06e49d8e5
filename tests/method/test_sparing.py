"""Sparing: `a ← s (a − (aᵀx̄ / ‖x̄‖²) x̄)` on the edited components (beyond the paper, off by default)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_sites import RandomSite, alphas, random_site, rhos, sites

from steer2edit.errors import InvalidValueError
from steer2edit.method import site_factors, spare


def test_by_hand() -> None:
    # heads of two columns, the second is not edited; x̄ on the first is (3, 4), a·x̄ = 3, ‖x̄‖² = 25
    row, edited = torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    mean = torch.tensor([3.0, 4.0, 7.0, 7.0])
    assert spare(row, edited, mean, [1.0])[0].tolist() == pytest.approx([1 - 9 / 25, -12 / 25, 0, 0])
    assert spare(row, edited, mean, [2.0])[0].tolist() == pytest.approx([2 - 18 / 25, -24 / 25, 0, 0])
    assert torch.equal(spare(row, edited, mean, [None]), row)
    assert torch.equal(spare(row, edited, torch.zeros(4), [1.0]), row)  # nothing to remove


@given(site=sites(), rho=rhos, alpha=alphas, gain=st.floats(0.1, 4.0))
def test_nothing_is_done_on_average_to_benign_inputs(site: RandomSite, rho: float, alpha: float, gain: float) -> None:
    benign = torch.randn(site.weight.shape[1], generator=torch.Generator().manual_seed(3))
    factors = site_factors(site.weight, site.vector, site.input_mean, site.width, benign_mean=benign)
    (plain,), (spared,) = factors.edits([rho], [alpha]), factors.edits([rho], [alpha], None, [gain])
    size = float(plain.row.norm() * benign.norm()) * gain
    assert abs(float(spared.row @ benign)) <= 1e-5 * size + 1e-20
    untouched = plain.magnitude.repeat_interleave(site.width) == 0
    assert not bool(spared.row[untouched].any())
    assert float(spared.row.norm()) <= gain * float(plain.row.norm()) * (1 + 1e-5)  # a projection, times s
    along = (spared.row.view(len(plain.magnitude), -1) * factors.input_directions.view(len(plain.magnitude), -1)).sum(1)
    assert torch.allclose(spared.magnitude, along, atol=1e-6)


def test_the_limit_comes_before_the_sparing_and_plain_configurations_stay_plain() -> None:
    site = random_site(seed=5)
    benign = torch.randn(site.weight.shape[1], generator=torch.Generator().manual_seed(4))
    factors = site_factors(site.weight, site.vector, site.input_mean, site.width, benign_mean=benign)
    without = site_factors(site.weight, site.vector, site.input_mean, site.width)
    plain, spared, limited = factors.edits([0.2] * 3, [0.1] * 3, [None, None, 0.01], [None, 1.5, 1.5])
    (reference,), (shrunk,) = without.edits([0.2], [0.1]), without.edits([0.2], [0.1], [0.01])
    assert torch.equal(plain.row, reference.row)
    assert torch.equal(plain.magnitude, reference.magnitude)
    assert float(shrunk.row.norm()) < float(reference.row.norm())
    scale = float(shrunk.row.norm() / reference.row.norm())
    assert torch.allclose(limited.row, scale * spared.row, rtol=1e-4, atol=1e-8)


def test_no_benign_mean() -> None:
    site = random_site(seed=5)
    factors = site_factors(site.weight, site.vector, site.input_mean, site.width)
    with pytest.raises(InvalidValueError, match="sparing needs the mean input on benign text"):
        factors.edits([0.2], [0.1], None, [1.0])
