"""Trade-off plots: what an intervention achieves against what it damages, of a run, of a search and of methods."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from steer2edit.estimates import Condition
from steer2edit.evaluation import COST, Metric, metric_name
from steer2edit.report import themes
from steer2edit.report.run_results import RunResults
from steer2edit.report.text import plot_text

DAMAGE = ("nll_increase", "kl", "benign_refused")
_OUTLIER_FACTOR = 1.5


@dataclass(frozen=True)
class Plane:
    """What is plotted against what."""

    damage: str  # name of the metric along x
    attribute: str  # name of the metric along y
    direction: int  # +1 if more of the attribute is wanted, −1 if less

    @property
    def better(self) -> str:
        """Where better conditions lie, as a sentence begins."""
        return f"{'Up' if self.direction > 0 else 'Down'} and to the left is better"

    def drawable(self, conditions: Iterable[Condition]) -> list[Condition]:
        """Those of the conditions that have a value on both axes."""
        return [condition for condition in conditions if condition.scored(self.damage, self.attribute)]

    def x(self, condition: Condition) -> float:
        """The damage of a drawable condition."""
        return condition.value(self.damage) or 0.0

    def y(self, condition: Condition) -> float:
        """The attribute of a drawable condition."""
        return condition.value(self.attribute) or 0.0

    def hover_text(self, condition: Condition) -> str:
        """Label, both metrics with intervals, and parameters, as plotly pseudo-HTML."""
        lines = [f"<b>{plot_text(condition.label)}</b>"]
        for metric in map(metric_name, (self.attribute, self.damage)):
            lines.append(plot_text(f"{metric.short}: {metric.in_words.sentence(condition.metrics[metric.name])}"))
        return "<br>".join(lines + [plot_text(line) for line in _parameter_lines(condition)])

    def in_words(self, conditions: Iterable[Condition]) -> str:
        """The drawable conditions with both values, for a text alternative."""
        x, y = metric_name(self.damage), metric_name(self.attribute)
        return "; ".join(
            f"{c.label}: {y.in_cells.value(self.y(c))} at {x.short} {x.in_cells.value(self.x(c))}"
            for c in self.drawable(conditions)
        )


def _parameter_lines(condition: Condition) -> list[str]:
    """The settings of a condition, a line each; what is beyond the paper and off is left out."""
    lines = []
    for name, value in condition.parameters.items():
        if name == "share" and isinstance(value, int | float):
            lines.append(f"measured on {value:.0%} of the items")
        elif value is None and name in ("rho_attn", "rho_mlp"):
            lines.append(f"{name} = off")
        elif value is not None:
            lines.append(f"{name} = {f'{value:.4g}' if isinstance(value, float) else value}")
    return lines


@dataclass(frozen=True)
class Marks:
    """One trace of a trade-off plot."""

    name: str  # in the legend
    conditions: Sequence[Condition]  # what it draws; those that are not scored on both axes are left out
    marker: Mapping[str, Any] | None  # plotly's properties of the marks; none are drawn without
    line: Mapping[str, Any] | None = None  # of the line through them, if there is one
    bars: bool = False  # whether both intervals are drawn
    band: bool = False  # whether the attribute's intervals are drawn as one area

    def draw(self, figure: go.Figure, plane: Plane) -> None:
        """Add the trace; nothing without a condition that has a place."""
        shown = plane.drawable(self.conditions)
        if not shown:
            return
        modes = (["lines"] if self.line else []) + (["markers"] if self.marker else [])
        place: dict[str, Any] = {"x": list(map(plane.x, shown)), "y": list(map(plane.y, shown))}
        if self.marker is None:
            place["hoverinfo"] = "skip"
        else:
            place |= {
                "marker": self.marker,
                "hovertext": list(map(plane.hover_text, shown)),
                "hovertemplate": "%{hovertext}<extra></extra>",
            }
        for axis, metric in (("error_x", plane.damage), ("error_y", plane.attribute)) if self.bars else ():
            found = [condition.metrics[metric] for condition in shown]
            place[axis] = themes.error_bars([(e.low, e.value, e.high) for e in found], (self.marker or {}).get("color"))
        name = plot_text(self.name)
        if self.band:
            _add_band(figure, plane, shown, name, str((self.line or {})["color"]))
        figure.add_scatter(name=name, mode="+".join(modes), line=self.line, legendgroup=name, **place)


def _add_band(figure: go.Figure, plane: Plane, conditions: Sequence[Condition], name: str, colour: str) -> None:
    ends = [(plane.x(c), c.metrics[plane.attribute].low, c.metrics[plane.attribute].high) for c in conditions]
    known = [(x, low, high) for x, low, high in ends if low is not None and high is not None]
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    figure.add_scatter(
        x=[x for x, _, _ in known] + [x for x, _, _ in reversed(known)],
        y=[low for _, low, _ in known] + [high for _, _, high in reversed(known)],
        fill="toself", fillcolor=f"rgba({red}, {green}, {blue}, 0.15)", mode="lines", line={"width": 0},
        legendgroup=name, showlegend=False, hoverinfo="skip",
    )  # fmt: skip


def plane_figure(plane: Plane, marks: Sequence[Marks], limit: float | None = None) -> go.Figure:
    """The traces on axes with titles, and the limit of the damage as a vertical line."""
    figure = go.Figure()
    for one in marks:
        one.draw(figure, plane)
    set_axis(figure.layout.xaxis, metric_name(plane.damage))
    set_axis(figure.layout.yaxis, metric_name(plane.attribute))
    figure.layout.yaxis.title.text += "  ↑ more is better" if plane.direction > 0 else "  ↓ less is better"
    figure.update_layout(
        height=480,
        margin={"l": 60, "r": 20, "t": 30, "b": 60},
        legend={"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"},
        hovermode="closest",
    )
    if limit is not None:
        text = f"limit {metric_name(plane.damage).bound(limit).removesuffix(' nats per token')}"
        figure.add_vline(x=limit, line={"dash": "dot", "width": 1.5}, annotation={"text": text, "yanchor": "bottom"})
    return figure


def set_axis(axis: go.layout.XAxis | go.layout.YAxis, metric: Metric) -> None:
    """Title and number format of an axis."""
    axis.title.text = plot_text(metric.axis)
    if metric.scale == "share":
        axis.tickformat = ".0%"


_LIMITED: tuple[tuple[bool | None, str, str, str], ...] = (
    (False, "edit, beyond a limit", themes.BEYOND, "x-thin-open"),
    (None, "edit, not scored against a limit", themes.BASE, "circle-open"),
    (True, "edit, within limits", themes.EDIT, "circle"),
)
_UNLIMITED = ((None, "edit", themes.EDIT, "circle"),)
_HELD_OUT = {
    "base": ("base, held-out", themes.BASE, "square"),
    "steering": ("steered, held-out", themes.STEERING, "diamond"),
    "edit": ("edited, held-out", themes.EDIT, "diamond"),
}


def run_figure(run: RunResults, damage: str) -> go.Figure:
    """Attribute (y) against one damage metric (x), for every validation and held-out condition scored in both."""
    plane = Plane(damage, *run.goal)
    marks = [_steering_curve(run, plane), *_edits(run, _LIMITED), _ring("chosen on validation", _chosen(run), 17)]
    for condition in run.held_out.conditions:
        name, colour, symbol = _HELD_OUT[condition.kind]
        several = len(run.held_out.of(condition.kind)) > 1
        marker = {"color": colour, "symbol": symbol, "size": 13, "line": {"width": 1, "color": "#ffffff"}}
        marks.append(Marks(f"{condition.label}, held-out" if several else name, [condition], marker, bars=True))
    return _cut(plane_figure(plane, marks, run.chosen.limits.get(damage)), run, plane)


_BUDGETED: tuple[tuple[bool | None, str, str, str], ...] = (
    (True, "edit, within the budget", themes.EDIT, "circle"),
    (None, "edit", themes.EDIT, "circle"),
    (False, "edit, beyond the budget", themes.BEYOND, "x-thin-open"),
)
_STAIRS = {"width": 2, "color": themes.EDIT, "shape": "hv"}
"""Right, then up: the region that a front dominates, as the hypervolume counts it."""


def validation_figure(run: RunResults, damage: str) -> go.Figure:
    """The steering sweep and every trial of a search: trials on all items are solid, stopped ones faint.

    The front is a line in the plane it was made in, and ringed in others.
    """
    plane = Plane(damage, *run.goal)
    stopped = [trial for trial in run.validation.of("edit") if not trial.is_complete]
    if damage == COST:
        front = Marks("front", run.front_trials, None, _STAIRS)
    else:
        front = _ring(f"front by {COST.upper()}", run.front_trials, 13, themes.EDIT, 1.5)
    marks = [
        Marks("edit, stopped early", stopped, {"color": themes.EDIT, "symbol": "circle", "size": 6, "opacity": 0.25}),
        *_edits(run, _BUDGETED),
        _steering_curve(run, plane),
        front,
        _ring("recommended", _chosen(run), 17),
    ]
    return _cut(plane_figure(plane, marks, run.chosen.limits.get(damage)), run, plane)


def held_out_figure(run: RunResults, damage: str) -> go.Figure:
    """Base, steering and the front of a search on held-out items, with 95 % intervals on both axes."""
    plane = Plane(damage, *run.goal)
    conditions = plane.drawable(run.held_out.conditions)
    swept = [c for c in conditions if not c.is_equal_drift]
    steering = [c for c in swept if c.kind == "base"] + _by_strength(c for c in swept if c.kind == "steering")
    edits = sorted((c for c in swept if c.kind == "edit"), key=plane.x)

    def measured(name: str, own: Sequence[Condition], symbol: str, colour: str, joined: bool) -> Marks:
        line = {"color": colour, "width": 2} if joined else None
        return Marks(name, own, {"color": colour, "symbol": symbol, "size": 10}, line, bars=True)

    marks = [
        measured("steering, by strength", steering, "circle", themes.STEERING, True),
        # straight lines: what was a front on validation items need not be one here
        measured("front of edits", edits, "diamond", themes.EDIT, damage == COST),
    ]
    for kind, colour in (("steering", themes.STEERING), ("edit", themes.EDIT)):
        equal = [c for c in conditions if c.is_equal_drift and c.kind == kind]
        marks.append(measured(f"{kind}, at equal drift", equal, "star", colour, False))
    marks.append(_ring("recommended", [run.edited] if run.edited else [], 19))
    return plane_figure(plane, marks, run.chosen.limits.get(damage))


def _steering_curve(run: RunResults, plane: Plane) -> Marks:
    """Activation steering on validation items, from the base through growing strengths."""
    steering = _by_strength(plane.drawable(run.validation.of("steering")))
    curve = plane.drawable(run.validation.of("base"))[:1] + steering
    line = {"color": themes.STEERING, "width": 2}
    return Marks("steering, by strength" if steering else "base", curve, {"size": 9, "opacity": 1}, line)


def _edits(run: RunResults, verdicts: Sequence[tuple[bool | None, str, str, str]]) -> list[Marks]:
    """The edits of validation that were measured in full, by what the limits say of them."""
    edits = [edit for edit in run.validation.of("edit") if edit.is_complete]
    marks = []
    for verdict, name, colour, symbol in verdicts if run.chosen.limits else _UNLIMITED:
        marker = {"color": colour, "symbol": symbol, "size": 8, "line": {"width": 1.5, "color": colour}}
        marks.append(Marks(name, [edit for edit in edits if run.chosen.within_limits(edit) is verdict], marker))
    return marks


def _chosen(run: RunResults) -> list[Condition]:
    return [condition for condition in run.validation.conditions if run.chosen.is_choice(condition)]


def _ring(
    name: str, conditions: Sequence[Condition], size: int, colour: str = themes.CHOSEN, width: float = 2
) -> Marks:
    return Marks(name, conditions, {"color": colour, "symbol": "circle-open", "size": size, "line": {"width": width}})


def _by_strength(steering: Iterable[Condition]) -> list[Condition]:
    return sorted(steering, key=lambda condition: float(condition.parameters.get("strength") or 0))


def right_edge(run: RunResults, plane: Plane) -> float | None:
    """Where the x axis ends at first, if some configurations lie so far off that they would squeeze all others.

    One destroyed model must not hide the trade-off. The axis reaches to the worst of the landmarks (steering, the
    chosen edit, held-out intervals, twice the limit).
    """
    validation, held_out = plane.drawable(run.validation.conditions), plane.drawable(run.held_out.conditions)
    landmarks = [c for c in validation if c.kind != "edit" or run.chosen.is_choice(c)] + held_out
    if not landmarks:
        return None
    right = 1.05 * max(
        2 * run.chosen.limits.get(plane.damage, 0.0),
        *map(plane.x, landmarks),
        *(condition.metrics[plane.damage].high or 0.0 for condition in held_out),
    )
    worst = max(map(plane.x, validation), default=0.0)
    return right if 0 < _OUTLIER_FACTOR * right < worst else None


def beyond_edge(run: RunResults, plane: Plane) -> str:
    """A sentence on what lies beyond the right edge, if there is one."""
    edge = right_edge(run, plane)
    if edge is None:
        return ""
    count = sum(plane.x(condition) > edge for condition in plane.drawable(run.validation.conditions))
    bound = metric_name(plane.damage).bound(edge)
    return f" Beyond {bound} lie {count} more: double-click the plot to see all."


def _cut(figure: go.Figure, run: RunResults, plane: Plane) -> go.Figure:
    edge = right_edge(run, plane)
    if edge is not None:
        left = min(0.0, *map(plane.x, plane.drawable(run.validation.conditions)))
        figure.update_xaxes(range=[left - 0.03 * edge, edge])
    return figure
