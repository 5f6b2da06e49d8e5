"""What the first screen answers, by paired differences: did the edit work, what did it cost, is it ahead of steering.

The words are in the template.
"""

from dataclasses import dataclass, replace
from typing import Literal

from steer2edit.estimates import Condition, Estimate
from steer2edit.evaluation import Metric, metric_name
from steer2edit.evaluation.statistics import paired
from steer2edit.report.run_results import RunResults

Verdict = Literal["good", "bad", "open"]
"""What colour says: better, worse, or not to be told."""


@dataclass(frozen=True)
class Change:
    """How far a metric is from what it is compared with."""

    metric: Metric
    found: Estimate
    verdict: Verdict
    # what it is measured against, of steering: interpolated at the edit's own drift (`curve`), or at the nearest
    # strength that was measured (`nearest`)
    at: Literal["", "curve", "nearest"] = ""


def verdict(found: Estimate, direction: int = 1) -> Verdict:
    """Good or bad where the interval lies on one side of 0; `direction` is +1 where more is wanted."""
    above = found.low is not None and found.low > 0
    below = found.high is not None and found.high < 0
    if found.value is None or above == below:
        return "open"
    return "good" if above == (direction > 0) else "bad"


def change(run: RunResults, after: Condition, before: Condition | None, name: str) -> Change:
    """The paired difference of a metric; without values by item its estimate alone, which no interval goes with."""
    found = Estimate(None, None, None, 0)
    if before is not None and after.scored(name) and before.scored(name):
        own, other = after.values.get(name, ()), before.values.get(name, ())
        gap = (after.value(name) or 0.0) - (before.value(name) or 0.0)
        same = own and len(own) == len(other)
        found = paired(own, other) if same else Estimate(gap, None, None, after.metrics[name].n)
    return Change(metric_name(name), found, verdict(found, run.wanted(name)))


def costs(run: RunResults, edited: Condition) -> tuple[Verdict, dict[str, Change]]:
    """What of benign behaviour changed; bad where a limit is broken or something surely got worse."""
    names = [n for n in edited.metrics if n != run.attribute and (n in run.costs or n.endswith("_refused"))]
    changes = {name: change(run, edited, run.base, name) for name in names}
    within = run.chosen.within_limits(edited)
    if within is False or any(one.verdict == "bad" for one in changes.values()):
        return "bad", changes
    return "good" if within else "open", changes


def ahead(run: RunResults, edited: Condition) -> Change | None:
    """The edit against steering; `None` where no steering was measured."""
    if run.comparison is not None:  # signed so that positive is better
        gap = run.comparison.at_equal_cost
        return Change(metric_name(run.attribute), gap, verdict(gap), "curve")
    return replace(change(run, edited, run.steered, run.attribute), at="nearest") if run.steered else None
