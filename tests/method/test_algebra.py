"""What must hold for any data: scaling, signs, order, and which way an edit pushes."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st
from random_sites import RandomSite, alphas, random_site, rhos, sites

from steer2edit.core import SiteEdit
from steer2edit.method.hyperparameters import PAPER_RULES, Rules
from steer2edit.method.rule import magnitude, site_factors

POWERS_OF_TWO = st.integers(-12, 12).map(lambda e: 2.0**e)  # multiplying by them rounds nothing
LOOSE = {"rtol": 1e-4, "atol": 1e-5}


def edit_of(site: RandomSite, rho: float = 0.2, alpha: float = 0.4, rules: Rules = PAPER_RULES) -> SiteEdit:
    factors = site_factors(site.weight, site.vector, site.input_mean, site.width, rules)
    return factors.edits([rho], [alpha])[0]


@given(site=sites(), rho=rhos, alpha=alphas, c=POWERS_OF_TWO, s=POWERS_OF_TWO, t=POWERS_OF_TWO)
def test_lengths_of_vector_input_and_weight_do_not_matter(
    site: RandomSite, rho: float, alpha: float, c: float, s: float, t: float
) -> None:
    scaled = RandomSite(site.weight * t, site.vector * c, site.input_mean * s, site.width)
    ours, other = edit_of(site, rho, alpha), edit_of(scaled, rho, alpha)
    for name in ("output_direction", "row", "magnitude", "importance"):
        assert torch.equal(getattr(ours, name), getattr(other, name))


@given(site=sites())
def test_the_opposite_vector_gives_the_opposite_edit(site: RandomSite) -> None:
    """u, k, g and λ change sign, so a = λk stays and ΔW = u aᵀ changes sign: steering back undoes the edit."""
    ours, opposite = edit_of(site), edit_of(replace(site, vector=-site.vector))
    assert torch.equal(opposite.output_direction, -ours.output_direction)
    assert torch.equal(opposite.importance, -ours.importance)
    assert torch.equal(opposite.magnitude, -ours.magnitude)
    assert torch.equal(opposite.row, ours.row)
    assert torch.equal(opposite.dense(), -ours.dense())


@given(site=sites())
def test_the_opposite_input_gives_the_opposite_edit(site: RandomSite) -> None:
    """Only g and λ change sign: u and k do not depend on μ."""
    ours, opposite = edit_of(site), edit_of(replace(site, input_mean=-site.input_mean))
    assert torch.equal(opposite.output_direction, ours.output_direction)
    assert torch.equal(opposite.magnitude, -ours.magnitude)
    assert torch.equal(opposite.dense(), -ours.dense())


@given(site=sites(), seed=st.integers(0, 1000))
def test_permuting_components_permutes_the_edit(site: RandomSite, seed: int) -> None:
    order = torch.randperm(site.count, generator=torch.Generator().manual_seed(seed))
    columns = torch.arange(site.weight.shape[1]).view(site.count, site.width)[order].flatten()
    permuted = RandomSite(site.weight[:, columns], site.vector, site.input_mean[columns], site.width)
    ours, other = edit_of(site), edit_of(permuted)
    assert torch.allclose(other.magnitude, ours.magnitude[order], **LOOSE)
    assert torch.allclose(other.importance, ours.importance[order], **LOOSE)
    assert torch.allclose(other.dense(), ours.dense()[:, columns], **LOOSE)


@given(site=sites(), seed=st.integers(0, 1000))
def test_rotating_the_output_rotates_only_u(site: RandomSite, seed: int) -> None:
    """With W → QW and v → Qv for a rotation Q, every cosine stays: λ, k and a are those of before."""
    d = len(site.vector)
    Q = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q
    wide = RandomSite(site.weight.double(), site.vector.double(), site.input_mean.double(), site.width)
    ours, other = edit_of(wide), edit_of(replace(wide, weight=Q @ wide.weight, vector=Q @ wide.vector))
    assert torch.allclose(other.output_direction, Q @ ours.output_direction, **LOOSE)
    assert torch.allclose(other.magnitude, ours.magnitude, **LOOSE)
    assert torch.allclose(other.dense(), Q @ ours.dense(), **LOOSE)


@given(site=sites(), rho=rhos, alpha=alphas)
def test_every_component_pushes_its_mean_input_along_the_vector(site: RandomSite, rho: float, alpha: float) -> None:
    """λ_i has the sign of g_i, which is the sign of k_i·μ_i: the mean output only ever moves along +v."""
    edit = edit_of(site, rho, alpha)
    pushes = (edit.row * site.input_mean).view(site.count, site.width).sum(dim=1)
    sizes = edit.magnitude.abs() * site.input_mean.view(site.count, site.width).norm(dim=1)
    assert bool((pushes >= -1e-5 * sizes).all())


@given(g=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20), rho=rhos, alpha=alphas)
def test_magnitudes_are_signed_sparse_and_bounded(g: list[float], rho: float, alpha: float) -> None:
    importance = torch.tensor(g, dtype=torch.float64)
    (lam,) = magnitude(importance, torch.tensor([rho], dtype=torch.float64), torch.tensor([alpha], dtype=torch.float64))
    active = importance.abs() > rho * alpha
    assert torch.equal(lam != 0, active)
    assert torch.equal(lam[active].sign(), importance[active].sign())
    bound = max(1 - rho * alpha, 0) / (rho * (1 - alpha))  # where |g| = 1
    assert bool((lam.abs() <= bound * (1 + 1e-12)).all())
    order = importance.argsort()
    assert bool((lam[order].diff() >= 0).all())  # λ grows with g


@pytest.mark.parametrize(("rho", "alpha"), [(0.2, 0.4), (0.7, 0.9), (0.1, 0.0)])
def test_top_k_has_the_sparsity_of_the_elastic_net(rho: float, alpha: float) -> None:
    site = random_site(n=40, width=1)
    net, top = edit_of(site, rho, alpha), edit_of(site, rho, alpha, Rules(magnitude="top-k"))
    assert torch.equal(net.magnitude != 0, top.magnitude != 0)
    assert bool((top.magnitude.abs() >= net.magnitude.abs()).all())


def test_ridge_is_the_elastic_net_without_l1() -> None:
    site = random_site(n=12)
    ridge = edit_of(site, 0.3, 0.8, Rules(magnitude="ridge"))
    assert torch.allclose(ridge.row, edit_of(site, 0.3, 0.0).row)
