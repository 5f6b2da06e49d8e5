"""The trade-off plot: what an intervention achieves against what it damages."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from steer2edit.estimates import Condition
from steer2edit.evaluation import Metric, metric_name
from steer2edit.report import themes
from steer2edit.report.run_results import RunResults
from steer2edit.report.text import plot_text

_VERDICTS: tuple[tuple[bool | None, str, str, str], ...] = (
    (False, "edit, beyond a limit", themes.BEYOND, "x-thin-open"),
    (None, "edit, not scored against a limit", themes.BASE, "circle-open"),
    (True, "edit, within limits", themes.EDIT, "circle"),
)
_NO_LIMITS = ((None, "edit", themes.EDIT, "circle"),)
_HELD_OUT = {
    "base": ("base, held-out", themes.BASE, "square"),
    "steering": ("steered, held-out", themes.STEERING, "diamond"),
    "edit": ("edited, held-out", themes.EDIT, "diamond"),
}
_OUTLIER_FACTOR = 1.5
DAMAGE = ("nll_increase", "kl", "benign_refused")


@dataclass(frozen=True)
class Plane:
    """What is plotted against what: the name of a damage metric (x) and of the attribute's metric (y)."""

    damage: str
    attribute: str

    @classmethod
    def of(cls, run: RunResults, damage: str) -> "Plane":
        """The run's attribute against one damage metric."""
        return cls(damage, run.attribute)

    def drawable(self, conditions: Iterable[Condition]) -> list[Condition]:
        """Those of the conditions that have a value on both axes."""
        return [condition for condition in conditions if condition.scored(self.damage, self.attribute)]

    def undrawn(self, run: RunResults) -> int:
        """How many conditions have no place in the plot, because a metric is not scored."""
        conditions = [*run.validation.conditions, *run.held_out.conditions]
        return len(conditions) - len(self.drawable(conditions))

    def x(self, condition: Condition) -> float:
        """The damage of a drawable condition."""
        return _value(condition, self.damage)

    def y(self, condition: Condition) -> float:
        """The attribute of a drawable condition."""
        return _value(condition, self.attribute)

    def hover_text(self, condition: Condition) -> str:
        """Label, both metrics with intervals, and parameters, as plotly pseudo-HTML."""
        lines = [f"<b>{plot_text(condition.label)}</b>"]
        for metric in map(metric_name, (self.attribute, self.damage)):
            lines.append(plot_text(f"{metric.short}: {metric.in_words.sentence(condition.metrics[metric.name])}"))
        return "<br>".join(lines + [plot_text(line) for line in parameter_lines(condition)])

    def places(self, conditions: list[Condition]) -> dict[str, object]:
        """Trace properties: where the conditions are, and what is shown over them."""
        return {
            "x": [self.x(condition) for condition in conditions],
            "y": [self.y(condition) for condition in conditions],
            "hovertext": [self.hover_text(condition) for condition in conditions],
            "hovertemplate": "%{hovertext}<extra></extra>",
        }


def parameter_lines(condition: Condition) -> list[str]:
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


def tradeoff_figure(run: RunResults, damage: str) -> go.Figure:
    """Attribute (y) against one damage metric (x), for every validation and held-out condition scored in both.

    Args:
        run: the results.
        damage: name of the metric on the x axis.
    """
    figure, plane = go.Figure(), Plane.of(run, damage)
    add_steering_curve(figure, run, plane)
    _add_edits(figure, run, plane)
    add_chosen(figure, run, plane)
    _add_held_out(figure, run, plane)
    set_axis(figure.layout.xaxis, metric_name(plane.damage))
    set_axis(figure.layout.yaxis, metric_name(plane.attribute))
    if metric_name(plane.attribute).scale == "share":
        figure.update_yaxes(range=[-0.03, 1.03])
    figure.update_layout(
        height=480,
        margin={"l": 60, "r": 20, "t": 20, "b": 60},
        legend={"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"},
        hovermode="closest",
    )
    add_limit(figure, run, plane)
    edge = right_edge(run, plane)
    if edge is not None:
        left = min(0.0, *map(plane.x, plane.drawable(run.validation.conditions)))
        figure.update_xaxes(range=[left - 0.03 * edge, edge])
    return figure


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


def beyond(run: RunResults, plane: Plane, edge: float) -> int:
    """How many validation conditions lie to the right of an edge."""
    return sum(plane.x(condition) > edge for condition in plane.drawable(run.validation.conditions))


def _value(condition: Condition, name: str) -> float:
    value = condition.metrics[name].value
    assert value is not None  # only drawable conditions get here
    return value


def add_steering_curve(figure: go.Figure, run: RunResults, plane: Plane) -> None:
    """Activation steering on validation items, from the base through growing strengths."""
    steering = by_strength(plane.drawable(run.validation.of("steering")))
    curve = plane.drawable(run.validation.of("base"))[:1] + steering
    if not curve:
        return
    name = "steering, by strength" if steering else "base"
    line, marker = {"color": themes.STEERING, "width": 2}, {"size": 9, "opacity": 1}
    figure.add_scatter(name=name, mode="lines+markers", line=line, marker=marker, **plane.places(curve))


def _add_edits(figure: go.Figure, run: RunResults, plane: Plane) -> None:
    edits = plane.drawable(run.validation.of("edit"))
    for verdict, name, colour, symbol in _VERDICTS if run.chosen.limits else _NO_LIMITS:
        group = [condition for condition in edits if run.chosen.within_limits(condition) is verdict]
        if not group:
            continue
        marker = {"color": colour, "symbol": symbol, "size": 8, "opacity": 0.9, "line": {"width": 1.5, "color": colour}}
        figure.add_scatter(name=name, mode="markers", marker=marker, **plane.places(group))


def add_chosen(figure: go.Figure, run: RunResults, plane: Plane, name: str = "chosen on validation") -> None:
    """Ring what was chosen."""
    chosen = [c for c in plane.drawable(run.validation.conditions) if run.chosen.is_choice(c)]
    if chosen:
        marker = {"color": themes.CHOSEN, "symbol": "circle-open", "size": 17, "line": {"width": 2}}
        figure.add_scatter(name=name, mode="markers", marker=marker, **plane.places(chosen))


def _add_held_out(figure: go.Figure, run: RunResults, plane: Plane) -> None:
    for condition in plane.drawable(run.held_out.conditions):
        name, colour, symbol = _HELD_OUT[condition.kind]
        if len(run.held_out.of(condition.kind)) > 1:
            name = f"{plot_text(condition.label)}, held-out"
        figure.add_scatter(
            name=name,
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 13, "line": {"width": 1, "color": "#ffffff"}},
            error_x=error_bars([condition], plane.damage, colour),
            error_y=error_bars([condition], plane.attribute, colour),
            **plane.places([condition]),
        )


def by_strength(steering: Iterable[Condition]) -> list[Condition]:
    """Steering conditions by growing strength."""
    return sorted(steering, key=lambda condition: float(condition.parameters.get("strength") or 0))


def error_bars(conditions: Sequence[Condition], name: str, colour: str) -> dict[str, object]:
    """Intervals of one metric of drawable conditions; none where an estimate has none."""
    above, below = [], []
    for condition in conditions:
        estimate = condition.metrics[name]
        known = estimate.value is not None and estimate.low is not None and estimate.high is not None
        above.append(estimate.high - estimate.value if known else None)  # type: ignore[operator]
        below.append(estimate.value - estimate.low if known else None)  # type: ignore[operator]
    if not any(value is not None for value in above):
        return {"visible": False}
    return {"array": above, "arrayminus": below, "color": colour, "thickness": 1.5, "width": 4}


def set_axis(axis: go.layout.XAxis | go.layout.YAxis, metric: Metric) -> None:
    """Title and number format of an axis."""
    axis.title.text = plot_text(metric.axis)
    if metric.scale == "share":
        axis.tickformat = ".0%"


def add_limit(figure: go.Figure, run: RunResults, plane: Plane) -> None:
    """The budget of the damage as a vertical line."""
    limit = run.chosen.limits.get(plane.damage)
    if limit is not None:
        text = f"limit {metric_name(plane.damage).bound(limit).removesuffix(' nats per token')}"
        figure.add_vline(x=limit, line={"dash": "dot", "width": 1.5}, annotation={"text": text, "yanchor": "bottom"})
