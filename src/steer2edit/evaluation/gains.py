"""Two gains compared: the share of one that is left of another."""

from collections.abc import Sequence

import numpy as np

from steer2edit.estimates import Estimate, Value
from steer2edit.evaluation.statistics import CONFIDENCE, paired

_DRAWS = 10_000
_TAIL = (1 - CONFIDENCE) / 2


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
    verdicts: bool = True,
    seed: int = 0,
) -> Estimate:
    """Share of a gain: `Σ(part − part_base) / Σ(whole − whole_base)` over the items that are scored in all four.

    The interval is from the Bayesian bootstrap over items, whose weights are Gamma(1). To either gain the half items of
    Agresti and Min are added, one won and one lost, of weight Gamma(½): they keep it from having no width where all
    items agree. Draws without a gain say nothing on a share and are left out; they are few where the gain is told from
    zero.

    Args:
        part: with what the share is asked of: a part of an edit, or a treated edit.
        part_base: without it.
        whole: with all of it.
        whole_base: without it.
        verdicts: values are verdicts, or shares of draws in [0, 1]; other numbers, which seldom agree and have a unit,
            get no half items.
        seed: of the bootstrap.

    Returns:
        Without an interval where the whole gain itself is not told from zero (its paired interval); without a value
        where it is zero.

    Source: Rubin, "The Bayesian bootstrap", Annals of Statistics 9 (1981); Agresti and Min, Statistics in Medicine 24
    (2005).
    """
    rows = [
        (float(w) - float(wb), float(p) - float(pb))
        for p, pb, w, wb in zip(part, part_base, whole, whole_base, strict=True)
        if p is not None and pb is not None and w is not None and wb is not None
    ]
    n, unscored = len(rows), len(part) - len(rows)
    gain, own = np.array(rows, dtype=np.float64).reshape(-1, 2).T
    if n == 0 or gain.sum() == 0:
        return Estimate(None, None, None, n, unscored)
    value = float(own.sum() / gain.sum())
    told = paired(whole, whole_base)
    if told.low is None or told.low <= 0:
        return Estimate(value, None, None, n, unscored)
    rng = np.random.default_rng(seed)
    weights = rng.standard_gamma(1.0, (_DRAWS, n))
    halves = rng.standard_gamma(0.5, (_DRAWS, 4)).T if verdicts else np.zeros((4, _DRAWS))
    wholes, parts = weights @ gain + halves[0] - halves[1], weights @ own + halves[2] - halves[3]
    return Estimate(value, *_ratio_interval(parts, wholes), n, unscored)


def share_of_other_gain(
    part: Sequence[Value],
    part_base: Sequence[Value],
    whole: Sequence[Value],
    whole_base: Sequence[Value],
    seed: int = 0,
) -> Estimate:
    """The gain on some items as a share of the gain on others, verdicts both: as `share_of_gain`, of means.

    The two sets are drawn independently. n is of the items of the part.
    """
    found = [
        np.array([float(a) - float(b) for a, b in zip(*pair, strict=True) if a is not None and b is not None])
        for pair in ((part, part_base), (whole, whole_base))
    ]
    own, gain = found
    n, unscored = len(own), len(part) - len(own)
    if n == 0 or gain.sum() == 0:
        return Estimate(None, None, None, n, unscored)
    value = float(own.mean() / gain.mean())
    told = paired(whole, whole_base)
    if told.low is None or told.low <= 0:
        return Estimate(value, None, None, n, unscored)
    rng = np.random.default_rng(seed)
    parts, wholes = (
        (rng.standard_gamma(1.0, (_DRAWS, len(one))) @ one - np.diff(rng.standard_gamma(0.5, (_DRAWS, 2)))[:, 0])
        / len(one)
        for one in found
    )
    return Estimate(value, *_ratio_interval(parts, wholes), n, unscored)


def _ratio_interval(parts: np.ndarray, wholes: np.ndarray) -> tuple[float, float]:
    gained = wholes > 0
    low, high = np.quantile(parts[gained] / wholes[gained], [_TAIL, 1 - _TAIL])
    return float(low), float(high)
