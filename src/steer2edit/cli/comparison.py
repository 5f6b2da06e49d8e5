"""Conditions side by side: metrics down, conditions across, and the paired differences to the base below."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from steer2edit.cli.console import print_table, say

if TYPE_CHECKING:
    from steer2edit.estimates import Condition


def print_comparison(conditions: "Sequence[Condition]", comparisons: Sequence[Mapping[str, Any]]) -> None:
    """Every metric under every condition, and what `evaluation.compare` found."""
    from steer2edit.estimates import Estimate, column
    from steer2edit.evaluation import metric_name

    base = conditions[0]
    rows = []
    for name, estimate in base.metrics.items():
        metric, notation = metric_name(name), column(_is_share(base, name))
        cells = [
            "reference" if metric.against_base and one is base else notation.text(one.metrics[name])
            for one in conditions
        ]
        rows.append([metric.brief, str(estimate.n), *cells])
    print_table(["", "n", *(one.label for one in conditions)], rows, "95 % intervals")
    for comparison in comparisons:
        found = {name: Estimate(**one) for name, one in comparison["differences"].items()}
        rows = [
            [metric_name(name).brief, str(one.n), column(_is_share(base, name), change=True).text(one)]
            for name, one in found.items()
        ]
        if rows:
            say()
            title = f"{comparison['label']} minus {comparison['to']}, paired, 95 % intervals"
            print_table(["", "n", "difference"], rows, title)


def _is_share(condition: "Condition", name: str) -> bool:
    """By its name, or because every item is a verdict: the harness has names of its own."""
    from steer2edit.evaluation import metric_name

    values = condition.values.get(name, ())
    verdicts = bool(values) and all(value is None or isinstance(value, bool) for value in values)
    return verdicts or metric_name(name).scale == "share"
