"""Trade-off plots of a search: every trial on validation items, and the front on held-out items."""

from collections.abc import Sequence

import plotly.graph_objects as go

from steer2edit.estimates import Condition
from steer2edit.evaluation import COST, attribute_of, metric_name
from steer2edit.report import themes
from steer2edit.report.run_results import RunResults
from steer2edit.report.tradeoff import (
    Plane,
    add_chosen,
    add_limit,
    add_steering_curve,
    by_strength,
    error_bars,
    right_edge,
    set_axis,
)

_COMPLETE = {
    True: ("edit, within the budget", themes.EDIT, "circle"),
    None: ("edit", themes.EDIT, "circle"),
    False: ("edit, beyond the budget", themes.BEYOND, "x-thin-open"),
}
_STAIRS = {"width": 2, "color": themes.EDIT, "shape": "hv"}
"""Right, then up: the region that a front dominates, as the hypervolume counts it."""


def validation_figure(run: RunResults, damage: str) -> go.Figure:
    """Attribute (y) against one damage metric (x) of the steering sweep and of every trial.

    Trials on all items are solid, stopped ones faint; the front is a line in the plane it was made in, and ringed in
    others.

    Args:
        run: the results of a search.
        damage: name of the metric on the x axis.
    """
    figure, plane = go.Figure(), Plane.of(run, damage)
    trials = plane.drawable(run.validation.of("edit"))
    _add_stopped(figure, plane, [trial for trial in trials if not trial.is_complete])
    _add_complete(figure, run, plane, [trial for trial in trials if trial.is_complete])
    add_steering_curve(figure, run, plane)
    _add_front(figure, plane, plane.drawable(run.front_trials))
    add_chosen(figure, run, plane, "recommended")
    _finish(figure, run, plane)
    edge = right_edge(run, plane)
    if edge is not None:
        figure.update_xaxes(range=[-0.03 * edge, edge])
    return figure


def held_out_figure(run: RunResults, damage: str) -> go.Figure:
    """Base, steering and the front on held-out items, with 95 % intervals on both axes.

    Args:
        run: the results of a search.
        damage: name of the metric on the x axis.
    """
    figure, plane = go.Figure(), Plane.of(run, damage)
    conditions = plane.drawable(run.held_out.conditions)
    swept = [c for c in conditions if not c.is_equal_drift]
    base = [c for c in swept if c.kind == "base"]
    steering = by_strength(c for c in swept if c.kind == "steering")
    edits = sorted((c for c in swept if c.kind == "edit"), key=plane.x)
    line = {"color": themes.STEERING, "width": 2}
    _add_measured(figure, plane, "steering, by strength", base + steering, "circle", themes.STEERING, line)
    # straight lines: what was a front on validation items need not be one here
    front_line = {"color": themes.EDIT, "width": 2} if damage == COST else None
    _add_measured(figure, plane, "front of edits", edits, "diamond", themes.EDIT, front_line)
    for kind, colour in (("steering", themes.STEERING), ("edit", themes.EDIT)):
        equal = [c for c in conditions if c.is_equal_drift and c.kind == kind]
        _add_measured(figure, plane, f"{kind}, at equal drift", equal, "star", colour, None)
    if run.edited is not None and plane.drawable([run.edited]):
        marker = {"color": themes.CHOSEN, "symbol": "circle-open", "size": 19, "line": {"width": 2}}
        figure.add_scatter(name="recommended", mode="markers", marker=marker, **plane.places([run.edited]))
    _finish(figure, run, plane)
    return figure


def _add_stopped(figure: go.Figure, plane: Plane, trials: list[Condition]) -> None:
    if trials:
        marker = {"color": themes.EDIT, "symbol": "circle", "size": 6, "opacity": 0.25}
        figure.add_scatter(name="edit, stopped early", mode="markers", marker=marker, **plane.places(trials))


def _add_complete(figure: go.Figure, run: RunResults, plane: Plane, trials: list[Condition]) -> None:
    for verdict, (name, colour, symbol) in _COMPLETE.items():
        group = [trial for trial in trials if run.chosen.within_limits(trial) is verdict]
        if group:
            marker = {"color": colour, "symbol": symbol, "size": 8, "line": {"width": 1.5, "color": colour}}
            figure.add_scatter(name=name, mode="markers", marker=marker, **plane.places(group))


def _add_front(figure: go.Figure, plane: Plane, front: list[Condition]) -> None:
    if not front:
        return
    if plane.damage == COST:
        points = {"x": [plane.x(c) for c in front], "y": [plane.y(c) for c in front]}
        figure.add_scatter(name="front", mode="lines", line=_STAIRS, hoverinfo="skip", **points)
    else:
        marker = {"color": themes.EDIT, "symbol": "circle-open", "size": 13, "line": {"width": 1.5}}
        figure.add_scatter(name=f"front by {COST.upper()}", mode="markers", marker=marker, **plane.places(front))


def _add_measured(
    figure: go.Figure,
    plane: Plane,
    name: str,
    conditions: Sequence[Condition],
    symbol: str,
    colour: str,
    line: dict[str, object] | None,
) -> None:
    if not conditions:
        return
    figure.add_scatter(
        name=name,
        mode="markers" if line is None else "lines+markers",
        line=line,
        marker={"color": colour, "symbol": symbol, "size": 10},
        error_x=error_bars(conditions, plane.damage, colour) | {"thickness": 1, "width": 2},
        error_y=error_bars(conditions, plane.attribute, colour) | {"thickness": 1, "width": 2},
        **plane.places(list(conditions)),
    )


def _finish(figure: go.Figure, run: RunResults, plane: Plane) -> None:
    """Axes, the budget, and the sizes that all of a search's trade-off plots share."""
    set_axis(figure.layout.xaxis, metric_name(plane.damage))
    set_axis(figure.layout.yaxis, metric_name(plane.attribute))
    arrow = "↑ more is better" if attribute_of(run.behaviour)[1] > 0 else "↓ less is better"
    figure.layout.yaxis.title.text += f"  {arrow}"
    figure.update_layout(
        height=480,
        margin={"l": 60, "r": 20, "t": 30, "b": 60},
        legend={"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"},
        hovermode="closest",
    )
    add_limit(figure, run, plane)
