"""What the benchmarks share: arms run in turn, ratios pair by pair, and the one JSON line at the end.

A machine's speed drifts (clock, heat, neighbours) more than two versions of a step differ. So the arms of a
comparison take turns within a round, the order turns round too, and a ratio is formed within each round before
the median is taken over rounds: what slows a whole round cancels.
"""

import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

Result = TypeVar("Result")
PACKAGES = ("steer2edit", "torch", "transformers")


def say(text: str) -> None:
    """Progress, on stderr: stdout is for the JSON line alone."""
    print(text, file=sys.stderr, flush=True)


def in_turn(arms: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every arm in every round, after one round that only warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    for number in range(rounds + 1):
        order = names[number % len(names) :] + names[: number % len(names)]
        taken = {name: _seconds(arms[name]) for name in order}
        shown = ", ".join(f"{name} {taken[name]:.3f} s" for name in names)
        say(f"{'warm-up' if number == 0 else f'round {number} of {rounds}'}: {shown}")
        if number:
            for name in names:
                seconds[name].append(taken[name])
    return seconds


def _seconds(run: Callable[[], object]) -> float:
    return timed(run)[0]


def timed(run: Callable[[], Result]) -> tuple[float, Result]:
    """(seconds, what it returned) of one call."""
    _synchronise()
    start = time.perf_counter()
    result = run()
    _synchronise()
    return time.perf_counter() - start, result


def _synchronise() -> None:
    """Wait for an accelerator, which works behind Python's back; torch is not imported where nothing else did."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.accelerator.is_available():
        torch.accelerator.synchronize()


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median, least and greatest."""
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Spread of the ratios round by round."""
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def median_interval(values: Sequence[float]) -> dict[str, list[float] | float]:
    """An interval of order statistics that holds the median, with the confidence it has: at least 95 % from 6 values.

    Of n values in order, the k-th smallest to the k-th largest holds the median with probability
    1 − 2 · P(Binomial(n, ½) < k); k is the largest for which that is at least 0.95 (1 if there is none).
    """
    ordered, n = sorted(values), len(values)
    missed = [sum(math.comb(n, j) for j in range(k)) / 2**n for k in range(n // 2 + 1)]
    k = max((k for k in range(1, len(missed)) if 2 * missed[k] <= 0.05), default=1)
    return {
        "interval": [round(ordered[k - 1], 4), round(ordered[n - k], 4)],
        "confidence": round(1 - 2 * missed[k], 3) if n > 1 else 0.0,
    }


def emit(benchmark: str, **fields: Any) -> None:
    """The one line on stdout: what was measured, with where it was."""
    environment = {
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    print(json.dumps({"benchmark": benchmark, **fields, "environment": environment}))


def _version(package: str) -> str:
    """Of an installed package; of a source tree on the path there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
