"""The page of a comparison of methods: their curves in every plane, and the figures, without a model."""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

from steer2edit.evaluation import COST
from steer2edit.report import themes
from steer2edit.report.html import rendered, write_page
from steer2edit.report.run_page import flat, provenance
from steer2edit.report.run_results import ComparisonResults, read_results
from steer2edit.report.tradeoff import Marks, Plane, plane_figure
from steer2edit.search.curves import figure_text

Table = tuple[str, list[str], list[list[str]]]
"""Caption, titles of columns, and rows, whose first text is their head."""
_COLOURS = (
    themes.STEERING, themes.EDIT, themes.ATTN, themes.MLP, themes.CHOSEN, themes.SSM, themes.BEYOND, themes.BASE,
)  # fmt: skip


def figure_tables(found: ComparisonResults) -> tuple[Table, Table]:
    """The figures of every method, areas by steering's; and those of all but steering against it."""
    first = next(iter(found.figures.values()), {}).values()
    columns = ["method", *(one.label + ", by steering's" * one.label.startswith("area") for one in first)]
    values, against = [], []
    for name, own in found.figures.items():
        compared = [figure_text(o.against_steering, o.share, sign=o.relation == "difference") for o in own.values()]
        shown = [figure_text(one.value, one.share) for one in own.values()]
        areas = [one.label.startswith("area") for one in own.values()]
        values.append([name, *(c if area else s for c, s, area in zip(compared, shown, areas, strict=True))])
        against += [[name, *compared]] if name != "steering" else []
    return (
        ("Held-out items: figures of every method, 95 % bootstrap intervals", columns, values),
        ("Against steering: differences and ratios, paired", columns, against),
    )


def reasons(found: ComparisonResults) -> list[str]:
    """Why figures and methods are missing, in words."""
    figures = [(name, one) for name, own in found.figures.items() for one in own.values() if one.reason]
    return [
        *(f"{name}, {one.label}: {one.reason}." for name, one in figures),
        *(f"{name} is left out: {reason.rstrip('.')}." for name, reason in found.left_out.items()),
    ]


def write_comparison_page(results: Mapping[str, Any], path: Path) -> None:
    """Render a comparison to a file, in place of what is there: complete or not at all. Its texts are untrusted."""
    found = read_results(results, ComparisonResults)
    planes = {name: Plane(name, found.plan.attribute, found.plan.direction) for name in (COST, *found.plan.second)}
    content = {
        "run": found,
        "planes": planes.values(),
        "tables": figure_tables(found),
        "reasons": reasons(found),
        "conditions": [found.base, *(condition for own in found.methods.values() for condition in own)],
        "provenance": [*provenance(found), *flat(found.settings)],
    }
    marks = [
        Marks(name, [found.base, *own], {"size": 8, "color": colour}, {"color": colour, "width": 2}, band=True)
        for colour, (name, own) in zip(cycle(_COLOURS), found.methods.items(), strict=False)
    ]
    figures = {f"curves-{name}": plane_figure(plane, marks) for name, plane in planes.items()}
    write_page(rendered("comparison", figures, content), path, overwrite=True)
