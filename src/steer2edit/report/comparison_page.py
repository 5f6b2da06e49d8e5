"""The page of a comparison of methods: their curves in every plane, and the figures, without a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from steer2edit.estimates import Condition
from steer2edit.evaluation import COST, metric_name
from steer2edit.report import themes
from steer2edit.report.content import flat, provenance
from steer2edit.report.html import rendered, write_page
from steer2edit.report.panels import Panel, figure_json
from steer2edit.report.run_results import ComparisonResults, read_results
from steer2edit.report.tables import ConditionRow, ConditionTable, cell, metrics_of
from steer2edit.report.text import plot_text
from steer2edit.report.tradeoff import Plane, set_axis
from steer2edit.search.comparison_figures import Figure, figure_text

_COLOURS = (
    themes.STEERING, themes.EDIT, themes.ATTN, themes.MLP, themes.CHOSEN, themes.SSM, themes.BEYOND, themes.BASE,
)  # fmt: skip
_KINDS = {"base": "base", "steering": "steered", "edit": "edited"}

Rows = list[list[str]]


def figure_tables(found: ComparisonResults) -> tuple[list[str], Rows, Rows]:
    """(columns, a row for every method, a row for all but steering against it), as text; areas by steering's."""
    columns = [
        one.label + ", by steering's" * _is_area(one) for one in next(iter(found.figures.values()), {}).values()
    ]  # fmt: skip
    values, against = [], []
    for name, own in found.figures.items():
        compared = [figure_text(o.against_steering, o.share, sign=o.relation == "difference") for o in own.values()]
        shown = [figure_text(one.value, one.share) for one in own.values()]
        areas = [_is_area(one) for one in own.values()]
        values.append([name, *(c if area else s for c, s, area in zip(compared, shown, areas, strict=True))])
        against += [[name, *compared]] if name != "steering" else []
    return columns, values, against


def _is_area(figure: Figure) -> bool:
    return figure.label.startswith("area")


def reasons(found: ComparisonResults) -> list[str]:
    """Why figures and methods are missing, in words."""
    figures = [(name, one) for name, own in found.figures.items() for one in own.values() if one.reason]
    return [
        *(f"{name}, {one.label}: {one.reason}." for name, one in figures),
        *(f"{name} is left out: {reason.rstrip('.')}." for name, reason in found.left_out.items()),
    ]


def write_comparison_page(results: Mapping[str, Any], path: Path) -> None:
    """Render a comparison to a file, in place of what is there: complete or not at all.

    Every text of the results is untrusted: it is escaped, and the page allows no request and no script but its own.

    Raises:
        DataError: the results are malformed, or of another schema version.
        ArtifactError: the file cannot be written.
    """
    found = read_results(results, ComparisonResults)
    columns, values, against = figure_tables(found)
    panels = [_panel(found, damage) for damage in (COST, *found.plan.second)]
    content = {
        "found": found,
        "panels": panels,
        "columns": columns,
        "tables": [("Figures of every method", values), ("Against steering: difference, or ratio", against)],
        "reasons": reasons(found),
        "measured": _conditions(found),
        "kinds": _KINDS,
        "provenance": [*provenance(found), *flat(found.settings)],
        "figures": {panel.name: panel.data for panel in panels},
    }
    write_page(rendered("comparison", content), path, overwrite=True)


def _conditions(found: ComparisonResults) -> ConditionTable:
    every = [found.base, *(condition for own in found.methods.values() for condition in own)]
    metrics = tuple(metrics_of(every))
    rows = [ConditionRow(c.label, c.kind, "", tuple(cell(c, metric) for metric in metrics)) for c in every]
    return ConditionTable(metrics, tuple(rows))


def _panel(found: ComparisonResults, damage: str) -> Panel:
    plane = Plane(damage, found.plan.attribute)
    x, y = metric_name(damage), metric_name(plane.attribute)
    better = "Up" if found.plan.direction > 0 else "Down"
    return Panel(
        name=f"curves-{damage}",
        title=x.short,
        data=figure_json(_curves(found, plane)),
        caption=(
            f"{better} and to the left is better. Held-out items; bands are 95 % intervals of {y.running}, point by "
            "point. Differences between methods are paired, and surer than overlapping bands suggest."
        ),
        alternative=f"Curves of {y.short} against {x.short}: {', '.join(found.methods)}. The tables have the numbers.",
    )


def _curves(found: ComparisonResults, plane: Plane) -> go.Figure:
    figure = go.Figure()
    for place, (name, own) in enumerate(found.methods.items()):
        points = plane.drawable([found.base, *own])
        colour = _COLOURS[place % len(_COLOURS)]
        _add_band(figure, points, plane, colour, name)
        style = {"line": {"color": colour, "width": 2}, "marker": {"size": 8, "color": colour}}
        figure.add_scatter(
            name=plot_text(name), legendgroup=name, mode="lines+markers", **style, **plane.places(points)
        )  # fmt: skip
    set_axis(figure.layout.xaxis, metric_name(plane.damage))
    set_axis(figure.layout.yaxis, metric_name(plane.attribute))
    figure.update_layout(
        height=480,
        margin={"l": 60, "r": 20, "t": 20, "b": 60},
        legend={"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"},
        hovermode="closest",
    )
    return figure


def _add_band(figure: go.Figure, points: Sequence[Condition], plane: Plane, colour: str, name: str) -> None:
    """The attribute's intervals of the points as one area."""
    ends = [(plane.x(c), c.metrics[plane.attribute].low, c.metrics[plane.attribute].high) for c in points]
    known = [(x, low, high) for x, low, high in ends if low is not None and high is not None]
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    figure.add_scatter(
        x=[x for x, _, _ in known] + [x for x, _, _ in reversed(known)],
        y=[low for _, low, _ in known] + [high for _, _, high in reversed(known)],
        fill="toself", fillcolor=f"rgba({red}, {green}, {blue}, 0.15)", mode="lines", line={"width": 0},
        legendgroup=name, showlegend=False, hoverinfo="skip",
    )  # fmt: skip
