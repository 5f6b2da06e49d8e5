"""Rates of a group of tests with their intervals, line below line."""

from collections.abc import Sequence

import plotly.graph_objects as go

from steer2edit.report import themes
from steer2edit.report.panels import Panel, figure_json
from steer2edit.report.text import plot_text
from steer2edit.stress.records import ArmRecord, Entry, Line
from steer2edit.stress.scorecard import Scorecard, named

_MOST_LINES = 60
_KINDS = {
    "base": (themes.BASE, "circle"),
    "steering": (themes.STEERING, "diamond"),
    "edit": (themes.EDIT, "square"),
    "baseline": (themes.BEYOND, "cross"),
}


def rates_panel(name: str, title: str, tests: Sequence[Entry], card: Scorecard) -> Panel | None:
    """The rates of base, steering and edit in every line of some tests; `None` where there are none."""
    lines = [(named(test.name, line.name), line) for test in tests for line in test.lines if _drawn(line, card)]
    if not lines:
        return None
    data = figure_json(_figure(lines[:_MOST_LINES], card))
    cut = "" if len(lines) <= _MOST_LINES else f" The first {_MOST_LINES} of {len(lines)} lines; the tables have all."
    caption = (
        "Rates in percent with 95 % intervals; every line compares the arms on the same prompts. Where a line is about "
        "a treated model or a part of the edit, that stands for the edit, and what it is compared with for the base."
        f"{cut}"
    )
    return Panel(name, title, data, caption, f"{title}: rates by line and arm; the tables below hold the same numbers.")


def _drawn(line: Line, card: Scorecard) -> bool:
    return line.share and any(_label(line, arm) in line.arms for arm in card.arms)


def _label(line: Line, arm: ArmRecord) -> str:
    """The label under which a line has an arm: for a line on other arms than the edit, the first of those."""
    return next(iter(line.judged)) if line.judged and arm.kind == "edit" else arm.label


def _figure(lines: Sequence[tuple[str, Line]], card: Scorecard) -> go.Figure:
    figure = go.Figure()
    for place, arm in enumerate(card.arms):
        labels = [_label(line, arm) for _, line in lines]
        found = [(i, line.arms[labels[i]]) for i, (_, line) in enumerate(lines) if labels[i] in line.arms]
        points = [(i, e) for i, e in found if e.value is not None and e.low is not None and e.high is not None]
        colour, symbol = _KINDS[arm.kind]
        figure.add_scatter(
            x=[100 * (e.value or 0.0) for _, e in points],
            y=[i + 0.22 * (place - (len(card.arms) - 1) / 2) for i, _ in points],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [100 * ((e.high or 0.0) - (e.value or 0.0)) for _, e in points],
                "arrayminus": [100 * ((e.value or 0.0) - (e.low or 0.0)) for _, e in points],
                "thickness": 1.5,
                "width": 0,
            },
            mode="markers",
            name=plot_text(arm.label),
            marker={"color": colour, "symbol": symbol, "size": 8},
            customdata=[[e.n, plot_text(lines[i][0])] for i, e in points],
            hovertemplate="<b>%{customdata[1]}</b><br>%{x:.1f} %, n = %{customdata[0]}<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(
        height=120 + 34 * len(lines),
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0, "traceorder": "normal"},
    )
    figure.update_xaxes(title_text="rate (%)", range=[-3, 103])
    names = [plot_text(name) for name, _ in lines]
    figure.update_yaxes(
        tickvals=list(range(len(lines))), ticktext=names, range=[len(lines) - 0.4, -0.6], zeroline=False
    )
    return figure
