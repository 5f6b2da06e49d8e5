"""The natural gradient, by a dense curvature and by what it is best at."""

import torch

from steer2edit.method.curvature import divided_by_drift, natural_direction


def curvature(psi: torch.Tensor) -> torch.Tensor:
    C = psi.square().mean(dim=0)
    return 0.5 * psi.T @ psi / len(psi) + 0.5 * torch.diag(C + C.mean())


def test_division_is_by_the_dense_curvature() -> None:
    generator = torch.Generator().manual_seed(0)
    for draws in (3, 40):
        psi = torch.randn(draws, 12, generator=generator, dtype=torch.float64)
        rows = torch.randn(4, 12, generator=generator, dtype=torch.float64)
        expected = torch.linalg.solve(curvature(psi), rows.T).T
        assert torch.allclose(divided_by_drift(rows, psi), expected, rtol=1e-9)


def test_no_direction_moves_the_decision_more_for_its_drift() -> None:
    generator = torch.Generator().manual_seed(1)
    psi = torch.randn(50, 8, generator=generator, dtype=torch.float64) * torch.arange(1, 9)
    gradient = torch.randn(8, generator=generator, dtype=torch.float64)
    F, u = curvature(psi), natural_direction(gradient, psi)

    def worth(x: torch.Tensor) -> float:
        return float((x @ gradient) ** 2 / (x @ F @ x))

    assert abs(float(u.norm()) - 1) < 1e-9
    assert float(u @ gradient) > 0
    others = [gradient, *torch.randn(200, 8, generator=generator, dtype=torch.float64)]
    assert all(worth(u) > worth(other) for other in others)


def test_where_nothing_drifts_or_decides_there_is_none() -> None:
    assert not natural_direction(torch.ones(4), torch.zeros(3, 4)).any()
    assert not natural_direction(torch.zeros(4), torch.ones(3, 4)).any()
