"""The trade-off plot: what an intervention achieves against what it damages."""

from collections.abc import Iterable

import plotly.graph_objects as go

from steer2edit.report import themes
from steer2edit.report.metrics import TARGET, Metric
from steer2edit.report.run_results import ConditionResult, RunResults
from steer2edit.report.text import plot_text

_VERDICTS: tuple[tuple[bool | None, str, str, str], ...] = (
    (False, "edit, beyond a limit", themes.BEYOND, "x-thin-open"),
    (None, "edit, limits unknown", themes.BASE, "circle-open"),
    (True, "edit, within limits", themes.EDIT, "circle"),
)
_HELD_OUT = {
    "base": ("base, held-out", themes.BASE, "square"),
    "steering": ("steered, held-out", themes.STEERING, "diamond"),
    "edit": ("edited, held-out", themes.EDIT, "diamond"),
}
_OUTLIER_FACTOR = 1.5


def tradeoff_figure(run: RunResults, damage: str) -> go.Figure:
    """Attribute (y) against one damage metric (x), for every validation and held-out condition scored in both.

    Args:
        run: the results.
        damage: name of the metric on the x axis.
    """
    figure = go.Figure()
    _add_steering_curve(figure, run, damage)
    _add_edits(figure, run, damage)
    _add_chosen(figure, run, damage)
    _add_held_out(figure, run, damage)
    x, y = Metric.named(damage), Metric.named(TARGET)
    _set_axis(figure.layout.xaxis, x)
    _set_axis(figure.layout.yaxis, y)
    figure.update_yaxes(range=[-0.03, 1.03])
    figure.update_layout(
        height=480,
        margin={"l": 60, "r": 20, "t": 20, "b": 60},
        legend={"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"},
        hovermode="closest",
    )
    _add_limit(figure, run, damage)
    _focus(figure, run, damage)
    return figure


def drawable(conditions: Iterable[ConditionResult], damage: str) -> list[ConditionResult]:
    """The conditions that have a value on both axes."""
    return [condition for condition in conditions if condition.scored(damage, TARGET)]


def undrawn(run: RunResults, damage: str) -> int:
    """How many conditions have no place in the plot, because a metric is not scored."""
    conditions = [*run.validation.conditions, *run.held_out.conditions]
    return len(conditions) - len(drawable(conditions, damage))


def hover_text(condition: ConditionResult, damage: str) -> str:
    """Label, both metrics with intervals, and parameters, as plotly pseudo-HTML."""
    lines = [f"<b>{plot_text(condition.label)}</b>"]
    for name in (TARGET, damage):
        metric = Metric.named(name)
        lines.append(plot_text(f"{metric.short}: {metric.sentence(condition.metrics[name])}"))
    lines += [plot_text(f"{key} = {'off' if v is None else v}") for key, v in condition.parameters.items()]
    return "<br>".join(lines)


def _value(condition: ConditionResult, name: str) -> float:
    value = condition.metrics[name].value
    assert value is not None  # only drawable conditions get here
    return value


def _places(conditions: list[ConditionResult], damage: str) -> dict[str, object]:
    return {
        "x": [_value(condition, damage) for condition in conditions],
        "y": [_value(condition, TARGET) for condition in conditions],
        "hovertext": [hover_text(condition, damage) for condition in conditions],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


def _add_steering_curve(figure: go.Figure, run: RunResults, damage: str) -> None:
    steering = drawable(run.validation.of("steering"), damage)
    steering.sort(key=lambda condition: float(condition.parameters.get("strength") or 0))
    curve = drawable(run.validation.of("base"), damage)[:1] + steering
    if not curve:
        return
    name = "steering, by strength" if steering else "base"
    sizes = [9 if condition.kind == "steering" else 11 for condition in curve]
    colours = [themes.STEERING if condition.kind == "steering" else themes.BASE for condition in curve]
    marker = {"size": sizes, "color": colours, "opacity": 1}
    line = {"color": themes.STEERING, "width": 2}
    figure.add_scatter(name=name, mode="lines+markers", line=line, marker=marker, **_places(curve, damage))


def _add_edits(figure: go.Figure, run: RunResults, damage: str) -> None:
    edits = drawable(run.validation.of("edit"), damage)
    for verdict, name, colour, symbol in _VERDICTS:
        group = [condition for condition in edits if run.chosen.within_limits(condition) is verdict]
        if not group:
            continue
        shown = name if run.chosen.limits else "edit"
        marker = {"color": colour, "symbol": symbol, "size": 8, "opacity": 0.75, "line": {"width": 1.5}}
        figure.add_scatter(name=shown, mode="markers", marker=marker, **_places(group, damage))


def _add_chosen(figure: go.Figure, run: RunResults, damage: str) -> None:
    chosen = [c for c in drawable(run.validation.conditions, damage) if run.chosen.is_choice(c)]
    if chosen:
        marker = {"color": themes.CHOSEN, "symbol": "circle-open", "size": 17, "line": {"width": 2}}
        figure.add_scatter(name="chosen on validation", mode="markers", marker=marker, **_places(chosen, damage))


def _add_held_out(figure: go.Figure, run: RunResults, damage: str) -> None:
    for condition in drawable(run.held_out.conditions, damage):
        name, colour, symbol = _HELD_OUT[condition.kind]
        if len(run.held_out.of(condition.kind)) > 1:
            name = f"{plot_text(condition.label)}, held-out"
        figure.add_scatter(
            name=name,
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 13, "line": {"width": 1, "color": "#ffffff"}},
            error_x=_error_bar(condition, damage, colour),
            error_y=_error_bar(condition, TARGET, colour),
            **_places([condition], damage),
        )


def _error_bar(condition: ConditionResult, name: str, colour: str) -> dict[str, object]:
    estimate = condition.metrics[name]
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return {"visible": False}
    return {
        "array": [estimate.high - estimate.value],
        "arrayminus": [estimate.value - estimate.low],
        "color": colour,
        "thickness": 1.5,
        "width": 4,
    }


def _set_axis(axis: go.layout.XAxis | go.layout.YAxis, metric: Metric) -> None:
    axis.title.text = metric.short + (metric.unit.replace(" nats", " (nats") + ")" if "nats" in metric.unit else "")
    if metric.scale == "share":
        axis.tickformat = ".0%"


def _add_limit(figure: go.Figure, run: RunResults, damage: str) -> None:
    limit = run.chosen.limits.get(damage)
    if limit is not None:
        text = f"limit {Metric.named(damage).number(limit).lstrip('+')}"
        figure.add_vline(x=limit, line={"dash": "dot", "width": 1.5}, annotation={"text": text, "yanchor": "bottom"})


def _focus(figure: go.Figure, run: RunResults, damage: str) -> None:
    """Start zoomed on what matters: one destroyed model must not squeeze all others into a corner."""
    validation = drawable(run.validation.conditions, damage)
    held_out = drawable(run.held_out.conditions, damage)
    landmarks = [c for c in validation if c.kind != "edit" or run.chosen.is_choice(c)] + held_out
    if not landmarks:
        return
    right = 1.05 * max(
        2 * run.chosen.limits.get(damage, 0.0),
        *(_value(condition, damage) for condition in landmarks),
        *(condition.metrics[damage].high or 0.0 for condition in held_out),
    )
    values = [_value(condition, damage) for condition in validation]
    if right <= 0 or max(values, default=0.0) <= _OUTLIER_FACTOR * right:
        return
    figure.update_xaxes(range=[min(0.0, *values) - 0.03 * right, right])
    beyond = sum(value > right for value in values)
    text = f"{beyond} more beyond {Metric.named(damage).number(right).lstrip('+')} (double-click to see all) →"
    figure.add_annotation(
        text=text, xref="paper", yref="paper", x=1, y=1, xanchor="right", yanchor="bottom", showarrow=False
    )
