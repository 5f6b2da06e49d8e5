"""Which edits a search looks at, coordinates, ranges and grids; and which of them it proposes next."""

import itertools
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from steer2edit.core import TUNED_BLOCKS, Block
from steer2edit.errors import InvalidValueError, did_you_mean
from steer2edit.method import COARSE_VALUES, Hyperparameters
from steer2edit.settings.search import Coordinates, Range, Strategy

Parameters = Mapping[str, Any]
"""Values by coordinate name."""

_COARSE_STEP = 0.2
_BOUNDS = {"rho_attn": (0.02, 2.0), "rho_mlp": (0.02, 2.0), "alpha": (0.0, 0.98)}


@dataclass(frozen=True)
class SearchSpace:
    """The configurations that a search may propose."""

    # `paper` moves in (ρ_attn, ρ_mlp, α); `threshold` in a threshold τ = ρα and a gain c = 1/(ρ(1 − α)) per block,
    # which act apart where ρ and α act together
    coordinates: Coordinates = "paper"
    # blocks that may be edited. With both, a trial edits either of them or both.
    blocks: tuple[Block, ...] = TUNED_BLOCKS
    # upper end of τ by block; components above it are too few to matter
    largest_threshold: Mapping[str, float] | None = None
    # by paper coordinate, where to look and the step of the first grid, instead of everywhere and the coarse grid
    ranges: Mapping[str, Range] | None = None

    def __post_init__(self) -> None:
        if not self.blocks or set(self.blocks) - set(TUNED_BLOCKS):
            raise InvalidValueError(f"blocks must be attn, mlp or both, got {', '.join(self.blocks) or 'none'}.")
        if self.ranges and self.coordinates != "paper":
            raise InvalidValueError("ranges are those of the paper's coordinates: use --coordinates paper.")
        for name, values in (self.ranges or {}).items():
            check_range(name, *values)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of every coordinate."""
        found: dict[str, BaseDistribution] = {}
        if len(self.blocks) > 1:
            found["blocks"] = CategoricalDistribution([*TUNED_BLOCKS, "both"])
        if self.coordinates == "paper":
            for name in self._paper_coordinates():
                found[name] = FloatDistribution(*self._bounds(name), log=name != "alpha")
            return found
        for block in self.blocks:
            found[f"threshold_{block}"] = FloatDistribution(0.0, (self.largest_threshold or {}).get(block, 0.6))
            found[f"gain_{block}"] = FloatDistribution(0.5, 50.0, log=True)
        return found

    def hyperparameters(self, parameters: Parameters) -> Hyperparameters:
        """The configuration at one point of the space."""
        chosen = parameters.get("blocks", "both")
        on = self.blocks if chosen == "both" else (chosen,)
        if self.coordinates == "paper":
            rho_attn, rho_mlp = (parameters[f"rho_{block}"] if block in on else None for block in TUNED_BLOCKS)
            return Hyperparameters(rho_attn, rho_mlp, parameters["alpha"])
        attn, mlp = (
            (parameters[f"threshold_{block}"], parameters[f"gain_{block}"]) if block in on else None
            for block in TUNED_BLOCKS
        )
        return Hyperparameters.from_thresholds(attn, mlp)

    def coarse_grid(self) -> list[Parameters]:
        """{.1, .3, .5, .7, .9} in every paper coordinate of the blocks, or the values of its range.

        Source: Table 1 and its text.
        """
        both = {"blocks": "both"} if len(self.blocks) > 1 else {}
        ranges = self.ranges or {}
        axes = {n: range_values(*ranges[n]) if n in ranges else COARSE_VALUES for n in self._paper_coordinates()}
        return [{**both, **point} for point in _product(axes)]

    def refined_grid(self, centre: Parameters, round_: int) -> list[Parameters]:
        """Three values around the best point in every paper coordinate; the step halves from round to round."""
        axes: dict[str, Sequence[float]] = {}
        for name in self._paper_coordinates():
            low, high = self._bounds(name)
            step = (self.ranges or {}).get(name, (low, high, _COARSE_STEP))[2] / 2**round_
            axes[name] = sorted({round(min(max(centre[name] + k * step, low), high), 6) for k in (-1, 0, 1)})
        return [{**centre, **point} for point in _product(axes)]

    def _paper_coordinates(self) -> list[str]:
        if self.coordinates != "paper":
            raise InvalidValueError("the paper's grids are in its own coordinates: use --coordinates paper.")
        return [*(f"rho_{block}" for block in self.blocks), "alpha"]

    def _bounds(self, name: str) -> tuple[float, float]:
        found = (self.ranges or {}).get(name)
        return _BOUNDS[name] if found is None else found[:2]

    def to_json(self) -> dict[str, Any]:
        """All settings by name; ranges only where there are any, as folders from before there were any have none."""
        settings = {**asdict(self), "blocks": list(self.blocks)}
        ranges = settings.pop("ranges")
        return {**settings, "ranges": {name: list(values) for name, values in ranges.items()}} if ranges else settings


def _product(axes: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def range_values(low: float, high: float, step: float) -> list[float]:
    """low, low + step, ..., high."""
    return [round(low + i * step, 6) for i in range(round((high - low) / step) + 1)]


def check_range(name: str, low: float, high: float, step: float) -> None:
    """An InvalidValueError for a range that has no whole number of steps, or leaves its coordinate's bounds."""
    if name not in _BOUNDS:
        raise InvalidValueError(f"there is no coordinate {name!r} with a range. {did_you_mean(name, _BOUNDS)}")
    smallest, largest = _BOUNDS[name]
    if not smallest <= low < high <= largest:
        raise InvalidValueError(
            f"the range of {name} must be [low, high, step] with {smallest:g} <= low < high <= {largest:g}, got "
            f"[{low:g}, {high:g}, {step:g}]."
        )
    if not 0 < step <= high - low + 1e-9 or abs((high - low) / step - round((high - low) / step)) > 1e-6:
        raise InvalidValueError(
            f"the step of {name} must divide {high - low:g} into whole steps, got {step:g}: give [low, high, step], "
            "e.g. [0.1, 0.9, 0.2]."
        )


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
    """At most `size` configurations of one generation, all different from those tried before (`history`).

    `grid` is the paper's coarse grid, then grids of half the step around the best trial so far; the others are a
    quasi-random first generation, then Optuna's multi-objective sampler, told of trials with the values (gain, cost).
    The same history, generation, seed and worker give the same proposals, so a search that was killed within a
    generation proposes it again, and workers that share a history begin at different places.
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
