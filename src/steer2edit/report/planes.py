"""What is plotted against what: the marks of conditions in a plane of an attribute and a damage."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from steer2edit.estimates import Condition
from steer2edit.evaluation import metric_name
from steer2edit.report import themes
from steer2edit.report.html import plot_text


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
    figure.layout.yaxis.title.text += "  ↑ more is better" if plane.direction > 0 else "  ↓ less is better"
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
