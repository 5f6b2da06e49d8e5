"""Gated effects against the problem they solve, written out densely."""

import pytest
import torch
from torch import Tensor

from steer2edit.method import effect_rows, gated_effects

WANTED, SILENT = 7, 9
SIZES = {"a": 12, "b": 30}


@pytest.fixture
def problem() -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    torch.manual_seed(0)
    features = {site: torch.randn(WANTED + SILENT, m, dtype=torch.float64) for site, m in SIZES.items()}
    for phi in features.values():
        phi[:, 0] += 2.0  # what all requests share
        phi[:WANTED, 1] += 2.0  # what only the wanted ones have
    drift = {site: torch.rand(m, dtype=torch.float64) for site, m in SIZES.items()}
    return features, drift, torch.tensor([1.0] * WANTED + [0.0] * SILENT)


def dense(features: dict[str, Tensor], drift: dict[str, Tensor], y: Tensor, ridge: float) -> Tensor:
    """(ΦᵀΦ + ρκ H⁻¹)⁻¹ Φᵀy, over the columns: as many equations as columns."""
    phi = torch.cat(list(features.values()), dim=1)
    cost = torch.cat([C + C.mean() for C in drift.values()])
    energy = (phi[:WANTED].square() / cost).sum(dim=1).mean()
    return torch.linalg.solve(phi.T @ phi + ridge * energy * torch.diag(cost), phi.T @ y.double())


def row(effects: dict[str, Tensor], drift: dict[str, Tensor]) -> Tensor:
    """The row that `effect_rows` makes of them at ρ = 1, α = 0: H ŝ."""
    one, zero = torch.tensor([1.0]), torch.tensor([0.0])
    return torch.cat([effect_rows(s, drift[site], len(s), 1.0, one, zero)[0] for site, s in effects.items()])


@pytest.mark.parametrize("ridge", [0.01, 0.2, 20.0])
def test_the_row_solves_the_regression_over_all_sites(
    problem: tuple[dict[str, Tensor], dict[str, Tensor], Tensor], ridge: float
) -> None:
    features, drift, y = problem
    found = row(dict(gated_effects(features, drift, y, ridge).effects), drift)
    assert torch.allclose(found, dense(features, drift, y, ridge), rtol=1e-8, atol=1e-12)


def test_predictions_left_out_are_those_of_rows_made_without_the_request(
    problem: tuple[dict[str, Tensor], dict[str, Tensor], Tensor],
) -> None:
    """The ridge is that of all requests: its unit κ is held, as one regression left out of."""
    features, drift, y = problem
    phi = torch.cat(list(features.values()), dim=1)
    cost = torch.cat([C + C.mean() for C in drift.values()])
    ridge = 0.2 * (phi[:WANTED].square() / cost).sum(dim=1).mean()
    left_out = gated_effects(features, drift, y, 0.2).left_out
    for i in (0, WANTED):
        others = torch.arange(len(y)) != i
        P, t = phi[others], y[others].double()
        a = torch.linalg.solve(P.T @ P + ridge * torch.diag(cost), P.T @ t)
        assert left_out[i].item() == pytest.approx((phi[i] @ a).item(), rel=1e-8)


def test_a_gated_row_says_less_on_silent_requests_than_the_mean_of_the_wanted_ones(
    problem: tuple[dict[str, Tensor], dict[str, Tensor], Tensor],
) -> None:
    features, drift, y = problem
    phi = torch.cat(list(features.values()), dim=1)

    def leak(effects: dict[str, Tensor]) -> float:
        said = phi @ row(effects, drift)
        return (said[WANTED:].mean() / said[:WANTED].mean()).item()

    plain = leak({site: rows[:WANTED].mean(dim=0) for site, rows in features.items()})
    assert plain > 0.15
    assert abs(leak(dict(gated_effects(features, drift, y, 0.01).effects))) < plain / 3


def test_a_site_that_no_drift_depends_on_counts_for_nothing(
    problem: tuple[dict[str, Tensor], dict[str, Tensor], Tensor],
) -> None:
    features, drift, y = problem
    without = gated_effects({"a": features["a"]}, {"a": drift["a"]}, y).effects["a"]
    silent = gated_effects(features, {**drift, "b": torch.zeros(SIZES["b"])}, y).effects["a"]
    assert torch.allclose(silent, without)
