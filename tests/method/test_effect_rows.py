"""Rows from effects and costs: by hand, against the problem that they solve, and as the paper's rule in its limit."""

import pytest
import torch

from steer2edit.method.effect import effect_rows
from steer2edit.method.rule import magnitude


def row(s: list[float], C: list[float], n: int, largest: float, rho: float, alpha: float) -> torch.Tensor:
    as_tensor = [torch.tensor(values, dtype=torch.float64) for values in (s, C, [rho], [alpha])]
    return effect_rows(as_tensor[0], as_tensor[1], n, largest, as_tensor[2], as_tensor[3])[0]


def test_by_hand() -> None:
    # neurons, C̄ = 2, ρ(1 − α) C̄ = 0.5 · 0.5 · 2 = 0.5, threshold ρα S = 0.25 · 4 = 1
    # s = 4: (4 − 1)/(1 + 0.5) = 2;   s = −2: −(2 − 1)/(3 + 0.5);   s = 0.5: below the threshold
    found = row([4.0, -2.0, 0.5], [1.0, 3.0, 2.0], 3, 4.0, 0.5, 0.5)
    assert torch.allclose(found, torch.tensor([2.0, -1 / 3.5, 0.0], dtype=torch.float64))


def test_a_head_is_kept_or_left_as_a_whole() -> None:
    # two heads of two columns, C = 1: ‖s‖ = 5 and 1, threshold ρα S = 0.4 · 5 = 2, cost 1 + 0.4 · 1 = 1.4
    # first head: (1 − 2/5) · (3, 4) / 1.4
    found = row([3.0, 4.0, 1.0, 0.0], [1.0] * 4, 2, 5.0, 0.8, 0.5)
    assert torch.allclose(found, torch.tensor([1.8, 2.4, 0.0, 0.0], dtype=torch.float64) / 1.4)


@pytest.mark.parametrize("width", [1, 4])
def test_no_other_row_is_better(width: int) -> None:
    """The objective falls in every direction from the solution; C is the same within a component, where it is exact."""
    generator = torch.Generator().manual_seed(0)
    n, rho, alpha = 6, 0.7, 0.4
    s = torch.randn(n * width, generator=generator, dtype=torch.float64)
    C = torch.rand(n, generator=generator, dtype=torch.float64).repeat_interleave(width)
    largest = s.view(n, -1).norm(dim=1).max()

    def objective(a: torch.Tensor) -> torch.Tensor:
        lengths = a.view(n, -1).norm(dim=1).sum()
        return s @ a - 0.5 * ((C + rho * (1 - alpha) * C.mean()) * a * a).sum() - rho * alpha * largest * lengths

    best = effect_rows(s, C, n, largest.item(), torch.tensor([rho]), torch.tensor([alpha]))[0]
    assert 0 < int(best.count_nonzero()) < n * width or width == 4
    for _ in range(200):
        step = torch.randn(n * width, generator=generator, dtype=torch.float64)
        for size in (1e-3, 1e-1, 1.0):
            assert objective(best + size * step) < objective(best)


def test_with_equal_costs_it_is_the_papers_magnitude_of_the_effect() -> None:
    # C = c everywhere: a = soft(s, ρα S)/(c (1 + ρ(1 − α))), and the paper's λ of s/S has the same zeros and ratios
    s = torch.tensor([1.0, -0.5, 0.2, 0.9], dtype=torch.float64)
    rho, alpha = torch.tensor([0.6]), torch.tensor([0.5])
    ours = effect_rows(s, torch.full_like(s, 2.0), 4, 1.0, rho, alpha)[0]
    paper = magnitude(s, rho, alpha)[0]
    assert torch.equal(ours != 0, paper != 0)
    assert torch.allclose(ours / ours[0], paper / paper[0])


def test_where_nothing_drifts_nothing_is_written() -> None:
    assert row([1.0, 2.0], [0.0, 0.0], 2, 2.0, 1.0, 0.0).tolist() == [0.0, 0.0]
