"""A budget (ρ, α) is a threshold τ = ρα on |g| and a gain c = 1/(ρ(1 − α))."""

import torch
from hypothesis import given, strategies as st

from steer2edit.method.rule import magnitude


@given(st.floats(0, 0.9), st.floats(0.1, 100))
def test_the_magnitude_is_gain_times_what_exceeds_the_threshold(tau: float, c: float) -> None:
    rho = tau + 1 / c
    g = torch.tensor([-1.0, -0.4, -0.05, 0.0, 0.2, 0.77], dtype=torch.float64)
    found = magnitude(g, torch.tensor([rho]).double(), torch.tensor([tau / rho]).double())[0]
    assert torch.allclose(found, c * g.sign() * (g.abs() - tau).clamp(min=0), rtol=1e-5, atol=1e-6 * c)
