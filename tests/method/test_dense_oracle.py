"""λ, g, k and ΔW against the paper's definitions, computed densely in float64 by code that shares nothing with ours."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, strategies as st
from random_sites import RandomSite, alphas, random_site, rhos, sites

from dense_definitions import SLACK, DenseEdit, blocks, dense_edit, float64
from steer2edit.core import SiteEdit
from steer2edit.method.hyperparameters import PAPER_RULES, Hyperparameters, Rules, grid
from steer2edit.method.rule import SiteFactors, site_factors


def our_edit(site: RandomSite, rho: float, alpha: float, rules: Rules = PAPER_RULES) -> tuple[SiteFactors, SiteEdit]:
    factors = site_factors(site.weight, site.vector, site.input_mean, site.width, rules)
    (edit,) = factors.edits([rho], [alpha])
    return factors, edit


def require_close(ours: torch.Tensor, expected: list, errors: list[float], what: str) -> None:
    for i, (value, reference, error) in enumerate(zip(float64(ours), expected, errors, strict=True)):
        distance = np.linalg.norm(value - reference)
        assert distance <= error, f"{what} of component {i}: {value} instead of {reference}, {distance} > {error}"


def require_equal(factors: SiteFactors, edit: SiteEdit, dense: DenseEdit, width: int) -> None:
    n = len(dense.g)
    assert np.linalg.norm(float64(edit.output_direction) - dense.u) <= SLACK
    require_close(factors.input_directions.view(n, width), dense.k, dense.k_error, "k")
    require_close(edit.importance, dense.g, dense.g_error, "g")
    require_close(edit.magnitude, dense.magnitude, dense.magnitude_error, "λ")
    ours = [torch.from_numpy(block) for block in blocks(float64(edit.dense()), width)]
    require_close(torch.stack(ours), dense.delta, dense.delta_error, "ΔW")


@given(site=sites(), rho=rhos, alpha=alphas)
def test_the_papers_rule(site: RandomSite, rho: float, alpha: float) -> None:
    dense = dense_edit(site.weight, site.vector, site.input_mean, site.width, rho, alpha)
    require_equal(*our_edit(site, rho, alpha), dense, site.width)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("width", [1, 4])
def test_the_papers_rule_on_weights_of_other_dtypes(dtype: torch.dtype, width: int) -> None:
    plain = random_site(width=width, n=20)
    site = RandomSite(plain.weight.to(dtype), plain.vector, plain.input_mean, width)
    dense = dense_edit(site.weight, site.vector, site.input_mean, width, 0.3, 0.5)
    require_equal(*our_edit(site, 0.3, 0.5), dense, width)


@given(site=sites(), rho=rhos, alpha=alphas)
@pytest.mark.parametrize("rule", ["top-k", "ridge"])
def test_ablation_of_the_magnitude(rule: str, site: RandomSite, rho: float, alpha: float) -> None:
    dense = dense_edit(site.weight, site.vector, site.input_mean, site.width, rho, alpha, magnitude_rule=rule)
    # a component on the threshold itself may fall on either side of it in float32
    assume(all(abs(abs(g) - rho * alpha) > e for g, e in zip(dense.g, dense.g_error, strict=True) if g))
    require_equal(*our_edit(site, rho, alpha, Rules(magnitude=rule)), dense, site.width)


@given(site=sites(), rho=rhos, alpha=alphas)
def test_ablation_of_the_importance(site: RandomSite, rho: float, alpha: float) -> None:
    dense = dense_edit(site.weight, site.vector, site.input_mean, site.width, rho, alpha, g_rule="dot")
    require_equal(*our_edit(site, rho, alpha, Rules(importance="dot")), dense, site.width)


@given(site=sites(), rho=rhos, alpha=alphas)
def test_ablation_of_the_input_direction_by_the_mean(site: RandomSite, rho: float, alpha: float) -> None:
    dense = dense_edit(site.weight, site.vector, site.input_mean, site.width, rho, alpha, k_rule="mean")
    require_equal(*our_edit(site, rho, alpha, Rules(input_direction="mean")), dense, site.width)


@given(
    n=st.integers(1, 9), d=st.integers(2, 24), width=st.sampled_from([1, 2, 8]), seed=st.integers(0, 2**31),
    rho=rhos, alpha=alphas,
)  # fmt: skip
def test_ablation_of_the_input_direction_by_svd(
    n: int, d: int, width: int, seed: int, rho: float, alpha: float
) -> None:
    site = random_site(d, n, width, seed)
    for W_i in blocks(float64(site.weight), width):
        values = np.linalg.svd(W_i, compute_uv=False)
        assume(len(values) == 1 or values[1] < 0.99 * values[0])  # else the top singular vector is not defined
    dense = dense_edit(site.weight, site.vector, site.input_mean, width, rho, alpha, k_rule="svd")
    for k, W_i in zip(dense.k, blocks(float64(site.weight), width), strict=True):
        assume(abs(k @ W_i.T @ dense.u) > 1e-4)  # else its sign is not
    require_equal(*our_edit(site, rho, alpha, Rules(input_direction="svd")), dense, width)


@pytest.mark.parametrize("rule", ["sensitivity", "mean", "svd"])
@pytest.mark.parametrize("width", [1, 4])
def test_all_components_together_have_rank_one(rule: str, width: int) -> None:
    site = random_site(d=16, n=8, width=width)
    dense = dense_edit(site.weight, site.vector, site.input_mean, width, 0.2, 0.3, k_rule=rule)
    assert sum(lam != 0 for lam in dense.magnitude) >= 4  # several components, or rank 1 would show nothing
    for delta in (dense.dense, float64(our_edit(site, 0.2, 0.3, Rules(input_direction=rule))[1].dense())):
        values = np.linalg.svd(delta, compute_uv=False)
        assert values[0] > 0.5
        assert values[1] < 1e-6 * values[0]


def test_every_configuration_of_the_coarse_grid() -> None:
    site, configurations = random_site(d=12, n=6, width=3), grid()
    assert len(configurations) == 125
    assert len(set(configurations)) == 125
    assert configurations[0] == Hyperparameters(0.1, 0.1, 0.1)
    assert configurations[-1] == Hyperparameters(0.9, 0.9, 0.9)
    factors = site_factors(site.weight, site.vector, site.input_mean, site.width)
    together = factors.edits([h.rho_attn for h in configurations], [h.alpha for h in configurations])
    for h, edit in zip(configurations, together, strict=True):
        (alone,) = factors.edits([h.rho_attn], [h.alpha])
        for name in ("output_direction", "row", "magnitude", "importance"):
            assert torch.equal(getattr(edit, name), getattr(alone, name))
        dense = dense_edit(site.weight, site.vector, site.input_mean, site.width, h.rho_attn, h.alpha)
        require_equal(factors, edit, dense, site.width)


def test_configurations_share_one_output_direction() -> None:
    site = random_site()
    first, second = site_factors(site.weight, site.vector, site.input_mean, site.width).edits([0.2, 0.4], [0.5, 0.1])
    assert first.output_direction is second.output_direction  # what lets a batch hold a different edit per row
    assert not torch.equal(first.row, second.row)
