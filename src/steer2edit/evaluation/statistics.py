"""Estimates with 95 % intervals. What could not be scored is left out of n and counted apart, never as zero."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import special, stats

CONFIDENCE = 0.95

Value = bool | float | None
"""What one item came to: a verdict, a number, or `None` where it could not be scored."""


@dataclass(frozen=True)
class Estimate:
    """A mean or a rate.

    Args:
        value: the estimate; `None` if nothing could be scored.
        low: lower end of the 95 % interval.
        high: upper end.
        n: how many items it rests on.
        unscored: how many items could not be scored.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    unscored: int = 0

    def to_json(self) -> dict[str, Any]:
        """The five fields by name."""
        return asdict(self)


def estimate(values: Sequence[Value]) -> Estimate:
    """A `rate` where the values are verdicts, a `mean` where they are numbers."""
    if all(value is None or isinstance(value, bool) for value in values):
        return rate([None if value is None else bool(value) for value in values])
    return mean(values)


def rate(outcomes: Sequence[bool | None]) -> Estimate:
    """Share of `True` with Wilson's interval; `None` is unscored. Source: scipy.stats.binomtest."""
    scored = [bool(outcome) for outcome in outcomes if outcome is not None]
    unscored = len(outcomes) - len(scored)
    if not scored:
        return Estimate(None, None, None, 0, unscored)
    interval = stats.binomtest(sum(scored), len(scored)).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(sum(scored) / len(scored), float(interval.low), float(interval.high), len(scored), unscored)


def mean(values: Sequence[float | None]) -> Estimate:
    """Mean with Student's t interval; what is `None` or not finite is unscored. One value has no interval."""
    scored = np.array([value for value in values if value is not None and math.isfinite(value)], dtype=np.float64)
    unscored = len(values) - len(scored)
    if not len(scored):
        return Estimate(None, None, None, 0, unscored)
    centre = float(scored.mean())
    if len(scored) == 1 or np.ptp(scored) == 0:
        known = len(scored) > 1
        return Estimate(centre, centre if known else None, centre if known else None, len(scored), unscored)
    # scipy.stats.t.interval gives the same and takes ten times as long
    half = float(special.stdtrit(len(scored) - 1, (1 + CONFIDENCE) / 2) * scored.std(ddof=1)) / math.sqrt(len(scored))
    return Estimate(centre, centre - half, centre + half, len(scored), unscored)


def paired_difference(after: Sequence[float | None], before: Sequence[float | None]) -> Estimate:
    """Mean of `after − before` over the items scored in both, with Student's t interval."""
    return mean([None if a is None or b is None else a - b for a, b in zip(after, before, strict=True)])
