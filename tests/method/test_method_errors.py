"""Settings and tensors that the method cannot use: what was wrong, with which value, and what to do."""

import pytest
import torch

from steer2edit.errors import InvalidValueError
from steer2edit.method.hyperparameters import Hyperparameters, Rules, grid
from steer2edit.method.rule import output_direction, site_factors
from unchecked import unchecked

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("alpha", [1.0, 1.5, -0.1, NAN, INF])
def test_alpha_outside_its_range(alpha: float) -> None:
    with pytest.raises(InvalidValueError, match=rf"alpha must be in \[0, 1\), got {alpha}: .* Try 0\.9\."):
        Hyperparameters(0.2, 0.2, alpha)


def test_an_earlier_versions_settings_are_read_where_they_are_off_and_refused_where_they_are_on() -> None:
    earlier = {"rho_attn": 0.2, "rho_mlp": None, "alpha": 0.5, "limit": None, "alpha_mlp": None}
    assert Hyperparameters.from_json(earlier) == Hyperparameters(0.2, None, 0.5)
    with pytest.raises(InvalidValueError, match=r"another version: limit = 0\.4 is not of this one"):
        Hyperparameters.from_json({**earlier, "limit": 0.4})


@pytest.mark.parametrize("rho", [0.0, -1.0, NAN, INF, -INF])
@pytest.mark.parametrize("name", ["rho_attn", "rho_mlp"])
def test_rho_that_is_not_positive(name: str, rho: float) -> None:
    with pytest.raises(InvalidValueError, match=rf"{name} must be > 0, got {rho}: .* Use 'off'"):
        Hyperparameters(**{"rho_attn": 0.2, "rho_mlp": 0.2, name: rho}, alpha=0.5)


def test_both_blocks_off() -> None:
    with pytest.raises(InvalidValueError, match=r"rho_attn and rho_mlp are both off: .* Give at least one"):
        Hyperparameters(None, None, 0.5)


def test_either_block_may_be_off() -> None:
    attention, mlp = Hyperparameters(0.2, None, 0.0), Hyperparameters(None, 0.4, 0.5)
    assert (attention.rho("attn"), attention.rho("mlp")) == (0.2, None)
    assert (mlp.rho("attn"), mlp.rho("mlp")) == (None, 0.4)
    assert str(attention) == "ρ_attn=0.2 ρ_mlp=off α=0"
    assert mlp.to_json() == {
        "rho_attn": None,
        "rho_mlp": 0.4,
        "alpha": 0.5,
    }


def test_a_grid_of_ones_own() -> None:
    assert grid([0.1, 0.2], [None], [0.5]) == [Hyperparameters(0.1, None, 0.5), Hyperparameters(0.2, None, 0.5)]
    with pytest.raises(InvalidValueError, match="both off"):
        grid([None, 0.1], [None], [0.5])


@pytest.mark.parametrize(("bad", "shown"), [(0.0, r"0\.0"), (NAN, "nan"), (INF, "inf"), (-INF, "inf")])
def test_a_vector_without_direction(bad: float, shown: str) -> None:
    v = torch.zeros(4) if bad == 0 else torch.tensor([1.0, bad, 0.0, 2.0])
    with pytest.raises(InvalidValueError, match=rf"finite and not zero, its largest entry is {shown}: .*Check that"):
        output_direction(v)
    with pytest.raises(InvalidValueError, match="has no direction"):
        site_factors(torch.ones(4, 2), v, torch.ones(2), 1)


@pytest.mark.parametrize(
    ("name", "value", "suggestion"),
    [
        ("input_direction", "sensitive", "Did you mean 'sensitivity'? Known: gated, mean, sensitivity, svd."),
        ("importance", "cos", "Did you mean 'cosine'? Known: cosine, dot, effect."),
        ("magnitude", "elastic_net", "Did you mean 'elastic-net'? Known: elastic-net, ridge, top-k."),
        ("magnitude", "xyz", "Known: elastic-net, ridge, top-k."),
    ],
)
def test_unknown_rules(name: str, value: str, suggestion: str) -> None:
    with unchecked(), pytest.raises(InvalidValueError) as caught:
        Rules(**{name: value})
    assert str(caught.value) == f"unknown {name} rule {value!r}. {suggestion}"


def test_settings_are_frozen_and_comparable() -> None:
    assert Rules().to_json() == {
        "input_direction": "sensitivity",
        "importance": "cosine",
        "magnitude": "elastic-net",
    }
    with pytest.raises(AttributeError):
        Hyperparameters(0.1, 0.2, 0.3).alpha = 2.0
    assert len({Hyperparameters(0.1, 0.2, 0.3), Hyperparameters(0.1, 0.2, 0.3)}) == 1
