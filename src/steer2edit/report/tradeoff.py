"""Trade-off plots of a run: what its conditions achieve against what they damage, and against what was searched."""

from collections.abc import Iterable, Sequence
from textwrap import wrap

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steer2edit.estimates import Condition
from steer2edit.evaluation import COST, metric_name
from steer2edit.report import themes
from steer2edit.report.html import plot_text
from steer2edit.report.planes import Marks, Plane, plane_figure, set_axis
from steer2edit.report.run_results import RunResults

_DAMAGE = ("nll_increase", "kl", "benign_refused")
_OUTLIER_FACTOR = 1.5
_TICKS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]
_TITLE_WIDTH = 20  # characters that fit beside one row
_WIDE = 8  # a ratio of largest to smallest value from which a logarithmic axis reads better
SYMBOLS = {"rho_attn": "ρ_attn", "rho_mlp": "ρ_mlp", "alpha": "α", "alpha_mlp": "α_mlp"}


def tradeoff_figures(run: RunResults) -> dict[Plane, dict[str, go.Figure]]:
    """By plane, the figures in which some condition has a place: validation items, then held-out ones."""
    found = {}
    for damage in sorted(_DAMAGE, key=lambda name: name != COST) if run.is_search else _DAMAGE:
        plane = Plane(damage, *run.goal)
        figures = {}
        if plane.drawable(run.validation.conditions):
            figures[f"tradeoff-{damage}"] = validation_figure(run, plane)
        if plane.drawable(run.held_out.conditions):
            figures[f"held-out-{damage}"] = held_out_figure(run, plane)
        if figures:
            found[plane] = figures
    return found


_BUDGETED: tuple[tuple[bool | None, str, str, str], ...] = (
    (True, "edit, within the budget", themes.EDIT, "circle"),
    (None, "edit", themes.EDIT, "circle"),
    (False, "edit, beyond the budget", themes.BEYOND, "x-thin-open"),
)
_UNLIMITED = ((None, "edit", themes.EDIT, "circle"),)
_STAIRS = {"width": 2, "color": themes.EDIT, "shape": "hv"}
"""Right, then up: the region that a front dominates."""


def validation_figure(run: RunResults, plane: Plane) -> go.Figure:
    """The steering sweep and every trial of a search: trials on all items are solid, stopped ones faint.

    The front is a line in the plane it was made in, and ringed in others.
    """
    damage = plane.damage
    stopped = [trial for trial in run.validation.of("edit") if not trial.is_complete]
    if damage == COST:
        front = Marks("front", run.front_trials, None, _STAIRS)
    else:
        front = _ring(f"front by {COST.upper()}", run.front_trials, 13, themes.EDIT, 1.5)
    marks = [
        Marks("edit, stopped early", stopped, {"color": themes.EDIT, "symbol": "circle", "size": 6, "opacity": 0.25}),
        *_edits(run),
        _steering_curve(run, plane),
        front,
        _ring("recommended", _chosen(run), 17),
    ]
    figure = plane_figure(plane, marks, run.chosen.limits.get(damage))
    if beyond := beyond_edge(run, plane):
        left = min(0.0, *map(plane.x, plane.drawable(run.validation.conditions)))
        figure.update_xaxes(range=[left - 0.03 * beyond[0], beyond[0]])
    return figure


_HELD_OUT = {
    "base": ("base", themes.BASE, "square"),
    "steering": ("steered", themes.STEERING, "diamond"),
    "edit": ("edited", themes.EDIT, "diamond"),
}


def held_out_figure(run: RunResults, plane: Plane) -> go.Figure:
    """Conditions on held-out items, with 95 % intervals on both axes; of a search, steering and the front as lines."""
    conditions = plane.drawable(run.held_out.conditions)
    marks = _front_and_steering(run, plane, conditions) if run.is_search else _single_conditions(run)
    return plane_figure(plane, marks, run.chosen.limits.get(plane.damage))


def _single_conditions(run: RunResults) -> list[Marks]:
    marks = []
    for condition in run.held_out.conditions:
        name, colour, symbol = _HELD_OUT[condition.kind]
        name = condition.label if len(run.held_out.of(condition.kind)) > 1 else name
        marker = {"color": colour, "symbol": symbol, "size": 13, "line": {"width": 1, "color": "#ffffff"}}
        marks.append(Marks(f"{name}, held-out", [condition], marker, bars=True))
    return marks


def _front_and_steering(run: RunResults, plane: Plane, conditions: Sequence[Condition]) -> list[Marks]:
    steering = [c for c in conditions if c.kind == "base"] + _by_strength(c for c in conditions if c.kind == "steering")
    edits = sorted((c for c in conditions if c.kind == "edit"), key=plane.x)

    def measured(name: str, own: Sequence[Condition], symbol: str, colour: str, joined: bool = False) -> Marks:
        line = {"color": colour, "width": 2} if joined else None
        return Marks(name, own, {"color": colour, "symbol": symbol, "size": 10}, line, bars=True)

    marks = [
        measured("steering, by strength", steering, "circle", themes.STEERING, joined=True),
        # straight lines: what was a front on validation items need not be one here
        measured("front of edits", edits, "diamond", themes.EDIT, joined=plane.damage == COST),
    ]
    return [*marks, _ring("recommended", [run.edited] if run.edited else [], 19)]


def _steering_curve(run: RunResults, plane: Plane) -> Marks:
    """Activation steering on validation items, from the base through growing strengths."""
    steering = _by_strength(plane.drawable(run.validation.of("steering")))
    curve = plane.drawable(run.validation.of("base"))[:1] + steering
    line = {"color": themes.STEERING, "width": 2}
    return Marks("steering, by strength" if steering else "base", curve, {"size": 9, "opacity": 1}, line)


def _edits(run: RunResults) -> list[Marks]:
    """The edits of validation that were measured in full, by what the limits say of them."""
    edits = [edit for edit in run.validation.of("edit") if edit.is_complete]
    marks = []
    for verdict, name, colour, symbol in _BUDGETED if run.chosen.limits else _UNLIMITED:
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


def beyond_edge(run: RunResults, plane: Plane) -> tuple[float, int] | None:
    """Where the x axis ends at first, and how many configurations lie beyond; `None` where none lies far off.

    One destroyed model must not hide the trade-off. The axis reaches to the worst of the landmarks (steering, the
    chosen edit, held-out intervals, twice the limit).
    """
    validation, held_out = plane.drawable(run.validation.conditions), plane.drawable(run.held_out.conditions)
    landmarks = [c for c in validation if c.kind != "edit" or run.chosen.is_choice(c)] + held_out
    if not landmarks:
        return None
    edge = 1.05 * max(
        2 * run.chosen.limits.get(plane.damage, 0.0),
        *map(plane.x, landmarks),
        *(condition.metrics[plane.damage].high or 0.0 for condition in held_out),
    )
    costs = list(map(plane.x, validation))
    return (edge, sum(x > edge for x in costs)) if 0 < _OUTLIER_FACTOR * edge < max(costs, default=0.0) else None


def complete_trials(run: RunResults) -> list[Condition]:
    """The trials that were measured on all items and have a value of attribute and cost."""
    return [trial for trial in Plane(COST, *run.goal).drawable(run.validation.of("edit")) if trial.is_complete]


def searched(trials: Sequence[Condition]) -> dict[str, str]:
    """The parameters that some trial has, and that are not the same in all of them, with their symbols."""
    different = (name for name in SYMBOLS if len({t.parameters.get(name) for t in trials}) > 1)
    return {name: SYMBOLS[name] for name in different if _known(trials, name)}


def sensitivity_figure(run: RunResults) -> go.Figure | None:
    """Attribute (above) and cost (below) against every searched parameter; `None` where nothing was varied."""
    trials = complete_trials(run)
    parameters, plane = searched(trials), Plane(COST, *run.goal)
    if not parameters:
        return None
    figure = make_subplots(
        rows=2, cols=len(parameters), shared_xaxes=True, shared_yaxes=True, vertical_spacing=0.06,
        horizontal_spacing=0.03,
    )  # fmt: skip
    for column, (name, symbol) in enumerate(parameters.items(), start=1):
        _add_parameter(figure, run, plane, name, _known(trials, name), column)
        figure.update_xaxes(title_text=symbol, row=2, col=column)
    titles = ((plane.attribute, "↑ better" if plane.direction > 0 else "↓ better"), (COST, "↓ better"))
    for row, (name, better) in enumerate(titles, start=1):
        metric, axis = metric_name(name), next(figure.select_yaxes(row=row, col=1))
        set_axis(axis, metric)
        axis.title.text = "<br>".join(map(plot_text, [*wrap(metric.short, _TITLE_WIDTH), better]))
    if (limit := run.chosen.limits.get(COST)) is not None:
        figure.add_hline(y=limit, row=2, col="all", line={"dash": "dot", "width": 1})
    return figure.update_layout(height=460, margin={"l": 60, "r": 20, "t": 20, "b": 50}, hovermode="closest")


def _add_parameter(
    figure: go.Figure, run: RunResults, plane: Plane, name: str, trials: Sequence[Condition], column: int
) -> None:
    """One column: a trial is left out where the parameter is off."""
    values = [float(trial.parameters[name]) for trial in trials]
    chosen = [i for i, trial in enumerate(trials) if run.chosen.is_choice(trial)]
    colours = [themes.BEYOND if run.chosen.within_limits(trial) is False else themes.EDIT for trial in trials]
    ring = {"color": themes.CHOSEN, "symbol": "circle-open", "size": 14, "line": {"width": 2}}
    for row, read in ((1, plane.y), (2, plane.x)):
        y = list(map(read, trials))
        place = {"mode": "markers", "row": row, "col": column, "showlegend": False}
        hover = {"hovertext": list(map(plane.hover_text, trials)), "hovertemplate": "%{hovertext}<extra></extra>"}
        figure.add_scatter(x=values, y=y, marker={"color": colours, "size": 6, "opacity": 0.8}, **hover, **place)
        if chosen:
            at = {"x": [values[i] for i in chosen], "y": [y[i] for i in chosen]}
            figure.add_scatter(marker=ring, hoverinfo="skip", **at, **place)
    if not name.startswith("alpha") and max(values) > _WIDE * min(values) > 0:
        figure.update_xaxes(type="log", tickvals=_TICKS, ticktext=[f"{t:g}" for t in _TICKS], col=column)


def _known(trials: Sequence[Condition], name: str) -> list[Condition]:
    """The trials in which the parameter is on."""
    return [trial for trial in trials if isinstance(trial.parameters.get(name), int | float)]
