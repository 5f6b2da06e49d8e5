"""How attribute and cost of a search's trials depend on each searched parameter."""

from collections.abc import Mapping, Sequence
from textwrap import wrap

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steer2edit.estimates import Condition
from steer2edit.evaluation import COST, metric_name
from steer2edit.report import themes
from steer2edit.report.run_results import RunResults
from steer2edit.report.text import plot_text
from steer2edit.report.tradeoff import Plane, set_axis

SYMBOLS = {
    "rho_attn": "ρ_attn",
    "rho_mlp": "ρ_mlp",
    "alpha": "α",
    "alpha_mlp": "α_mlp",
    "max_shift": "κ",
    "spare": "gain of sparing",
}
_TICKS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]
_TITLE_WIDTH = 20  # characters that fit beside one row
_WIDE = 8  # a ratio of largest to smallest value from which a logarithmic axis reads better


def complete_trials(run: RunResults) -> list[Condition]:
    """The trials that were measured on all items and have a value of attribute and cost."""
    return [trial for trial in Plane.of(run, COST).drawable(run.validation.of("edit")) if trial.is_complete]


def searched(trials: Sequence[Condition]) -> dict[str, str]:
    """The parameters that some trial has, and that are not the same in all of them, with their symbols."""
    different = (name for name in SYMBOLS if len({t.parameters.get(name) for t in trials}) > 1)
    return {name: SYMBOLS[name] for name in different if _known(trials, name)}


def sensitivity_figure(run: RunResults, trials: Sequence[Condition], parameters: Mapping[str, str]) -> go.Figure:
    """One column per parameter: attribute above, cost below; a trial is left out where the parameter is off."""
    figure = make_subplots(
        rows=2, cols=len(parameters), shared_xaxes=True, shared_yaxes=True, vertical_spacing=0.06,
        horizontal_spacing=0.03,
    )  # fmt: skip
    plane = Plane.of(run, COST)
    ring = {"color": themes.CHOSEN, "symbol": "circle-open", "size": 14, "line": {"width": 2}}
    for column, (name, symbol) in enumerate(parameters.items(), start=1):
        known = _known(trials, name)
        values = [float(trial.parameters[name]) for trial in known]
        chosen = [i for i, trial in enumerate(known) if run.chosen.is_choice(trial)]
        colours = [themes.BEYOND if run.chosen.within_limits(trial) is False else themes.EDIT for trial in known]
        for row, read in ((1, plane.y), (2, plane.x)):
            y = list(map(read, known))
            place = {"mode": "markers", "row": row, "col": column, "showlegend": False}
            hover = {"hovertext": list(map(plane.hover_text, known)), "hovertemplate": "%{hovertext}<extra></extra>"}
            marker = {"color": colours, "size": 6, "opacity": 0.8}
            figure.add_scatter(x=values, y=y, marker=marker, **hover, **place)
            if chosen:
                at = {"x": [values[i] for i in chosen], "y": [y[i] for i in chosen]}
                figure.add_scatter(marker=ring, hoverinfo="skip", **at, **place)
        if not name.startswith("alpha") and max(values) > _WIDE * min(values) > 0:
            figure.update_xaxes(type="log", tickvals=_TICKS, ticktext=[f"{t:g}" for t in _TICKS], col=column)
        figure.update_xaxes(title_text=symbol, row=2, col=column)
    titles = ((plane.attribute, "↑ better" if plane.direction > 0 else "↓ better"), (COST, "↓ better"))
    for row, (name, better) in enumerate(titles, start=1):
        metric, axis = metric_name(name), next(figure.select_yaxes(row=row, col=1))
        set_axis(axis, metric)
        axis.title.text = "<br>".join(map(plot_text, [*wrap(metric.short, _TITLE_WIDTH), better]))
    if (limit := run.chosen.limits.get(COST)) is not None:
        figure.add_hline(y=limit, row=2, col="all", line={"dash": "dot", "width": 1})
    return figure.update_layout(height=460, margin={"l": 60, "r": 20, "t": 20, "b": 50}, hovermode="closest")


def _known(trials: Sequence[Condition], name: str) -> list[Condition]:
    """The trials in which the parameter is on."""
    return [trial for trial in trials if isinstance(trial.parameters.get(name), int | float)]
