"""Gated effects against the problem they solve, written out densely."""

import pytest
import torch
from torch import Tensor

from steer2edit.core import Site
from steer2edit.method.effect import effect_rows
from steer2edit.method.gate import gated_effects

N, R, Q = 7, 9, 11
A, B = Site(0, "attn"), Site(0, "mlp")
SIZES = {A: 12, B: 30}
OMEGA = 0.4
Rows = dict[Site, Tensor]


def problem() -> tuple[Rows, Rows, Rows]:
    generator = torch.Generator().manual_seed(0)
    made = [
        {site: torch.randn(n, m, dtype=torch.float64, generator=generator) for site, m in SIZES.items()}
        for n in (N, R, Q)
    ]
    for rows in made[:2]:
        for part in rows.values():
            part[:, 0] += 2.0  # what all requests share
    for part in made[0].values():
        part[:, 1] += 2.0  # what only the wanted ones have
    return made[0], made[1], made[2]


def together(rows: Rows) -> Tensor:
    return torch.cat(list(rows.values()), dim=1)


def dense(wanted: Tensor, silent: Tensor, draws: Rows, count: int = R) -> Tensor:
    """M⁻¹s with M written out; the weight of a silent request is ω by `count`."""
    cost = torch.cat([p.square().mean(dim=0) + p.square().mean() for p in draws.values()])
    curvature = torch.block_diag(*(p.T @ p / Q for p in draws.values()))
    M = 0.5 * torch.diag(cost) + 0.5 * curvature + OMEGA * silent.T @ silent / count
    return torch.linalg.solve(M, wanted.mean(dim=0))


def row(effects: Rows, draws: Rows) -> Tensor:
    """The row that `effect_rows` makes of them at ρ = 1, α = 0."""
    one, zero = torch.tensor([1.0]), torch.tensor([0.0])
    C = {site: psi.square().mean(dim=0) for site, psi in draws.items()}
    return torch.cat([effect_rows(s, C[site], len(s), 1.0, one, zero)[0] for site, s in effects.items()])


def test_the_row_solves_the_problem_over_all_sites() -> None:
    wanted, silent, draws = problem()
    found = row(dict(gated_effects(wanted, silent, draws, OMEGA).effects), draws)
    expected = dense(together(wanted), together(silent), draws)
    assert torch.allclose(found, expected, rtol=1e-8, atol=1e-12)
    gain = gated_effects(wanted, silent, draws, OMEGA).gain
    assert gain == pytest.approx(float(together(wanted).mean(dim=0) @ expected), rel=1e-8)


def test_without_silent_requests_drift_alone_is_spared() -> None:
    wanted, silent, draws = problem()
    none = {site: rows[:0] for site, rows in silent.items()}
    gate = gated_effects(wanted, none, draws)
    expected = dense(together(wanted), torch.zeros(1, sum(SIZES.values()), dtype=torch.float64), draws)
    assert torch.allclose(row(dict(gate.effects), draws), expected, rtol=1e-8, atol=1e-12)
    assert gate.silent.shape == (0,)


def test_predictions_left_out_are_those_of_rows_made_without_the_request() -> None:
    wanted, silent, draws = problem()
    gate = gated_effects(wanted, silent, draws, OMEGA)
    phi, other = together(wanted), together(silent)
    for i in range(3):
        rest = phi[torch.arange(N) != i]
        assert gate.wanted[i].item() == pytest.approx((phi[i] @ dense(rest, other, draws)).item(), rel=1e-8)
        kept = other[torch.arange(R) != i]
        assert gate.silent[i].item() == pytest.approx((other[i] @ dense(phi, kept, draws, R)).item(), rel=1e-8)


def test_a_gated_row_says_less_on_silent_requests() -> None:
    wanted, silent, draws = problem()

    def leak(omega: float) -> float:
        a = row(dict(gated_effects(wanted, silent, draws, omega).effects), draws)
        return ((together(silent) @ a).mean() / (together(wanted) @ a).mean()).item()

    assert leak(0.0) > 0.15
    assert abs(leak(100.0)) < leak(0.0) / 10


def test_a_site_that_no_drift_depends_on_counts_for_nothing() -> None:
    wanted, silent, draws = problem()
    gate = gated_effects(wanted, silent, {**draws, B: torch.zeros(Q, SIZES[B], dtype=torch.float64)})
    without = gated_effects(*({A: rows[A]} for rows in (wanted, silent, draws)))
    assert torch.allclose(gate.effects[A], without.effects[A])
    assert not gate.effects[B].any()
