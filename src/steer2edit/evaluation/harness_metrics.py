"""The lm-evaluation-harness's results as estimates with 95 % intervals, item by item where it gives items."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steer2edit.estimates import Estimate, Value
from steer2edit.evaluation.statistics import estimate, paired_difference, reported_mean

_NO_FILTER = "none"


@dataclass(frozen=True)
class HarnessMetric:
    """One metric of one harness task under one intervention.

    Args:
        task: name of the task or group.
        metric: name the harness gives it, e.g. `acc_norm`.
        filter: what was done to the answers before scoring; `none` mostly.
        estimate: with a 95 % interval: Wilson's for hits and misses, Student's t for other means over items, and
            ± 1.96 standard errors where the harness has no mean over items (perplexity, F1, groups).
        values: what each item came to, in the order of the documents; `None` where the metric is no mean over items.
        reported: the harness's own value.
        reported_error: the harness's own standard error, if it gives one.
    """

    task: str
    metric: str
    filter: str
    estimate: Estimate
    values: tuple[Value, ...] | None
    reported: float
    reported_error: float | None

    @property
    def name(self) -> str:
        """`task.metric`, with the filter behind it if there is one."""
        return harness_key(self.task, self.metric, self.filter)

    def minus(self, base: "HarnessMetric") -> Estimate | None:
        """Difference to the base on the same items, paired; `None` where the metric is no mean over items."""
        if self.values is None or base.values is None:
            return None
        return paired_difference(self.values, base.values)


def harness_key(task: str, metric: str, answer_filter: str) -> str:
    """`task.metric`, with the filter behind it if there is one."""
    return f"{task}.{metric}" + ("" if answer_filter == _NO_FILTER else f".{answer_filter}")


def read_metrics(results: Mapping[str, Any]) -> dict[str, HarnessMetric]:
    """Every metric of a harness run by name, groups included.

    Args:
        results: what `lm_eval.evaluate` returns with `log_samples=True`: keys `results` and `samples`.
    """
    found = {}
    for task, entries in results["results"].items():
        for key, reported in entries.items():
            metric, comma, answer_filter = key.partition(",")
            reported = _plain(reported)
            if not comma or metric.endswith("_stderr") or not isinstance(reported, int | float):
                continue
            error = entries.get(f"{metric}_stderr,{answer_filter}")
            values = _item_values(results.get("samples", {}).get(task, ()), metric, answer_filter, float(reported))
            value, n = float(reported), int(entries.get("sample_len", 0))
            found_here = reported_mean(value, _number(error), n) if values is None else estimate(values)
            own = HarnessMetric(task, metric, answer_filter, found_here, values, value, _number(error))
            found[own.name] = own
    return found


def _item_values(
    samples: Sequence[Mapping[str, Any]], metric: str, answer_filter: str, reported: float
) -> tuple[Value, ...] | None:
    """What each document came to, if the reported value is the mean of that."""
    own = [sample for sample in samples if sample["filter"] == answer_filter]
    raw = [_number(sample.get(metric)) for sample in sorted(own, key=lambda sample: int(sample["doc_id"]))]
    scored = [value for value in raw if value is not None]
    if not scored or not math.isclose(sum(scored) / len(scored), reported, rel_tol=1e-6, abs_tol=1e-9):
        return None
    if set(scored) <= {0.0, 1.0}:
        return tuple(None if value is None else bool(value) for value in raw)
    return tuple(raw)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _number(value: Any) -> float | None:
    value = _plain(value)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
