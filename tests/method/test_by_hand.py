"""Two small sites worked out by hand, ρ = 0.5 and α = 0.4 throughout: threshold ρα = 0.2, ρ(1 − α) = 0.3.

v = (3, 4), so ‖v‖ = 5 and u = (0.6, 0.8).
"""

import math

import pytest
import torch

from steer2edit.core import SiteEdit
from steer2edit.method.hyperparameters import PAPER_RULES, Rules
from steer2edit.method.rule import importance, input_directions, magnitude, output_direction, site_factors

V = torch.tensor([3.0, 4.0])
ROOT2 = math.sqrt(2)

# Two heads of width 2.
#   W_0 = [1 0; 0 1], μ_0 = (1, 0):  W_0 μ_0 = (1, 0),  g_0 = 3 / (5·1) = 0.6,     W_0ᵀv = (3, 4),  k_0 = (0.6, 0.8)
#   W_1 = [0 0; 1 −1], μ_1 = (1, 3): W_1 μ_1 = (0, −2), g_1 = −8 / (5·2) = −0.8,   W_1ᵀv = (4, −4), k_1 = (1, −1)/√2
#   λ_0 = (0.6 − 0.2) / 0.3 = 4/3,   λ_1 = −(0.8 − 0.2) / 0.3 = −2
#   a = (4/3·0.6, 4/3·0.8, −2/√2, 2/√2) = (0.8, 16/15, −√2, √2)
HEADS = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, -1.0]])
HEAD_MEAN = torch.tensor([1.0, 0.0, 1.0, 3.0])

# Five neurons.
#   w_0 = (1, 0),  μ_0 = 2:   w μ = (2, 0),   g = 0.6,   wᵀv = 3 > 0,    k = 1,    λ = 4/3
#   w_1 = (0, −3), μ_1 = 1:   w μ = (0, −3),  g = −0.8,  wᵀv = −12 < 0,  k = −1,   λ = −2
#   w_2 = (0, −3), μ_2 = −1:  w μ = (0, 3),   g = 0.8,   wᵀv = −12 < 0,  k = −1,   λ = 2
#   w_3 = (2, 0),  μ_3 = 0:   w μ = 0,        g = 0,     wᵀv = 6 > 0,    k = 1,    λ = 0
#   w_4 = (7, −4), μ_4 = 1:   w μ = (7, −4),  g = 5 / (5·√65) = 1/√65 = 0.124 < 0.2,  k = 1, λ = 0
NEURONS = torch.tensor([[1.0, 0.0, 0.0, 2.0, 7.0], [0.0, -3.0, -3.0, 0.0, -4.0]])
NEURON_MEAN = torch.tensor([2.0, 1.0, -1.0, 0.0, 1.0])


def edit_of(weight: torch.Tensor, mean: torch.Tensor, width: int, rules: Rules = PAPER_RULES) -> SiteEdit:
    (edit,) = site_factors(weight, V, mean, width, rules).edits([0.5], [0.4])
    return edit


def close(actual: torch.Tensor, expected: list) -> bool:
    return torch.allclose(actual, torch.tensor(expected, dtype=actual.dtype), rtol=1e-6, atol=1e-6)


def test_output_direction() -> None:
    assert close(output_direction(V), [0.6, 0.8])


def test_two_heads() -> None:
    assert close(input_directions(HEADS, V, 2), [0.6, 0.8, 1 / ROOT2, -1 / ROOT2])
    assert close(importance(HEADS, V, HEAD_MEAN, 2), [0.6, -0.8])
    edit = edit_of(HEADS, HEAD_MEAN, 2)
    assert close(edit.output_direction, [0.6, 0.8])
    assert close(edit.importance, [0.6, -0.8])
    assert close(edit.magnitude, [4 / 3, -2])
    assert close(edit.row, [0.8, 16 / 15, -ROOT2, ROOT2])
    assert edit.component_width == 2
    # ΔW = u aᵀ, row by row: 0.6 a and 0.8 a
    expected = [[0.48, 0.64, -0.6 * ROOT2, 0.6 * ROOT2], [0.64, 64 / 75, -0.8 * ROOT2, 0.8 * ROOT2]]
    assert close(edit.dense(), expected)


def test_five_neurons() -> None:
    assert close(input_directions(NEURONS, V, 1), [1, -1, -1, 1, 1])
    assert close(importance(NEURONS, V, NEURON_MEAN, 1), [0.6, -0.8, 0.8, 0, 1 / math.sqrt(65)])
    edit = edit_of(NEURONS, NEURON_MEAN, 1)
    assert close(edit.magnitude, [4 / 3, -2, 2, 0, 0])
    assert close(edit.row, [4 / 3, 2, -2, 0, 0])
    assert close(edit.dense(), [[0.8, 1.2, -1.2, 0, 0], [16 / 15, 1.6, -1.6, 0, 0]])


def test_magnitudes_of_several_configurations() -> None:
    g = torch.tensor([0.6, -0.8, 0.2, 0.0])
    rho, alpha = torch.tensor([0.5, 0.5, 2.0, 1.0]), torch.tensor([0.4, 0.0, 0.5, 0.7])
    expected = [
        [4 / 3, -2, 0, 0],  # (|g| − 0.2) / 0.3, and nothing on the threshold itself
        [1.2, -1.6, 0.4, 0],  # α = 0 shrinks nothing: g / 0.5
        [0, 0, 0, 0],  # threshold 1
        [0, -1 / 3, 0, 0],  # (|g| − 0.7) / 0.3
    ]
    assert close(magnitude(g, rho, alpha), expected)


def test_ablations_of_the_magnitude() -> None:
    assert close(edit_of(HEADS, HEAD_MEAN, 2, Rules(magnitude="ridge")).magnitude, [1.2, -1.6])  # g / 0.5
    assert close(edit_of(HEADS, HEAD_MEAN, 2, Rules(magnitude="top-k")).magnitude, [2, -8 / 3])  # g / 0.3
    # top-k keeps the elastic net's components: the last neuron stays out
    assert close(edit_of(NEURONS, NEURON_MEAN, 1, Rules(magnitude="top-k")).magnitude, [2, -8 / 3, 8 / 3, 0, 0])
    ridge = edit_of(NEURONS, NEURON_MEAN, 1, Rules(magnitude="ridge"))
    assert close(ridge.magnitude, [1.2, -1.6, 1.6, 0, 2 / math.sqrt(65)])


def test_ablation_of_the_importance() -> None:
    # v·(1, 0) = 3 and v·(0, −2) = −8
    assert close(importance(HEADS, V, HEAD_MEAN, 2, rule="dot"), [3, -8])
    # λ = ±(|g| − 0.2) / 0.3
    assert close(edit_of(HEADS, HEAD_MEAN, 2, Rules(importance="dot")).magnitude, [28 / 3, -26])


def test_ablations_of_the_input_direction() -> None:
    # μ_0 is (1, 0) already; ‖μ_1‖ = √10
    mean = input_directions(HEADS, V, 2, rule="mean", input_mean=HEAD_MEAN)
    assert close(mean, [1, 0, 1 / math.sqrt(10), 3 / math.sqrt(10)])
    # W_0 = diag(3, −5) has top right singular vector ±(0, 1); W_0 (0, 1) = (0, −5) points against v, so (0, −1).
    # W_1 = [0 0; 1 −1] has ±(1, −1)/√2; W_1 (1, −1) = (0, 2) points along v.
    weight = torch.tensor([[3.0, 0.0, 0.0, 0.0], [0.0, -5.0, 1.0, -1.0]])
    assert close(input_directions(weight, V, 2, rule="svd"), [0, -1, 1 / ROOT2, -1 / ROOT2])


@pytest.mark.parametrize("rule", ["sensitivity", "svd"])
def test_a_neurons_direction_is_a_sign(rule: str) -> None:
    assert input_directions(NEURONS, V, 1, rule=rule).tolist() == [1, -1, -1, 1, 1]
