"""How long tests take: estimated from their cost and from what has been measured in this run."""

from dataclasses import dataclass

from steer2edit.stress.stress_test import Cost

_PASSES_PER_REPLY = 3  # a reply of 24 tokens takes about as long as so many passes, on a CPU and in batches


def units(cost: Cost) -> float:
    """Cost in replies."""
    return cost.replies + cost.passes / _PASSES_PER_REPLY


@dataclass
class Pace:
    """Seconds per reply so far; not known before anything was measured."""

    _units: float = 0.0
    _seconds: float = 0.0

    def add(self, cost: Cost, seconds: float) -> None:
        """Take note of what something took."""
        self._units += units(cost)
        self._seconds += seconds

    def seconds(self, cost: Cost) -> float | None:
        """How long something will take, about."""
        return self._seconds / self._units * units(cost) if self._units else None


def duration(seconds: float) -> str:
    """`40 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
