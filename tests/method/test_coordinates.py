"""Threshold and gain per block: other coordinates of the same budget."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steer2edit.errors import InvalidValueError
from steer2edit.method import Hyperparameters, magnitude

thresholds, gains = st.floats(0, 0.9), st.floats(0.1, 100)


def test_by_hand() -> None:
    # τ = .1, c = 10: ρ = .1 + .1 = .2, α = .5
    h = Hyperparameters.from_thresholds((0.1, 10.0), (0.45, 1 / 0.45))
    assert (h.rho_attn, h.rho_mlp) == pytest.approx((0.2, 0.9))
    assert (h.alpha_of("attn"), h.alpha_of("mlp")) == pytest.approx((0.5, 0.5))


@given(thresholds, gains, thresholds, gains)
def test_there_and_back(t1: float, c1: float, t2: float, c2: float) -> None:
    h = Hyperparameters.from_thresholds((t1, c1), (t2, c2))
    found = [(rho * a, 1 / (rho * (1 - a))) for rho, a in ((h.rho("attn"), h.alpha), (h.rho("mlp"), h.alpha_of("mlp")))]
    assert found == [pytest.approx((t1, c1), rel=1e-6, abs=1e-9), pytest.approx((t2, c2), rel=1e-6, abs=1e-9)]


@given(thresholds, gains)
def test_the_magnitude_is_gain_times_what_exceeds_the_threshold(tau: float, c: float) -> None:
    h = Hyperparameters.from_thresholds(None, (tau, c))
    g = torch.tensor([-1.0, -0.4, -0.05, 0.0, 0.2, 0.77], dtype=torch.float64)
    assert h.rho_mlp is not None
    found = magnitude(g, torch.tensor([h.rho_mlp]).double(), torch.tensor([h.alpha_of("mlp")]).double())[0]
    assert torch.allclose(found, c * g.sign() * (g.abs() - tau).clamp(min=0), rtol=1e-5, atol=1e-6 * c)


def test_one_block_off() -> None:
    attn, mlp = Hyperparameters.from_thresholds((0.1, 10.0), None), Hyperparameters.from_thresholds(None, (0.1, 10.0))
    assert (attn.rho_attn, attn.rho_mlp) == (pytest.approx(0.2), None)
    assert (mlp.rho_attn, mlp.rho_mlp) == (None, pytest.approx(0.2))
    assert attn.alpha == mlp.alpha == pytest.approx(0.5)
    assert attn.alpha_mlp is None


@pytest.mark.parametrize("block", [(-0.1, 1.0), (0.1, 0.0), (float("nan"), 1.0), (0.1, float("inf"))])
def test_bad_values(block: tuple[float, float]) -> None:
    with pytest.raises(InvalidValueError, match="threshold must be >= 0 and a gain > 0"):
        Hyperparameters.from_thresholds(block, None)


def test_an_alpha_per_block() -> None:
    h = Hyperparameters(0.2, 0.9, 0.5, alpha_mlp=0.3)
    assert (h.alpha_of("attn"), h.alpha_of("mlp")) == (0.5, 0.3)
    with pytest.raises(InvalidValueError, match=r"alpha must be in \[0, 1\)"):
        Hyperparameters(0.2, 0.9, 0.5, alpha_mlp=1.0)
