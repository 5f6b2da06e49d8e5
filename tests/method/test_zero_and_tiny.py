"""Components without a direction or an importance, and numbers whose squares underflow."""

from dataclasses import replace

import pytest
import torch
from random_sites import random_site

from steer2edit.core import SiteEdit
from steer2edit.errors import InvalidValueError
from steer2edit.method.hyperparameters import Rules
from steer2edit.method.rule import importance, input_directions, magnitude, output_direction, site_factors

SMALLEST_SUBNORMAL = 2.0**-149


def test_no_written_output_means_no_importance() -> None:
    """W_0 μ_0 = 0 although neither is zero: (1, −1)·(1, 1) = 0 in both rows."""
    W = torch.tensor([[1.0, -1.0, 1.0, 0.0], [2.0, -2.0, 0.0, 1.0]])
    mu = torch.tensor([1.0, 1.0, 1.0, 0.0])
    g = importance(W, torch.tensor([1.0, 0.0]), mu, 2)
    assert g.tolist() == [0, 1]


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("what", ["weight", "input_mean"])
def test_a_dead_component_is_not_edited(what: str, width: int) -> None:
    site = random_site(n=3, width=width)
    getattr(site, what)[..., width : 2 * width] = 0
    factors = site_factors(site.weight, site.vector, site.input_mean, width)
    (edit,) = factors.edits([0.1], [0.0])
    assert factors.importance[1] == 0
    assert edit.magnitude[1] == 0
    assert bool((edit.row.view(3, width)[1] == 0).all())
    assert bool((edit.magnitude[[0, 2]] != 0).all())


def test_no_sensitivity_means_no_direction() -> None:
    """W_0ᵀ v = 0: the head writes across v only."""
    W = torch.tensor([[0.0, 0.0, 1.0, 0.0], [1.0, 2.0, 0.0, 1.0]])
    assert input_directions(W, torch.tensor([1.0, 0.0]), 2).tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("rule", ["elastic-net", "top-k", "ridge"])
def test_a_component_without_a_direction_has_no_magnitude(rule: str) -> None:
    site = random_site(n=2, width=2)
    factors = site_factors(site.weight, site.vector, site.input_mean, 2, Rules(magnitude=rule))
    k, g = torch.tensor([0.0, 0.0, 1.0, 0.0]), torch.tensor([0.9, 0.9])
    (edit,) = replace(factors, input_directions=k, importance=g).edits([0.5], [0.4])
    assert edit.magnitude[0] == 0
    assert edit.magnitude[1] > 0
    assert edit.row[:2].tolist() == [0, 0]


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("size", [1e-20, 1e-30, 2.0**-130])
def test_a_tiny_input_mean_keeps_its_importance(size: float, width: int) -> None:
    """In float32 the square of 1e-30 is zero, and 2⁻¹³⁰ is subnormal."""
    site = random_site(width=width)
    expected = importance(site.weight, site.vector, site.input_mean, width)
    tiny = site.input_mean * torch.tensor(size)
    assert bool(tiny.any())
    assert torch.allclose(importance(site.weight, site.vector, tiny, width), expected, atol=1e-4)


def test_the_smallest_input_mean_of_all_has_a_sign() -> None:
    W = torch.tensor([[1.0, 1.0]])
    mu = torch.tensor([SMALLEST_SUBNORMAL, -SMALLEST_SUBNORMAL])
    assert importance(W, torch.tensor([2.0]), mu, 1).tolist() == [1, -1]


@pytest.mark.parametrize("size", [1e-30, 2.0**-130, 1e30])
def test_a_tiny_or_huge_vector_keeps_its_direction(size: float) -> None:
    site = random_site()
    v = site.vector * torch.tensor(size)
    assert torch.allclose(output_direction(v), output_direction(site.vector), atol=1e-4)
    assert torch.allclose(
        input_directions(site.weight, v, site.width), input_directions(site.weight, site.vector, site.width), atol=1e-4
    )


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize(
    "size",
    [1e-15, 1e-25],
)
def test_a_tiny_weight_keeps_its_importance(size: float, width: int) -> None:
    """A cosine does not see the length of W_i either."""
    site = random_site(width=width)
    expected = importance(site.weight, site.vector, site.input_mean, width)
    assert torch.allclose(importance(site.weight * size, site.vector, site.input_mean, width), expected, atol=1e-4)


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k_rule", ["sensitivity", "mean", "svd"])
@pytest.mark.parametrize("g_rule", ["cosine", "dot"])
def test_half_precision_is_only_how_a_weight_is_stored(
    dtype: torch.dtype, width: int, k_rule: str, g_rule: str
) -> None:
    site = random_site(d=32, n=7, width=width)
    half, rules = site.weight.to(dtype), Rules(k_rule, g_rule)
    assert not torch.equal(half.float(), site.weight)
    stored = site_factors(half, site.vector, site.input_mean, width, rules)
    wide = site_factors(half.float(), site.vector, site.input_mean, width, rules)
    for name in ("output_direction", "input_directions", "importance"):
        assert getattr(stored, name).dtype == torch.float32
        assert torch.equal(getattr(stored, name), getattr(wide, name))


def test_half_precision_vectors_are_widened_too() -> None:
    site = random_site()
    half = site_factors(site.weight, site.vector.bfloat16(), site.input_mean.bfloat16(), site.width)
    wide = site_factors(site.weight, site.vector.bfloat16().float(), site.input_mean.bfloat16().float(), site.width)
    assert torch.equal(half.importance, wide.importance)
    assert torch.equal(half.output_direction, wide.output_direction)


@pytest.mark.parametrize("width", [1, 4])
def test_a_transposed_view_is_a_weight_like_any_other(width: int) -> None:
    """GPT-2's Conv1D stores W transposed."""
    site = random_site(n=6, width=width)
    view = site.weight.T.contiguous().T
    assert not view.is_contiguous()
    for rule in ("sensitivity", "svd"):
        ours = site_factors(view, site.vector, site.input_mean, width, Rules(rule)).edits([0.2], [0.3])[0]
        plain = site_factors(site.weight, site.vector, site.input_mean, width, Rules(rule)).edits([0.2], [0.3])[0]
        assert torch.allclose(ours.dense(), plain.dense(), atol=1e-5)


def test_inputs_are_left_as_they_are() -> None:
    site, copy = random_site(), random_site()
    site_factors(site.weight, site.vector, site.input_mean, site.width, Rules("svd")).edits([0.2], [0.3])
    assert torch.equal(site.weight, copy.weight)
    assert torch.equal(site.vector, copy.vector)
    assert torch.equal(site.input_mean, copy.input_mean)


@pytest.mark.parametrize("alpha", [0.999, 0.9999, 0.99999])
def test_alpha_near_one_loses_no_precision(alpha: float) -> None:
    """1 − α is far more precise in float64 than the float32 of α leaves it."""
    g, rho = torch.tensor([0.5]), 0.1
    (lam,) = magnitude(g, torch.tensor([rho], dtype=torch.float64), torch.tensor([alpha], dtype=torch.float64))
    expected = (0.5 - rho * alpha) / (rho * (1 - alpha))
    assert lam.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("what", ["weight", "input_mean"])
def test_no_edit_is_made_from_numbers_that_are_not_finite(what: str, bad: float) -> None:
    site = random_site()
    getattr(site, what)[..., 1] = bad
    with pytest.raises(InvalidValueError, match="non-finite"):
        site_factors(site.weight, site.vector, site.input_mean, site.width).edits([0.1], [0.0])


def test_rows_of_the_edit_are_in_float32() -> None:
    site = random_site()
    (edit,) = site_factors(site.weight.half(), site.vector, site.input_mean, site.width).edits([0.1], [0.0])
    assert isinstance(edit, SiteEdit)
    assert {t.dtype for t in (edit.row, edit.magnitude, edit.importance, edit.output_direction)} == {torch.float32}
