"""Arms side by side: metrics down, arms across, and the differences to the base below."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steer2edit.cli.console import estimate_text, print_json, print_table, say

if TYPE_CHECKING:
    from steer2edit.evaluation import Condition


def compared(conditions: "Sequence[Condition]") -> dict[str, Any]:
    """`conditions` and `comparisons` of the results, as JSON."""
    from steer2edit.evaluation import compare

    return {"conditions": [condition.to_json() for condition in conditions], "comparisons": compare(conditions)}


def report(results: Mapping[str, Any], out: Path | None, *, overwrite: bool, as_json: bool) -> None:
    """Write the results to a file, if there is one, and print them as JSON or for people."""
    if out is not None:
        from steer2edit.artifacts import atomic_file

        with atomic_file(out, overwrite=overwrite) as scratch:
            scratch.write_text(
                json.dumps(results, indent=2, ensure_ascii=False), encoding="utf-8", errors="backslashreplace"
            )
    if as_json:
        return print_json(results)
    _print_metrics(results["conditions"])
    for comparison in results["comparisons"]:
        _print_differences(comparison, results["conditions"][0])
    if unscored := results["scorer"].get("unscored"):
        say("Judge, unscored: " + ", ".join(f"{count} {reason}" for reason, count in unscored.items()))
    if out is not None:
        say(f"Results: {out}")
    return None


def _print_metrics(conditions: Sequence[Mapping[str, Any]]) -> None:
    from steer2edit.evaluation import metric_name

    base = conditions[0]
    rows = []
    for name, estimate in base["metrics"].items():
        known = metric_name(name)
        share = _is_share(base, name)
        cells = [
            "reference" if known.against_base and one is base else estimate_text(one["metrics"][name], share)
            for one in conditions
        ]
        rows.append([known.brief, str(estimate["n"]), *cells])
    print_table(["", "n", *(one["label"] for one in conditions)], rows, "95 % intervals")


def _print_differences(comparison: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    from steer2edit.evaluation import metric_name

    rows = [
        [metric_name(name).brief, str(estimate["n"]), difference_text(estimate, _is_share(base, name))]
        for name, estimate in comparison["differences"].items()
    ]
    if rows:
        say()
        title = f"{comparison['label']} minus {comparison['to']}, paired, 95 % intervals"
        print_table(["", "n", "difference"], rows, title)


def _is_share(condition: Mapping[str, Any], name: str) -> bool:
    """By its name, or because every item is a verdict: the harness has names of its own."""
    from steer2edit.evaluation import metric_name

    values = condition["values"].get(name, ())
    verdicts = bool(values) and all(value is None or isinstance(value, bool) for value in values)
    return verdicts or metric_name(name).scale == "share"


def difference_text(estimate: Mapping[str, Any], share: bool) -> str:
    """`+12 points [+3, +22]`, or `+0.148 [+0.120, +0.176]`."""
    if estimate["value"] is None:
        return "not scored"
    known = (estimate[end] for end in ("value", "low", "high") if estimate[end] is not None)
    value, *ends = (f"{round(100 * number):+d}" if share else f"{number:+.3f}" for number in known)
    interval = f" [{', '.join(ends)}]" if ends else ""
    unscored = f" ({estimate['unscored']} unscored)" if estimate["unscored"] else ""
    return f"{value}{' points' if share else ''}{interval}{unscored}"
