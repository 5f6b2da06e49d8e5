"""What is tried next: reproducible, never a second time, better than chance, until a grid is exhausted."""

from collections.abc import Sequence
from statistics import median
from typing import get_args

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from steer2edit.errors import InvalidValueError
from steer2edit.search.space import Parameters, SearchSpace, propose
from steer2edit.settings import SearchOptions
from steer2edit.settings.search import Strategy
from unchecked import unchecked

SPACE = SearchSpace()
GRID = SearchSpace(blocks=("mlp",))
SAMPLERS: tuple[Strategy, ...] = ("tpe", "random")


def judged(point: Parameters, space: SearchSpace, complete: bool = True) -> FrozenTrial:
    """A finished trial of a landscape that is best at ρ_mlp = 0.3, where α only costs; the budget is 0.5."""
    gain, cost = 1 - abs(point["rho_mlp"] - 0.3), point["alpha"]
    return create_trial(
        state=TrialState.COMPLETE if complete else TrialState.PRUNED,
        values=[gain, cost] if complete else None,
        params=dict(point),
        distributions=space.distributions(),
        constraints={"kl": cost - 0.5} if complete else {"stopped": 1.0},
    )


def history(strategy: Strategy, generations: int, size: int = 16) -> list[FrozenTrial]:
    """Every other trial of every generation is stopped early, as successive halving does."""
    found: list[FrozenTrial] = []
    for generation in range(generations):
        points = propose(strategy, SPACE, found, generation, size, 0)
        found += [judged(point, SPACE, i % 2 == 0) for i, point in enumerate(points)]
    return found


def identities(points: Sequence[Parameters]) -> set[tuple[tuple[str, object], ...]]:
    return {tuple(sorted(point.items())) for point in points}


@pytest.mark.parametrize("strategy", SAMPLERS)
def test_samplers_are_reproducible_and_do_not_repeat(strategy: Strategy) -> None:
    tried = history(strategy, 3)
    assert len(identities([trial.params for trial in tried])) == len(tried) == 48
    for generation, known in ((0, []), (3, tried)):
        points = propose(strategy, SPACE, known, generation, 8, 0)
        assert len(points) == 8
        assert points == propose(strategy, SPACE, known, generation, 8, 0)
        assert points[:3] == propose(strategy, SPACE, known, generation, 3, 0)[:3]
        assert not identities(points) & identities([trial.params for trial in known])
        for other in ({"seed": 1}, {"worker": "b"}):
            settings = {"seed": 0, **other}
            assert not identities(points) & identities(propose(strategy, SPACE, known, generation, 8, **settings))


@pytest.mark.parametrize("strategy", SAMPLERS)
def test_a_worker_that_comes_late_has_a_first_generation_of_its_own(strategy: Strategy) -> None:
    """The others' trials are known to it; that its own generation is the first must not exhaust the sampler."""
    others = [judged(point, SPACE) for point in propose(strategy, SPACE, [], 0, 16, 0, "a")]
    assert len(propose(strategy, SPACE, others, 0, 16, 0, "b")) == 16


@pytest.mark.parametrize("seed", [0, 4294, 123_456_789_012])
@pytest.mark.parametrize("strategy", SAMPLERS)
def test_any_seed(strategy: Strategy, seed: int) -> None:
    assert len(propose(strategy, SPACE, [], 0, 2, seed)) == 2
    assert len(propose(strategy, SPACE, history(strategy, 1, 4), 1, 2, seed)) == 2


def test_the_sampler_learns() -> None:
    """After four generations proposals are nearer to the best ρ, and cheaper, than random ones."""

    def after(how: Strategy) -> tuple[float, float]:
        points = [trial.params for trial in history(how, 6)[64:]]
        return median(abs(p["rho_mlp"] - 0.3) for p in points), median(p["alpha"] for p in points)

    (far, dear), (random_far, random_dear) = after("tpe"), after("random")
    assert far < 0.5 * random_far
    assert dear < 0.7 * random_dear


def test_grid_is_coarse_then_refined_then_exhausted() -> None:
    tried: list[FrozenTrial] = []
    for generation in range(7):  # 25 points, four at a time
        tried += [judged(point, GRID) for point in propose("grid", GRID, tried, generation, 4, 0)]
    assert [trial.params for trial in tried] == GRID.coarse_grid()
    refined = propose("grid", GRID, tried, 7, 20, 0)
    # the best within the cost: ρ = 0.3, of those the cheapest, α = 0.1; the centre has been tried
    expected = [{"rho_mlp": r, "alpha": a} for r in (0.2, 0.3, 0.4) for a in (0.0, 0.1, 0.2)]
    assert refined == [point for point in expected if point != {"rho_mlp": 0.3, "alpha": 0.1}]
    tried += [judged(point, GRID) for point in refined]
    generation = 8
    while points := propose("grid", GRID, tried, generation, 4, 0):
        assert not identities(points) & identities([trial.params for trial in tried])
        tried += [judged(point, GRID) for point in points]
        generation += 1
    assert generation < 40  # the steps have become too small to be another point


def test_grid_without_any_trial_within_the_budget_goes_where_it_is_cheapest() -> None:
    def beyond(point: Parameters) -> FrozenTrial:
        return create_trial(
            values=[point["alpha"], point["rho_mlp"]], params=dict(point), distributions=GRID.distributions(),
            constraints={"kl": 1.0},
        )  # fmt: skip

    tried = [beyond(point) for point in GRID.coarse_grid()]
    assert {point["rho_mlp"] for point in propose("grid", GRID, tried, 7, 20, 0)} == {0.02, 0.1, 0.2}


def test_grid_without_any_complete_trial_is_exhausted() -> None:
    tried = [judged(point, GRID, complete=False) for point in GRID.coarse_grid()]
    assert propose("grid", GRID, tried, 1, 4, 0) == []


def test_strategies() -> None:
    assert set(get_args(Strategy)) == {"grid", *SAMPLERS}
    with unchecked(), pytest.raises(InvalidValueError, match=r"unknown strategy 'tpa'\. Did you mean 'tpe'\?"):
        SearchOptions(strategy="tpa")  # type: ignore[arg-type]
