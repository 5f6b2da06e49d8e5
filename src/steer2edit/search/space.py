"""Which edits a search looks at, ranges and grids of (ρ_attn, ρ_mlp, α); and which of them it proposes next."""

import itertools
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from steer2edit.core import TUNED_BLOCKS, Block
from steer2edit.errors import InvalidValueError, did_you_mean
from steer2edit.method.hyperparameters import COARSE_VALUES, Hyperparameters
from steer2edit.settings.search import Range, Strategy

Parameters = Mapping[str, Any]
"""Values by coordinate name."""

_COARSE_STEP = 0.2
_BOUNDS = {"rho_attn": (0.02, 2.0), "rho_mlp": (0.02, 2.0), "alpha": (0.0, 0.98)}
_MOST_ROUNDS = 4  # of refined grids: the last steps are a sixteenth of the first
_PATIENCE = 8  # rounds of asking a sampler that repeats itself


@dataclass(frozen=True)
class SearchSpace:
    """The configurations that a search may propose."""

    # blocks that may be edited. With both, a trial edits either of them or both.
    blocks: tuple[Block, ...] = TUNED_BLOCKS
    # by coordinate, where to look and the step of the first grid, instead of everywhere and the coarse grid
    ranges: Mapping[str, Range] | None = None

    def __post_init__(self) -> None:
        if not self.blocks or set(self.blocks) - set(TUNED_BLOCKS):
            raise InvalidValueError(f"blocks must be attn, mlp or both, got {', '.join(self.blocks) or 'none'}.")
        for name, values in (self.ranges or {}).items():
            read_range(name, values)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of every coordinate."""
        found: dict[str, BaseDistribution] = {}
        if len(self.blocks) > 1:
            found["blocks"] = CategoricalDistribution([*TUNED_BLOCKS, "both"])
        return found | {n: FloatDistribution(*r[:2], log=n != "alpha") for n, r in self._ranges().items()}

    def hyperparameters(self, parameters: Parameters) -> Hyperparameters:
        """The configuration at one point of the space."""
        chosen = parameters.get("blocks", "both")
        on = self.blocks if chosen == "both" else (chosen,)
        rho_attn, rho_mlp = (parameters[f"rho_{block}"] if block in on else None for block in TUNED_BLOCKS)
        return Hyperparameters(rho_attn, rho_mlp, parameters["alpha"])

    def coarse_grid(self) -> list[Parameters]:
        """{.1, .3, .5, .7, .9} in every coordinate of the blocks, or the values of its range. Source: Table 1."""
        both = {"blocks": "both"} if len(self.blocks) > 1 else {}
        given = self.ranges or {}
        axes = {n: range_values(*r) if n in given else COARSE_VALUES for n, r in self._ranges().items()}
        return [{**both, **point} for point in _product(axes)]

    def refined_grid(self, centre: Parameters, round_: int) -> list[Parameters]:
        """Three values around the best point in every coordinate; the step halves from round to round."""
        axes = {
            name: sorted({round(min(max(centre[name] + k * step / 2**round_, low), high), 6) for k in (-1, 0, 1)})
            for name, (low, high, step) in self._ranges().items()
        }
        return [{**centre, **point} for point in _product(axes)]

    def _ranges(self) -> dict[str, Range]:
        """By coordinate that is on, the smallest and largest value, and the step of the first grid."""
        names = [*(f"rho_{block}" for block in self.blocks), "alpha"]
        return {name: (self.ranges or {}).get(name) or (*_BOUNDS[name], _COARSE_STEP) for name in names}


def _product(axes: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def range_values(low: float, high: float, step: float) -> list[float]:
    """low, low + step, ..., high."""
    return [round(low + i * step, 6) for i in range(round((high - low) / step) + 1)]


def read_range(name: str, given: object) -> Range:
    """The low, high and step of a coordinate; an InvalidValueError outside its bounds, or without whole steps."""
    if name not in _BOUNDS:
        raise InvalidValueError(f"there is no coordinate {name!r} with a range. {did_you_mean(name, _BOUNDS)}")
    smallest, largest = _BOUNDS[name]
    values = list(given) if isinstance(given, list | tuple) else []
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(values) != 3 or len(numbers) != 3 or not smallest <= numbers[0] < numbers[1] <= largest:
        raise InvalidValueError(
            f"the range of {name} must be [low, high, step] with {smallest:g} <= low < high <= {largest:g}, got "
            f"{given}."
        )
    low, high, step = numbers
    if not 0 < step <= high - low + 1e-9 or abs((high - low) / step - round((high - low) / step)) > 1e-6:
        raise InvalidValueError(
            f"the step of {name} must divide {high - low:g} into whole steps, got {step:g}: give [low, high, step], "
            "e.g. [0.1, 0.9, 0.2]."
        )
    return low, high, step


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

    The same history, generation, seed and worker give the same proposals, so a search that was killed within a
    generation proposes it again, and workers that share a history begin at different places.
    """
    if strategy == "grid":
        return _from_grids(space, history)[:size]
    own_seed = zlib.crc32(f"{seed} {worker} {generation}".encode())  # samplers take 32 bits
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler: BaseSampler = RandomSampler(own_seed)
        if strategy == "tpe" and generation == 0:
            sampler = QMCSampler(qmc_type="sobol", scramble=True, seed=own_seed, independent_sampler=sampler)
        elif strategy == "tpe":
            sampler = TPESampler(
                seed=own_seed, multivariate=True, constant_liar=True, n_startup_trials=8, n_ei_candidates=64
            )
        # a copy of the study: nothing is written before it is measured
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        study.add_trials(history)
        found: list[Parameters] = []
        for _ in range(_PATIENCE * size):
            found.append(study.ask(space.distributions()).params)
            if len(fresh := _new(found, history)) == size:
                break
        return fresh


def _new(points: Sequence[Parameters], history: Sequence[FrozenTrial]) -> list[Parameters]:
    """The points that were not tried before, each once."""
    tried = {tuple(sorted(trial.params.items())) for trial in history}
    found = {tuple(sorted(point.items())): point for point in points}
    return [point for identity, point in found.items() if identity not in tried]


def _from_grids(space: SearchSpace, history: Sequence[FrozenTrial]) -> list[Parameters]:
    """What is left of the coarse grid; then of the first refined one around the best within the budget that is new."""
    if left := _new(space.coarse_grid(), history):
        return left
    complete = [trial for trial in history if trial.state == TrialState.COMPLETE]
    if not complete:
        return []
    within = [trial for trial in complete if all(value <= 0 for value in trial.constraints.values())]
    if within:
        best = max(within, key=lambda t: (t.values[0], -t.values[1]))
    else:
        best = min(complete, key=lambda t: t.values[1])
    grids = (_new(space.refined_grid(best.params, round_), history) for round_ in range(1, _MOST_ROUNDS + 1))
    return next(filter(None, grids), [])
