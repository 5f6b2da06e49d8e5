"""Which edits a search looks at: the coordinates it moves in, their ranges, and the paper's grids."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from steer2edit.core import TUNED_BLOCKS, Block
from steer2edit.errors import InvalidValueError, did_you_mean
from steer2edit.method import COARSE_VALUES, Hyperparameters
from steer2edit.settings import COORDINATES, Coordinates
from steer2edit.settings.search import Range

Parameters = Mapping[str, Any]
"""Values by coordinate name."""
Configuration = tuple[Parameters, Hyperparameters, float]
"""A point of the space, or none, what it stands for, and what the edit is multiplied by."""

_COARSE_STEP = 0.2
_BOUNDS = {"rho_attn": (0.02, 2.0), "rho_mlp": (0.02, 2.0), "alpha": (0.0, 0.98)}

_DRIFT_SHARES = (0.5, 0.9)  # below, many edits do nothing yet, and a strength below 1 takes a good one there
_REFERENCE_GAIN = 10.0


@dataclass(frozen=True)
class SearchSpace:
    """The configurations that a search may propose.

    Raises:
        InvalidValueError: unknown coordinates, no block, or a range that is none.
    """

    # `paper` moves in (ρ_attn, ρ_mlp, α); `threshold` in a threshold τ = ρα and a gain c = 1/(ρ(1 − α)) per block,
    # which act apart where ρ and α act together; `drift` in the thresholds, the balance of the two gains, and the share
    # of the drift budget to spend, from which the strength follows
    coordinates: Coordinates = "paper"
    # blocks that may be edited. With both, a trial edits either of them or both.
    blocks: tuple[Block, ...] = TUNED_BLOCKS
    max_shift: bool = False  # whether κ of `method.limit_shift` is searched too (beyond the paper)
    spare: bool = False  # whether edits are spared, with the gain searched (beyond the paper)
    # upper end of τ by block; components above it are too few to matter
    largest_threshold: Mapping[str, float] | None = None
    # by paper coordinate, where to look and the step of the first grid, instead of everywhere and the coarse grid
    ranges: Mapping[str, Range] | None = None

    def __post_init__(self) -> None:
        if self.coordinates not in COORDINATES:
            raise InvalidValueError(
                f"unknown coordinates {self.coordinates!r}. {did_you_mean(self.coordinates, COORDINATES)}"
            )
        if not self.blocks or set(self.blocks) - set(TUNED_BLOCKS):
            raise InvalidValueError(f"blocks must be attn, mlp or both, got {', '.join(self.blocks) or 'none'}.")
        if self.ranges and self.coordinates != "paper":
            raise InvalidValueError("ranges are those of the paper's coordinates: use --coordinates paper.")
        for name, values in (self.ranges or {}).items():
            check_range(name, *values)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of every coordinate."""
        found: dict[str, BaseDistribution] = {}
        drift, paper = self.coordinates == "drift", self.coordinates == "paper"
        if drift:
            found["drift"] = FloatDistribution(*_DRIFT_SHARES)
        if len(self.blocks) > 1:
            found["blocks"] = CategoricalDistribution([*TUNED_BLOCKS, "both"])
            found |= {"balance": FloatDistribution(0.05, 20.0, log=True)} if drift else {}
        for block in self.blocks:
            if paper:
                found[f"rho_{block}"] = FloatDistribution(*self._bounds(f"rho_{block}"), log=True)
                continue
            found[f"threshold_{block}"] = FloatDistribution(0.0, (self.largest_threshold or {}).get(block, 0.6))
            if not drift:
                found[f"gain_{block}"] = FloatDistribution(0.5, 50.0, log=True)
        if paper:
            found["alpha"] = FloatDistribution(*self._bounds("alpha"))
        if self.max_shift:
            found["max_shift"] = FloatDistribution(0.03 if drift else 0.1, 3.0, log=True)
        if self.spare and not drift:
            found["spare"] = FloatDistribution(0.5, 4.0, log=True)
        return found

    def drift_share(self, parameters: Parameters) -> float | None:
        """The share of the drift budget that a configuration is to spend; `None`: it has a strength of its own."""
        return parameters["drift"] if self.coordinates == "drift" else None

    def hyperparameters(self, parameters: Parameters) -> Hyperparameters:
        """The configuration at one point of the space; in `drift` coordinates up to its strength."""
        chosen = parameters.get("blocks", "both")
        on = self.blocks if chosen == "both" else (chosen,)
        spare = 1.0 if self.spare and self.coordinates == "drift" else None
        beyond = parameters.get("max_shift"), parameters.get("spare", spare)
        if self.coordinates == "paper":
            rho_attn, rho_mlp = (parameters[f"rho_{block}"] if block in on else None for block in TUNED_BLOCKS)
            return Hyperparameters(rho_attn, rho_mlp, parameters["alpha"], *beyond)
        reference = {"attn": _REFERENCE_GAIN, "mlp": _REFERENCE_GAIN * parameters.get("balance", 1.0)}
        attn, mlp = (
            (parameters[f"threshold_{b}"], parameters.get(f"gain_{b}", reference[b])) if b in on else None
            for b in TUNED_BLOCKS
        )
        return Hyperparameters.from_thresholds(attn, mlp, *beyond)

    def coarse_grid(self) -> list[Parameters]:
        """{.1, .3, .5, .7, .9} in every paper coordinate of the blocks, or the values of its range.

        Source: Table 1 and its text.
        """
        both = {"blocks": "both"} if len(self.blocks) > 1 else {}
        beyond = {name: 1.0 for name, on in (("max_shift", self.max_shift), ("spare", self.spare)) if on}
        ranges = self.ranges or {}
        axes = {n: range_values(*ranges[n]) if n in ranges else COARSE_VALUES for n in self._paper_coordinates()}
        return [{**both, **point, **beyond} for point in _product(axes)]

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
    """Refuse a range that has no whole number of steps, or leaves its coordinate's bounds.

    Raises:
        InvalidValueError: as said, or there is no such coordinate.
    """
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
