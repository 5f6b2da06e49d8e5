"""The space: the paper's grids, and that every grid point is one Optuna accepts."""

import itertools

import pytest

from steer2edit.errors import InvalidValueError
from steer2edit.method.hyperparameters import Hyperparameters, grid
from steer2edit.search.space import Parameters, SearchSpace
from unchecked import unchecked


def accepted(space: SearchSpace, parameters: Parameters) -> bool:
    distributions = space.distributions()
    return parameters.keys() == distributions.keys() and all(
        d._contains(d.to_internal_repr(parameters[name])) for name, d in distributions.items()
    )


def test_coarse_grid_is_the_papers() -> None:
    space = SearchSpace()
    found = [space.hyperparameters(point) for point in space.coarse_grid()]
    assert found == grid()
    assert len(set(found)) == 125


@pytest.mark.parametrize(("block", "off"), [("attn", "rho_mlp"), ("mlp", "rho_attn")])
def test_grid_of_one_block(block: str, off: str) -> None:
    space = SearchSpace(blocks=(block,))  # type: ignore[arg-type]
    points = space.coarse_grid()
    assert len(points) == 25
    assert set(points[0]) == {f"rho_{block}", "alpha"} == set(space.distributions())
    assert all(getattr(space.hyperparameters(point), off) is None for point in points)


@pytest.mark.parametrize("space", [SearchSpace(), SearchSpace(blocks=("mlp",))])
def test_every_grid_point_is_in_its_distributions(space: SearchSpace) -> None:
    coarse = space.coarse_grid()
    corners = [coarse[0], coarse[-1], coarse[len(coarse) // 2]]
    refined = [
        p for centre, round_ in itertools.product(corners, (1, 2, 5)) for p in space.refined_grid(centre, round_)
    ]
    assert all(accepted(space, point) for point in (*coarse, *refined))


def test_refined_grid_by_hand() -> None:
    space = SearchSpace(blocks=("attn",))
    first = space.refined_grid({"rho_attn": 0.3, "alpha": 0.9}, 1)
    assert first == [{"rho_attn": r, "alpha": a} for r in (0.2, 0.3, 0.4) for a in (0.8, 0.9, 0.98)]
    second = space.refined_grid({"rho_attn": 0.1, "alpha": 0.1}, 2)
    assert second == [{"rho_attn": r, "alpha": a} for r in (0.05, 0.1, 0.15) for a in (0.05, 0.1, 0.15)]
    lowest = space.refined_grid({"rho_attn": 0.1, "alpha": 0.1}, 1)
    assert [point["rho_attn"] for point in lowest[::3]] == [0.02, 0.1, 0.2]  # not 0: ρ is positive
    assert [point["alpha"] for point in lowest[:3]] == [0.0, 0.1, 0.2]


def test_a_trial_may_edit_either_block() -> None:
    space = SearchSpace()
    point = {"rho_attn": 0.2, "rho_mlp": 0.9, "alpha": 0.1}
    assert space.hyperparameters({**point, "blocks": "both"}) == Hyperparameters(0.2, 0.9, 0.1)
    assert space.hyperparameters({**point, "blocks": "attn"}) == Hyperparameters(0.2, None, 0.1)
    assert space.hyperparameters({**point, "blocks": "mlp"}) == Hyperparameters(None, 0.9, 0.1)


def test_bad_spaces() -> None:
    with unchecked():
        with pytest.raises(InvalidValueError, match="blocks must be attn, mlp or both, got none"):
            SearchSpace(blocks=())
        with pytest.raises(InvalidValueError, match="blocks must be attn, mlp or both, got head"):
            SearchSpace(blocks=("head",))  # type: ignore[arg-type]
