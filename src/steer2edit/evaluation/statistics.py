"""Estimates with 95 % intervals, differences on the same items, and shares of gains.

What could not be scored is left out of n and counted apart, never as zero.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special, stats

from steer2edit.estimates import Condition, Estimate, Value
from steer2edit.evaluation.metrics import metric_name

CONFIDENCE = 0.95
_TAIL = (1 - CONFIDENCE) / 2
_Z = float(stats.norm.ppf(1 - _TAIL))
_DRAWS = 10_000


def estimate(values: Sequence[Value]) -> Estimate:
    """A `rate` where the values are verdicts, a `mean` where they are numbers."""
    return rate(values) if _are_verdicts(values) else mean(values)


def rate(outcomes: Sequence[Value]) -> Estimate:
    """Share of `True` with Wilson's interval; `None` is unscored. Source: scipy.stats.binomtest."""
    scored = [bool(outcome) for outcome in outcomes if outcome is not None]
    unscored = len(outcomes) - len(scored)
    if not scored:
        return Estimate(None, None, None, 0, unscored)
    interval = stats.binomtest(sum(scored), len(scored)).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(sum(scored) / len(scored), float(interval.low), float(interval.high), len(scored), unscored)


def mean(values: Sequence[Value]) -> Estimate:
    """Mean with Student's t interval; what is `None` or not finite is unscored. One value has no interval."""
    scored = np.array([value for value in values if value is not None and math.isfinite(value)], dtype=np.float64)
    unscored = len(values) - len(scored)
    if not len(scored):
        return Estimate(None, None, None, 0, unscored)
    centre = float(scored.mean())
    if len(scored) == 1 or np.ptp(scored) == 0:
        end = centre if len(scored) > 1 else None
        return Estimate(centre, end, end, len(scored), unscored)
    # scipy.stats.t.interval gives the same and takes ten times as long
    half = float(special.stdtrit(len(scored) - 1, (1 + CONFIDENCE) / 2) * scored.std(ddof=1)) / math.sqrt(len(scored))
    return Estimate(centre, centre - half, centre + half, len(scored), unscored)


def reported_mean(value: float, error: float | None, n: int) -> Estimate:
    """What another program reports, ± 1.96 of its standard errors where it gives one."""
    if not math.isfinite(value):
        return Estimate(None, None, None, 0, n)
    low, high = (None, None) if error is None else (value - _Z * error, value + _Z * error)
    return Estimate(value, low, high, n)


def paired(after: Sequence[Value], before: Sequence[Value]) -> Estimate:
    """Mean of `after − before` on items scored in both: of rates where values are verdicts, else with Student's t."""
    if _are_verdicts((*after, *before)):
        return paired_rate_difference(after, before)
    return mean([None if a is None or b is None else float(a) - float(b) for a, b in zip(after, before, strict=True)])


def paired_rate_difference(after: Sequence[Value], before: Sequence[Value]) -> Estimate:
    """Mean of `after − before` over the same items, whose values are verdicts or shares in [0, 1].

    Of verdicts, `gained` items are true only after and `lost` only before, of n: the estimate is `(gained − lost) / n`.
    The interval is Wald's with ½ added to each of the four cells: `d ± z √(g + l − (g − l)²/m) / m` for `m = n + 2`,
    `g = gained + ½`, `l = lost + ½`, `d = (g − l) / m`. Where few items differ it is no narrower than it may be, and
    where none do it still has a width, which Wald's own has not.

    Of shares, gained is Σ max(d, 0) and lost Σ max(−d, 0) over the items' differences d; since |d| ≥ d², the interval
    is never narrower than for the items' own variance. What the shares themselves are sampled from is not accounted
    for. An item that is `None` in either is unscored.

    Source: Agresti and Min, "Simple improved confidence intervals for comparing matched proportions", Statistics in
    Medicine 24 (2005) 729-740.
    """
    pairs = zip(after, before, strict=True)
    differences = [float(a) - float(b) for a, b in pairs if a is not None and b is not None]
    n, unscored = len(differences), len(after) - len(differences)
    if not n:
        return Estimate(None, None, None, 0, unscored)
    gained, lost = sum(max(d, 0.0) for d in differences), sum(max(-d, 0.0) for d in differences)
    m, g, l = n + 2, gained + 0.5, lost + 0.5  # noqa: E741
    half, centre = _Z * math.sqrt(g + l - (g - l) ** 2 / m) / m, (g - l) / m
    return Estimate((gained - lost) / n, max(-1.0, centre - half), min(1.0, centre + half), n, unscored)


def compare(conditions: Sequence[Condition]) -> list[dict[str, Any]]:
    """Of every condition but the first `label`, `to` (the first's), and `differences` by metric, but for KL and NLL."""
    base, *others = conditions
    names = [name for name in base.values if not metric_name(name).against_base]
    found = []
    for other in others:
        shared = [name for name in names if name in other.values]
        differences = {name: paired(other.values[name], base.values[name]).to_json() for name in shared}
        found.append({"label": other.label, "to": base.label, "differences": differences})
    return found


def _are_verdicts(values: Sequence[Value]) -> bool:
    return all(value is None or isinstance(value, bool) for value in values)


def mean_of(draws: Sequence[Sequence[Value]]) -> list[Value]:
    """Mean over draws, item by item; an item that no draw could score is unscored."""
    means: list[Value] = []
    for values in zip(*draws, strict=True):
        scored = [float(value) for value in values if value is not None]
        means.append(sum(scored) / len(scored) if scored else None)
    return means


def share_of_gain(
    part: Sequence[Value],
    part_base: Sequence[Value],
    whole: Sequence[Value],
    whole_base: Sequence[Value],
    *,
    same_items: bool = True,
    seed: int = 0,
) -> Estimate:
    """Share of a gain: `mean(part − part_base) / mean(whole − whole_base)`, over the items that are scored in all four.

    Where the whole is not of the `same_items`, each mean is over its own, which are drawn independently. Without an
    interval where the whole gain is not told from zero; without a value where it is zero. Values are verdicts, or
    shares of draws.

    The interval is from the Bayesian bootstrap over items, whose weights are Gamma(1). To either gain the half items of
    Agresti and Min are added, one won and one lost, of weight Gamma(½): they keep it from having no width where all
    items agree. Draws without a gain say nothing on a share and are left out; they are few.

    Source: Rubin, "The Bayesian bootstrap", Annals of Statistics 9 (1981); Agresti and Min, Statistics in Medicine 24
    (2005).
    """
    gains = [
        [None if a is None or b is None else float(a) - float(b) for a, b in zip(*pair, strict=True)]
        for pair in ((part, part_base), (whole, whole_base))
    ]
    if same_items:
        both = [(p, w) for p, w in zip(*gains, strict=True) if p is not None and w is not None]
        own, gain = np.array(both, dtype=np.float64).reshape(-1, 2).T
    else:
        own, gain = (np.array([value for value in one if value is not None], dtype=np.float64) for one in gains)
    n, unscored = len(own), len(part) - len(own)
    if n == 0 or gain.sum() == 0:
        return Estimate(None, None, None, n, unscored)
    value = float(own.mean() / gain.mean())
    if not paired(whole, whole_base).above(0):
        return Estimate(value, None, None, n, unscored)
    parts, wholes = _drawn_gains(own, gain, same_items, np.random.default_rng(seed))
    gained = wholes > 0
    low, high = np.quantile(parts[gained] / wholes[gained], [_TAIL, 1 - _TAIL])
    return Estimate(value, float(low), float(high), n, unscored)


def _drawn_gains(
    own: np.ndarray, gain: np.ndarray, same_items: bool, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of the gains of the part and of the whole, on one scale."""
    if same_items:
        weights, halves = rng.standard_gamma(1.0, (_DRAWS, len(own))), rng.standard_gamma(0.5, (_DRAWS, 4)).T
        return weights @ own + halves[2] - halves[3], weights @ gain + halves[0] - halves[1]
    parts, wholes = (
        (rng.standard_gamma(1.0, (_DRAWS, len(one))) @ one - np.diff(rng.standard_gamma(0.5, (_DRAWS, 2)))[:, 0])
        / len(one)
        for one in (own, gain)
    )
    return parts, wholes
