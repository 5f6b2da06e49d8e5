"""The strength at which something spends a given drift."""

import math
from dataclasses import dataclass

from steer2edit.errors import InvalidValueError


@dataclass(frozen=True)
class Calibration:
    """What a calibration found."""

    strength: float  # multiplies the intervention
    drift: float  # KL(base ‖ model) at it, in nats per token
    steps: int  # how many strengths had been tried when it was found
    reached: bool  # whether the drift is within the tolerance of the target


_HOPELESS = 6  # steps without any drift, each four times the strength


class Secant:
    """The search for the strength s with KL(s) = target: the secant method on √KL, which is nearly linear in s.

        KL(s) ≈ ½ c s²  for small s,   so the first step is  s ← s · √(target / KL(s))

    Begin at a `first` strength that drifts at all. Ask for `strength`, measure the drift there, and `tell` it, until
    the `best` is `reached` within a relative `tolerance`. Source: steering-lite calibrates to a divergence in this way.
    """

    def __init__(self, target: float, first: float = 1.0, tolerance: float = 0.05) -> None:
        if not 0 < target < math.inf:
            raise InvalidValueError(f"the target KL must be > 0, got {target}.")
        self.strength, self.steps = first, 0
        self.best = Calibration(0.0, 0.0, 0, False)
        self._target, self._tolerance = target, tolerance
        self._tried: list[tuple[float, float]] = [(0.0, 0.0)]

    def tell(self, drift: float | None) -> None:
        """Take note of the drift at `strength` (`None`: not finite, far too strong), and move on."""
        self.steps += 1
        if drift is None:
            below = self._tried[-1][0]
            self.strength = (below + self.strength) / 2 if below < self.strength else self.strength / 4
            return
        if drift <= 0:  # by rounding, if the strength is far too small
            if self.steps > _HOPELESS:
                raise InvalidValueError(f"strength {self.strength:g} causes no drift at all, so none can be spent.")
            self.strength *= 4
            return
        reached = abs(drift - self._target) <= self._tolerance * self._target
        if self.best.steps == 0 or abs(drift - self._target) < abs(self.best.drift - self._target):
            self.best = Calibration(self.strength, drift, self.steps, reached)
        if not reached:
            self._tried.append((self.strength, math.sqrt(drift)))
            self.strength = _next(self._tried, math.sqrt(self._target))


def _next(tried: list[tuple[float, float]], goal: float) -> float:
    """Where the line through the two tried points nearest to the goal, one on each side if there are, meets it.

    Where the last two were on the same side of it, the line keeps missing: halfway between the sides then.
    """
    below = max((p for p in tried if p[1] <= goal), key=lambda p: p[1])
    above = [p for p in tried if p[1] > goal]
    other = min(above or [p for p in tried if p != below], key=lambda p: abs(goal - p[1]))
    if above and len(tried) > 2 and (tried[-1][1] > goal) == (tried[-2][1] > goal):
        return (below[0] + other[0]) / 2
    slope = (other[1] - below[1]) / (other[0] - below[0]) if other[0] != below[0] else 0.0
    if slope <= 0:  # below the goal on both sides: what was measured there is rounding
        return (below[0] + other[0]) / 2 if above else 4 * max(p[0] for p in tried)
    guess = below[0] + (goal - below[1]) / slope
    return min(guess, 4 * max(p[0] for p in tried))
