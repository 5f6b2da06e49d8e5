"""Trade-off plots: what conditions achieve against what they damage, with their marks in a plane of both."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from steer2edit.estimates import Condition
from steer2edit.evaluation import COST, metric_name
from steer2edit.report import themes
from steer2edit.report.html import plot_text
from steer2edit.report.run_results import RunResults

_DAMAGE = ("nll_increase", "kl", "benign_refused")
_OUTLIER_FACTOR = 1.5
_BUDGETED: tuple[tuple[bool | None, str, str, str], ...] = (
    (True, "edit, within the budget", themes.EDIT, "circle"),
    (None, "edit", themes.EDIT, "circle"),
    (False, "edit, beyond the budget", themes.BEYOND, "x-thin-open"),
)
_STAIRS = {"width": 2, "color": themes.EDIT, "shape": "hv"}
"""Right, then up: the region that a front dominates."""
_HELD_OUT = {
    "base": ("base", themes.BASE, "square"),
    "steering": ("steered", themes.STEERING, "diamond"),
    "edit": ("edited", themes.EDIT, "diamond"),
}


@dataclass(frozen=True)
class Plane:
    """What is plotted against what."""

    damage: str  # name of the metric along x
    attribute: str  # name of the metric along y
    direction: int  # +1 if more of the attribute is wanted, −1 if less

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
        """Label, both metrics with intervals, and parameters that are on, as plotly pseudo-HTML."""
        metrics = map(metric_name, (self.attribute, self.damage))
        lines = [f"{metric.short}: {metric.in_words.sentence(condition.metrics[metric.name])}" for metric in metrics]
        for name, value in condition.parameters.items():
            if name == "share" and isinstance(value, int | float):
                lines.append(f"measured on {value:.0%} of the items")
            elif value is not None or name in ("rho_attn", "rho_mlp"):
                shown = "off" if value is None else f"{value:.4g}" if isinstance(value, float) else value
                lines.append(f"{name} = {shown}")
        return "<br>".join([f"<b>{plot_text(condition.label)}</b>", *map(plot_text, lines)])


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
        place: dict[str, Any] = {"x": list(map(plane.x, shown)), "y": list(map(plane.y, shown)), "hoverinfo": "skip"}
        if self.marker is not None:
            hover = {"hovertext": list(map(plane.hover_text, shown)), "hovertemplate": "%{hovertext}<extra></extra>"}
            place |= {"marker": self.marker, "hoverinfo": None, **hover}
        for axis, metric in (("error_x", plane.damage), ("error_y", plane.attribute)) if self.bars else ():
            found = [condition.metrics[metric] for condition in shown]
            place[axis] = themes.error_bars([(e.low, e.value, e.high) for e in found], (self.marker or {}).get("color"))
        name = plot_text(self.name)
        if self.band and self.line:
            ends = [(plane.x(c), c.metrics[plane.attribute].low, c.metrics[plane.attribute].high) for c in shown]
            known = [(x, low, high) for x, low, high in ends if low is not None and high is not None]
            red, green, blue = (int(self.line["color"][i : i + 2], 16) for i in (1, 3, 5))
            figure.add_scatter(
                x=[x for x, _, _ in known] + [x for x, _, _ in reversed(known)],
                y=[low for _, low, _ in known] + [high for _, _, high in reversed(known)],
                fill="toself", fillcolor=f"rgba({red}, {green}, {blue}, 0.15)", mode="lines", line={"width": 0},
                legendgroup=name, showlegend=False, hoverinfo="skip",
            )  # fmt: skip
        figure.add_scatter(name=name, mode="+".join(modes), line=self.line, legendgroup=name, **place)


def plane_figure(plane: Plane, marks: Sequence[Marks], limit: float | None = None) -> go.Figure:
    """The traces on axes with titles, and the limit of the damage as a vertical line."""
    figure, damage = go.Figure(), metric_name(plane.damage)
    for one in marks:
        one.draw(figure, plane)
    for axis, metric in ((figure.layout.xaxis, damage), (figure.layout.yaxis, metric_name(plane.attribute))):
        axis.title.text = plot_text(metric.axis)
        axis.tickformat = ".0%" if metric.scale == "share" else None
    figure.layout.yaxis.title.text += "<br>↑ more is better" if plane.direction > 0 else "<br>↓ less is better"
    figure.update_layout(
        height=480,
        margin={"l": 60, "r": 20, "t": 30, "b": 60},
        legend={"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"},
        hovermode="closest",
    )
    if limit is not None:
        text = f"limit {damage.bound(limit).removesuffix(' nats per token')}"
        figure.add_vline(x=limit, line={"dash": "dot", "width": 1.5}, annotation={"text": text, "yanchor": "bottom"})
    return figure


def tradeoff_figures(run: RunResults) -> dict[Plane, dict[str, go.Figure]]:
    """By plane, the figures in which some condition has a place: validation items, then held-out ones."""
    found = {}
    for damage in sorted(_DAMAGE, key=lambda name: name != COST) if run.is_search else _DAMAGE:
        plane = Plane(damage, run.attribute, run.direction)
        figures = {}
        if plane.drawable(run.validation.conditions):
            figures[f"tradeoff-{damage}"] = validation_figure(run, plane)
        if plane.drawable(run.held_out.conditions):
            figures[f"held-out-{damage}"] = held_out_figure(run, plane)
        if figures:
            found[plane] = figures
    return found


def validation_figure(run: RunResults, plane: Plane) -> go.Figure:
    """The steering sweep and every trial of a search: trials on all items are solid, stopped ones faint.

    The front is a line in the plane it was made in, and ringed in others.
    """
    edits, base = run.validation.of("edit"), run.validation.of("base")
    stopped = [edit for edit in edits if not edit.is_complete]
    faint = {"color": themes.EDIT, "symbol": "circle", "size": 6, "opacity": 0.25}
    marks = [Marks("edit, stopped early", stopped, faint)]
    for verdict, name, colour, symbol in _BUDGETED if run.chosen.limits else _BUDGETED[1:2]:
        marker = {"color": colour, "symbol": symbol, "size": 8, "line": {"width": 1.5, "color": colour}}
        own = [edit for edit in edits if edit.is_complete and run.chosen.within_limits(edit) is verdict]
        marks.append(Marks(name, own, marker))
    steering = _by_strength(plane.drawable(run.validation.of("steering")))
    curve, line = plane.drawable(base)[:1] + steering, {"color": themes.STEERING, "width": 2}
    marks.append(Marks("steering, by strength" if steering else "base", curve, {"size": 9, "opacity": 1}, line))
    if plane.damage == COST:
        marks.append(Marks("front", run.front_trials, None, _STAIRS))
    else:
        marks.append(_ring(f"front by {COST.upper()}", run.front_trials, 13, themes.EDIT, 1.5))
    marks.append(_ring("recommended", [c for c in run.validation.conditions if run.chosen.is_choice(c)], 17))
    figure = plane_figure(plane, marks, run.chosen.limits.get(plane.damage))
    if beyond := beyond_edge(run, plane):
        left = min(0.0, *map(plane.x, plane.drawable(run.validation.conditions)))
        figure.update_xaxes(range=[left - 0.03 * beyond[0], beyond[0]])
    return figure


def held_out_figure(run: RunResults, plane: Plane) -> go.Figure:
    """Conditions on held-out items, with 95 % intervals on both axes; of a search, steering and the front as lines."""
    if run.is_search:
        marks = _front_and_steering(run, plane, plane.drawable(run.held_out.conditions))
    else:
        marks = []
        for condition in run.held_out.conditions:
            name, colour, symbol = _HELD_OUT[condition.kind]
            name = condition.label if len(run.held_out.of(condition.kind)) > 1 else name
            symbol = "triangle-up" if condition.kind == "edit" and condition is not run.edited else symbol
            marker = {"color": colour, "symbol": symbol, "size": 13, "line": {"width": 1, "color": "#ffffff"}}
            marks.append(Marks(f"{name}, held-out", [condition], marker, bars=True))
    return plane_figure(plane, marks, run.chosen.limits.get(plane.damage))


def _front_and_steering(run: RunResults, plane: Plane, conditions: Sequence[Condition]) -> list[Marks]:
    def measured(name: str, own: Sequence[Condition], symbol: str, colour: str, joined: bool = False) -> Marks:
        line = {"color": colour, "width": 2} if joined else None
        return Marks(name, own, {"color": colour, "symbol": symbol, "size": 10}, line, bars=True)

    steering = [c for c in conditions if c.kind == "base"] + _by_strength(c for c in conditions if c.kind == "steering")
    edits = sorted((c for c in conditions if c.kind == "edit"), key=plane.x)
    return [
        measured("steering, by strength", steering, "circle", themes.STEERING, joined=True),
        # straight lines: what was a front on validation items need not be one here
        measured("front of edits", edits, "diamond", themes.EDIT, joined=plane.damage == COST),
        _ring("recommended", [run.edited] if run.edited else [], 19),
    ]


def _ring(
    name: str, conditions: Sequence[Condition], size: int, colour: str = themes.CHOSEN, width: float = 2
) -> Marks:
    return Marks(name, conditions, {"color": colour, "symbol": "circle-open", "size": size, "line": {"width": width}})


def _by_strength(steering: Iterable[Condition]) -> list[Condition]:
    return sorted(steering, key=lambda condition: float(condition.parameters.get("strength") or 0))


def beyond_edge(run: RunResults, plane: Plane) -> tuple[float, int] | None:
    """Where the x axis ends at first, and how many lie beyond: one destroyed model must not hide the rest.

    It reaches to the worst of steering, the chosen edit, held-out intervals and twice the limit; `None` if none is far.
    """
    validation, held_out = plane.drawable(run.validation.conditions), plane.drawable(run.held_out.conditions)
    landmarks = [c for c in validation if c.kind != "edit" or run.chosen.is_choice(c)] + held_out
    if not landmarks:
        return None
    uppers = (condition.metrics[plane.damage].high or 0.0 for condition in held_out)
    edge = 1.05 * max(2 * run.chosen.limits.get(plane.damage, 0.0), *map(plane.x, landmarks), *uppers)
    costs = list(map(plane.x, validation))
    return (edge, sum(x > edge for x in costs)) if 0 < _OUTLIER_FACTOR * edge < max(costs, default=0.0) else None
