"""Conditions side by side: metrics down, conditions across, and the paired differences to the base below."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steer2edit.cli.console import print_table, say

if TYPE_CHECKING:
    from steer2edit.estimates import Condition


def write_results(results: Mapping[str, Any], out: Path, *, overwrite: bool) -> None:
    """Write results to a JSON file, complete or not at all."""
    from steer2edit.artifacts import atomic_file

    text = json.dumps(results, indent=2, ensure_ascii=False)
    with atomic_file(out, overwrite=overwrite) as scratch:
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace")


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
