"""Conditions as rows of text, for terminals and pages: metrics across, conditions down."""

from collections.abc import Mapping, Sequence
from typing import Any

from steer2edit.estimates import Condition, Estimate, Notation, column
from steer2edit.evaluation import metric_name

LESS_BASE = "Less base, on the same items, 95 % intervals"
Rows = tuple[list[str], list[list[str]]]
"""(titles of columns, rows)."""


def condition_rows(conditions: Sequence[Condition]) -> Rows:
    """Every metric under every condition."""
    first = conditions[0]
    metrics = {name: metric_name(name) for name in first.metrics}
    titles = [f"{metric.brief}\nn={first.metrics[name].n}" for name, metric in metrics.items()]

    def cell(condition: Condition, name: str) -> str:
        if metrics[name].against_base and condition.kind == "base":
            return "reference"
        return column(_is_share(name, first.values.get(name, ()))).text(condition.metrics[name])

    return ["", *titles], [[one.label, *(cell(one, name) for name in metrics)] for one in conditions]


def difference_rows(comparisons: Sequence[Mapping[str, Any]]) -> Rows:
    """What `evaluation.compare` found: every condition less the first."""
    names = list(comparisons[0]["differences"])
    rows = []
    for one in comparisons:
        found = {name: Estimate(**one["differences"][name]) for name in names}
        rows.append([one["label"], *(_changes(name).text(estimate) for name, estimate in found.items())])
    titles = [f"{metric_name(name).brief}\nn={comparisons[0]['differences'][name]['n']}" for name in names]
    return ["", *titles], rows


def _changes(name: str) -> Notation:
    return column(_is_share(name), change=True)


def _is_share(name: str, values: Sequence[Any] = ()) -> bool:
    """By its name, or because every item is a verdict: the harness has names of its own."""
    verdicts = bool(values) and all(value is None or isinstance(value, bool) for value in values)
    return verdicts or metric_name(name).scale == "share"
