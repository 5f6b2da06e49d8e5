"""How attribute and cost of a search's trials depend on each searched parameter."""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steer2edit.estimates import Condition
from steer2edit.evaluation import COST, attribute_of, metric_name
from steer2edit.report import themes
from steer2edit.report.run_results import RunResults
from steer2edit.report.text import plot_text
from steer2edit.report.tradeoff import Plane, set_axis


@dataclass(frozen=True)
class Parameter:
    """A searched parameter.

    Args:
        name: its key in a trial's parameters.
        symbol: as the paper writes it.
        is_logarithmic: whether the search moves in its logarithm.
    """

    name: str
    symbol: str
    is_logarithmic: bool = True


_PARAMETERS = (
    Parameter("rho_attn", "ρ_attn"),
    Parameter("rho_mlp", "ρ_mlp"),
    Parameter("alpha", "α", is_logarithmic=False),
    Parameter("alpha_mlp", "α_mlp", is_logarithmic=False),
    Parameter("max_shift", "κ (max_shift)"),
    Parameter("spare", "gain (spare)"),
)
_TICKS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]
_TITLE_WIDTH = 20  # characters that fit beside one row
_WIDE = 8  # a ratio of largest to smallest value from which a logarithmic axis reads better


def complete_trials(run: RunResults) -> list[Condition]:
    """The trials that were measured on all items and have a value of attribute and cost."""
    return [trial for trial in Plane.of(run, COST).drawable(run.validation.of("edit")) if trial.is_complete]


def searched(trials: Sequence[Condition]) -> list[Parameter]:
    """The parameters that some trial has, and that are not the same in all of them."""
    return [p for p in _PARAMETERS if len({t.parameters.get(p.name) for t in trials}) > 1 and _known(trials, p)]


def sensitivity_figure(run: RunResults, trials: Sequence[Condition], parameters: Sequence[Parameter]) -> go.Figure:
    """One column per parameter: attribute above, cost below; a trial is left out where the parameter is off.

    Args:
        run: the results of a search.
        trials: what to draw; at least one.
        parameters: what to draw it against; at least one.
    """
    figure = make_subplots(
        rows=2,
        cols=len(parameters),
        shared_xaxes=True,
        shared_yaxes=True,
        vertical_spacing=0.06,
        horizontal_spacing=0.03,
    )
    plane = Plane.of(run, COST)
    for column, parameter in enumerate(parameters, start=1):
        known = _known(trials, parameter)
        values = [float(trial.parameters[parameter.name]) for trial in known]
        for row, read in ((1, plane.y), (2, plane.x)):
            place = {"row": row, "col": column, "showlegend": False}
            hover = {"hovertext": [plane.hover_text(t) for t in known], "hovertemplate": "%{hovertext}<extra></extra>"}
            marker = {"color": [_colour(run, t) for t in known], "size": 6, "opacity": 0.8}
            figure.add_scatter(x=values, y=[read(t) for t in known], mode="markers", marker=marker, **hover, **place)
            chosen = [(v, read(t)) for v, t in zip(values, known, strict=True) if run.chosen.is_choice(t)]
            ring = {"color": themes.CHOSEN, "symbol": "circle-open", "size": 14, "line": {"width": 2}}
            if chosen:
                x, y = zip(*chosen, strict=True)
                figure.add_scatter(x=x, y=y, mode="markers", marker=ring, hoverinfo="skip", **place)
        if parameter.is_logarithmic and max(values) > _WIDE * min(values) > 0:
            figure.update_xaxes(type="log", tickvals=_TICKS, ticktext=[f"{t:g}" for t in _TICKS], col=column)
        figure.update_xaxes(title_text=parameter.symbol, row=2, col=column)
    _set_rows(figure, run)
    return figure


def _set_rows(figure: go.Figure, run: RunResults) -> None:
    arrow = "↑ better" if attribute_of(run.behaviour)[1] > 0 else "↓ better"
    titles = {1: (run.attribute, arrow), 2: (COST, "↓ better")}
    for row, (name, better) in titles.items():
        metric = metric_name(name)
        axis = next(figure.select_yaxes(row=row, col=1))
        set_axis(axis, metric)
        axis.title.text = "<br>".join(map(plot_text, [*wrap(metric.short, _TITLE_WIDTH), better]))
    limit = run.chosen.limits.get(COST)
    if limit is not None:
        figure.add_hline(y=limit, row=2, col="all", line={"dash": "dot", "width": 1})
    figure.update_layout(height=460, margin={"l": 60, "r": 20, "t": 20, "b": 50}, hovermode="closest")


def _known(trials: Sequence[Condition], parameter: Parameter) -> list[Condition]:
    """The trials in which the parameter is on."""
    return [trial for trial in trials if isinstance(trial.parameters.get(parameter.name), int | float)]


def _colour(run: RunResults, trial: Condition) -> str:
    return themes.BEYOND if run.chosen.within_limits(trial) is False else themes.EDIT
