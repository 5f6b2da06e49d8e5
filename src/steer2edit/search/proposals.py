"""What to try next: the paper's grids, or an Optuna sampler that sees every trial that was finished before."""

import warnings
import zlib
from collections.abc import Sequence

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from steer2edit.search.space import Parameters, SearchSpace
from steer2edit.settings import Strategy

_Identity = tuple[tuple[str, object], ...]
_MOST_ROUNDS = 4  # of refined grids: the last steps are a sixteenth of the first
_PATIENCE = 8  # rounds of asking a sampler that repeats itself


def propose(
    strategy: Strategy,
    space: SearchSpace,
    history: Sequence[FrozenTrial],
    generation: int,
    size: int,
    seed: int,
    worker: str = "main",
) -> list[Parameters]:
    """The configurations of one generation, all different from those tried before.

    Deterministic: the same history, generation, seed and worker give the same proposals, so a search that was killed
    within a generation proposes it again, and workers that share a history begin at different places.

    Args:
        strategy: `grid`: the paper's coarse grid, then grids of half the step around the best trial so far.
            `tpe`, `nsga2`, `random`: a quasi-random first generation, then Optuna's multi-objective sampler.
        space: of the configurations.
        history: finished trials of earlier generations, by number; complete ones have the values (gain, cost).
        generation: number of this one, from 0.
        size: how many to propose at most.
        seed: of the sampler.
        worker: who asks.
    """
    history = [trial for trial in history if trial.params]  # the edit of effects is no point of the space
    if strategy == "grid":
        return _from_grids(space, history)[:size]
    own_seed = zlib.crc32(f"{seed} {worker} {generation}".encode())  # samplers take 32 bits
    return _sampled(strategy, space, history, generation, size, own_seed)


def _new(points: Sequence[Parameters], history: Sequence[FrozenTrial]) -> dict[_Identity, Parameters]:
    """The points that were not tried before, each once."""
    tried = {_identity(trial.params) for trial in history}
    return {_identity(point): point for point in points if _identity(point) not in tried}


def _identity(parameters: Parameters) -> _Identity:
    return tuple(sorted(parameters.items()))


def _from_grids(space: SearchSpace, history: Sequence[FrozenTrial]) -> list[Parameters]:
    """What is left of the coarse grid; then of the first grid around the best so far that has something left.

    The best is the most of the attribute within the budget, or the least drift if nothing is within it.
    """
    if left := _new(space.coarse_grid(), history):
        return list(left.values())
    complete = [trial for trial in history if trial.state == TrialState.COMPLETE]
    if not complete:
        return []
    within = [trial for trial in complete if all(value <= 0 for value in trial.constraints.values())]
    if within:
        best = max(within, key=lambda t: (t.values[0], -t.values[1]))
    else:
        best = min(complete, key=lambda t: t.values[1])
    for round_ in range(1, _MOST_ROUNDS + 1):
        if left := _new(space.refined_grid(best.params, round_), history):
            return list(left.values())
    return []


def _sampled(
    strategy: Strategy, space: SearchSpace, history: Sequence[FrozenTrial], generation: int, size: int, seed: int
) -> list[Parameters]:
    """Proposals of a sampler in a copy of the study: nothing is written before it is measured."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        population = max(2, min(size, sum(trial.state == TrialState.COMPLETE for trial in history) // 2))
        sampler = _sampler(strategy, generation, population, seed)
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        study.add_trials([_parent(trial) for trial in history] if strategy == "nsga2" else list(history))
        found: list[Parameters] = []
        for _ in range(_PATIENCE * size):
            found.append(study.ask(space.distributions()).params)
            if len(fresh := _new(found, history)) == size:
                break
        return list(fresh.values())


def _sampler(strategy: Strategy, generation: int, population: int, seed: int) -> BaseSampler:
    if strategy == "random":
        return RandomSampler(seed=seed)
    if generation == 0:
        return QMCSampler(qmc_type="sobol", scramble=True, seed=seed, independent_sampler=RandomSampler(seed))
    if strategy == "nsga2":
        return NSGAIISampler(seed=seed, population_size=population)
    return TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=8, n_ei_candidates=64)


def _parent(trial: FrozenTrial) -> FrozenTrial:
    """The trial as one of NSGA-II's first generation, so that the best half of all complete ones have offspring.

    The sampler knows generations by an attribute that it gives to trials it asked for itself; without it no trial is
    ever a parent, and every proposal is random.
    """
    attributes = {**trial.system_attrs, NSGAIISampler._get_generation_key(): 0}
    return create_trial(
        state=trial.state,
        values=trial.values,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs=attributes,
    )
