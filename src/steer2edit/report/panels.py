"""Figures with the words that go with them: a caption that says how to read it, and a text alternative."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from textwrap import wrap
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steer2edit.artifacts.left_out import LeftOut
from steer2edit.core import WeightEdit
from steer2edit.core.expert_edits import expert_edits
from steer2edit.estimates import Condition
from steer2edit.evaluation import COST, metric_name
from steer2edit.report import themes
from steer2edit.report.figures import (
    diagnosis_figure,
    expert_figure,
    head_figure,
    layer_count,
    neuron_figure,
    shown_blocks,
)
from steer2edit.report.run_results import RunResults
from steer2edit.report.text import plot_text
from steer2edit.report.tradeoff import (
    DAMAGE,
    Plane,
    beyond_edge,
    held_out_figure,
    run_figure,
    set_axis,
    validation_figure,
)

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


@dataclass(frozen=True)
class Panel:
    """One figure of a page."""

    name: str  # its id in the page
    title: str  # a few words, the label of its tab if it is one of several
    figure: go.Figure
    caption: str  # how to read it, in a line
    alternative: str  # what it shows, for those who cannot see it

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the page embeds; it adds the light or the dark template."""
        return figure_json(self.figure)


def figure_json(figure: go.Figure) -> dict[str, Any]:
    """Data and layout of a figure as JSON values, without its template."""
    content = json.loads(figure.to_json())
    content["layout"].pop("template", None)
    return {"data": content["data"], "layout": content["layout"]}


def tradeoff_panels(run: RunResults) -> list[tuple[Panel, ...]]:
    """By damage metric, the plots in which some condition has a place; of a search, validation and held-out items."""
    found = []
    for damage in sorted(DAMAGE, key=lambda name: name != COST) if run.is_search else DAMAGE:
        plane = Plane(damage, *run.goal)
        validation, held_out = (bool(plane.drawable(part.conditions)) for part in (run.validation, run.held_out))
        if run.is_search:
            panels = [_validation_panel(run, plane)] * validation + [_held_out_panel(run, plane)] * held_out
        else:
            panels = [_run_panel(run, plane)] * (validation or held_out)
        if panels:
            found.append(tuple(panels))
    return found


def _run_panel(run: RunResults, plane: Plane) -> Panel:
    conditions = [*run.validation.conditions, *run.held_out.conditions]
    missing = len(conditions) - len(plane.drawable(conditions))
    undrawn = f" Not drawn, because a metric was not scored: {missing}." if missing else ""
    return _plane_panel(
        "tradeoff", plane, run_figure(run, plane.damage),
        f"{plane.better}: more of what was asked for, with less damage. Small marks are measured on validation "
        f"prompts, the large ones with 95 % intervals on held-out prompts.{beyond_edge(run, plane)}{undrawn}",
        f"Held-out: {plane.in_words(run.held_out.conditions) or 'none'}.",
    )  # fmt: skip


def _validation_panel(run: RunResults, plane: Plane) -> Panel:
    trials = plane.drawable(run.validation.of("edit"))
    complete = sum(trial.is_complete for trial in trials)
    stopped, filtered = len(trials) - complete, run.trials.get("tried", 0) - len(trials)
    faint = "; a faint one was stopped early, and stands where the share of the items it saw put it" * bool(stopped)
    out = f" Not drawn: {filtered} trials that were thrown out before they were measured." if filtered > 0 else ""
    return _plane_panel(
        "tradeoff", plane, validation_figure(run, plane.damage),
        f"Validation items. {plane.better}. A solid mark is an edit measured on all items{faint}. The front holds what "
        f"no other edit within the budget beats in both, by {metric_name(COST).short}.{beyond_edge(run, plane)}{out}",
        f"Validation items: {complete} trials measured in full, {stopped} stopped early, {len(run.front_trials)} on "
        "the front.",
    )  # fmt: skip


def _held_out_panel(run: RunResults, plane: Plane) -> Panel:
    return _plane_panel(
        "held-out", plane, held_out_figure(run, plane.damage),
        "Held-out items, on which nothing was chosen, with 95 % intervals: the front of edits (at most eight of it) "
        "and activation steering at the strengths of the sweep.",
        f"Held-out: {plane.in_words(run.held_out.conditions)}.",
    )  # fmt: skip


def _plane_panel(name: str, plane: Plane, figure: go.Figure, caption: str, shows: str) -> Panel:
    x, y = metric_name(plane.damage), metric_name(plane.attribute)
    alternative = f"Scatter plot of {y.short} against {x.short}. {shows}"
    return Panel(f"{name}-{plane.damage}", x.short, figure, caption, alternative)


def sensitivity_panel(run: RunResults) -> Panel | None:
    """Attribute and cost against every searched parameter; `None` where nothing was measured or varied."""
    trials = complete_trials(run)
    parameters = searched(trials)
    if not parameters:
        return None
    return Panel(
        "sensitivity", "Sensitivity", sensitivity_figure(run, trials, parameters),
        f"The {len(trials)} edits that were measured on all validation items, ringed the recommended one; orange: "
        "beyond the budget. A column leaves out edits in which its parameter is off. The others vary along with it, "
        "and the search looks closer where it is good, so a column shows no effect of its parameter alone.",
        f"Small scatter plots of attribute and KL against {', '.join(parameters.values())}, of {len(trials)} edits.",
    )  # fmt: skip


def complete_trials(run: RunResults) -> list[Condition]:
    """The trials that were measured on all items and have a value of attribute and cost."""
    return [trial for trial in Plane(COST, *run.goal).drawable(run.validation.of("edit")) if trial.is_complete]


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
    plane = Plane(COST, *run.goal)
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


def edit_panels(run: RunResults, edit: WeightEdit) -> dict[str, Panel]:
    """What the edit does by layer: heads, neurons, experts; a block that is off has none."""
    layers, panels = layer_count(edit, run.diagnosis), {}
    for block, found in ((block, found) for block, found in shown_blocks(edit).items() if found.sites):
        counts = f"{found.edited} of {found.total}"
        if block == "mlp":
            panels[str(block)] = Panel(
                "neurons", found.style.title, neuron_figure(edit, layers),
                "Above: the sums of the positive and of the negative λ of a layer's neurons. Below: how many neurons "
                "that is, strengthened ones upwards, weakened ones downwards.",
                f"Bar charts by layer: {counts} neurons are edited, {found.strengthened} of them strengthened.",
            )  # fmt: skip
            continue
        panels[block] = Panel(
            "mixer-heads" if block == "ssm" else "heads", found.style.title, head_figure(edit, layers, block),
            "One cell per head. Red: the head writes more strongly along the steering vector; blue: less strongly; the "
            "neutral middle colour: not edited. An empty column is a layer that the edit leaves out, or that has no "
            f"such heads.{' These heads take the ρ of the attention.' if block == 'ssm' else ''}",
            f"Heat map of λ by layer and head: {counts} heads are edited.",
        )  # fmt: skip
    if experts := expert_edits(edit):
        left_out = LeftOut.of(edit.metadata)
        panels["experts"] = Panel(
            "experts", "Experts", expert_figure(edit, left_out, layers),
            "One cell per expert: the sum of |λ| over its neurons. Red: the strengthened neurons outweigh the weakened "
            "ones; blue: the weakened ones do; the neutral middle colour: not edited. An empty column is a layer "
            "without experts, or one that the edit leaves out."
            f"{' A cross: left out, because too few tokens reached it.' if left_out.tokens else ''}",
            f"Heat map by layer and expert: neurons of {sum(one.edited > 0 for one in experts)} of {len(experts)} "
            "experts are edited.",
        )  # fmt: skip
    return panels


def diagnosis_panel(run: RunResults, edit: WeightEdit) -> Panel | None:
    """Diagnosis by layer, or `None` if the run has none."""
    sites = run.diagnosis.sites
    if not sites:
        return None
    noisy = sum(entry.noise for entry in sites.values())
    return Panel(
        "diagnosis", "Diagnosis", diagnosis_figure(run.diagnosis, layer_count(edit, run.diagnosis)),
        "Above: how well vectors from two halves of the data agree (1: the same direction, 0: unrelated). Below: how "
        "well the vector separates held-out responses, with 95 % intervals (0.5: not at all). A cross marks a site "
        "that is flagged as noise.",
        f"Two line charts by layer; {noisy} of {len(sites)} sites are flagged as noise.",
    )  # fmt: skip
