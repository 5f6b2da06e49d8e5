"""Figures with the words that go with them: a caption that says how to read it, and a text alternative."""

import json
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from steer2edit.artifacts.left_out import LeftOut
from steer2edit.core import Block, WeightEdit
from steer2edit.core.expert_edits import expert_edits
from steer2edit.evaluation import COST, metric_name
from steer2edit.report.blocks import block_extent
from steer2edit.report.figures import diagnosis_figure, expert_figure, head_figure, layer_count, neuron_figure
from steer2edit.report.run_results import RunResults
from steer2edit.report.sensitivity import complete_trials, searched, sensitivity_figure
from steer2edit.report.tradeoff import DAMAGE, Plane, beyond_edge, held_out_figure, run_figure, validation_figure


@dataclass(frozen=True)
class Panel:
    """One figure of a page."""

    name: str  # its id in the page
    title: str  # a few words, the label of its tab if it is one of several
    # the figure's data and layout as JSON, without a template: the page adds the light or the dark one
    data: dict[str, Any]
    caption: str  # how to read it, in a line
    alternative: str  # what it shows, for those who cannot see it

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.data["layout"]["height"])


def figure_json(figure: go.Figure) -> dict[str, Any]:
    """Data and layout of a figure as JSON values, without its template."""
    content = json.loads(figure.to_json())
    content["layout"].pop("template", None)
    return {"data": content["data"], "layout": content["layout"]}


def tradeoff_panels(run: RunResults) -> list[tuple[Panel, ...]]:
    """By damage metric, the plots in which some condition has a place; of a search, validation and held-out items."""
    found = []
    for damage in sorted(DAMAGE, key=lambda name: name != COST) if run.is_search else DAMAGE:
        plane = Plane.of(run, damage)
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
    caption = (
        f"{plane.better}: more of what was asked for, with less damage. Small marks are measured on validation "
        "prompts, the large ones with 95 % intervals on held-out prompts."
    )
    undrawn = f" Not drawn, because a metric was not scored: {missing}." if missing else ""
    points = plane.in_words(run.held_out.conditions) or "none"
    return _plane_panel(
        "tradeoff", plane, run_figure(run, plane.damage), caption + beyond_edge(run, plane) + undrawn,
        f"Held-out: {points}.",
    )  # fmt: skip


def _validation_panel(run: RunResults, plane: Plane) -> Panel:
    trials = plane.drawable(run.validation.of("edit"))
    complete = sum(trial.is_complete for trial in trials)
    stopped = len(trials) - complete
    filtered = run.trials.get("tried", 0) - len(trials)
    caption = f"Validation items. {plane.better}. A solid mark is an edit measured on all items"
    if stopped:
        caption += "; a faint one was stopped early, and stands where the share of the items it saw put it"
    caption += f". The front holds what no other edit within the budget beats in both, by {metric_name(COST).short}."
    caption += beyond_edge(run, plane)
    if filtered > 0:
        caption += f" Not drawn: {filtered} trials that were thrown out before they were measured."
    counts = f"{complete} trials measured in full, {stopped} stopped early, {len(run.front_trials)} on the front."
    return _plane_panel("tradeoff", plane, validation_figure(run, plane.damage), caption, f"Validation items: {counts}")


def _held_out_panel(run: RunResults, plane: Plane) -> Panel:
    caption = (
        "Held-out items, on which nothing was chosen, with 95 % intervals: the front of edits (at most eight of it) "
        "and activation steering at the strengths of the sweep."
    )
    points = plane.in_words(run.held_out.conditions)
    return _plane_panel("held-out", plane, held_out_figure(run, plane.damage), caption, f"Held-out: {points}.")


def _plane_panel(name: str, plane: Plane, figure: go.Figure, caption: str, shows: str) -> Panel:
    x, y = metric_name(plane.damage), metric_name(plane.attribute)
    alternative = f"Scatter plot of {y.short} against {x.short}. {shows}"
    return Panel(f"{name}-{plane.damage}", x.short, figure_json(figure), caption, alternative)


def sensitivity_panel(run: RunResults) -> Panel | None:
    """Attribute and cost against every searched parameter; `None` where nothing was measured or varied."""
    trials = complete_trials(run)
    parameters = searched(trials)
    if not parameters:
        return None
    return Panel(
        "sensitivity", "Sensitivity", figure_json(sensitivity_figure(run, trials, parameters)),
        f"The {len(trials)} edits that were measured on all validation items, ringed the recommended one; orange: "
        "beyond the budget. A column leaves out edits in which its parameter is off. The others vary along with it, "
        "and the search looks closer where it is good, so a column shows no effect of its parameter alone.",
        f"Small scatter plots of attribute and KL against {', '.join(parameters.values())}, of {len(trials)} edits.",
    )  # fmt: skip


def edit_panels(run: RunResults, edit: WeightEdit) -> dict[str, Panel]:
    """What the edit does by layer: heads, neurons, experts; a block that is off has none."""
    found = {"attn": _head_panel(run, edit, "attn", "heads"), "ssm": _head_panel(run, edit, "ssm", "mixer-heads")}
    found |= {"mlp": _neuron_panel(run, edit), "experts": _expert_panel(run, edit)}
    return {name: panel for name, panel in found.items() if panel is not None}


def _head_panel(run: RunResults, edit: WeightEdit, block: Block, name: str) -> Panel | None:
    extent = block_extent(edit, block)
    if not extent.sites:
        return None
    return Panel(
        name, extent.style.title, figure_json(head_figure(edit, layer_count(edit, run.diagnosis), block)),
        "One cell per head. Red: the head writes more strongly along the steering vector; blue: less strongly; the "
        "neutral middle colour: not edited. An empty column is a layer that the edit leaves out, or that has no such "
        f"heads.{' These heads take the ρ of the attention.' if block == 'ssm' else ''}",
        f"Heat map of λ by layer and head: {extent.edited} of {extent.total} heads are edited.",
    )  # fmt: skip


def _neuron_panel(run: RunResults, edit: WeightEdit) -> Panel | None:
    extent = block_extent(edit, "mlp")
    if not extent.sites:
        return None
    return Panel(
        "neurons", extent.style.title, figure_json(neuron_figure(edit, layer_count(edit, run.diagnosis))),
        "Above: the sums of the positive and of the negative λ of a layer's neurons. Below: how many neurons that is, "
        "strengthened ones upwards, weakened ones downwards.",
        f"Bar charts by layer: {extent.edited} of {extent.total} neurons are edited, {extent.strengthened} of them "
        "strengthened.",
    )  # fmt: skip


def _expert_panel(run: RunResults, edit: WeightEdit) -> Panel | None:
    experts, left_out = expert_edits(edit), LeftOut.of(edit.metadata)
    if not experts:
        return None
    touched = sum(expert.edited > 0 for expert in experts)
    return Panel(
        "experts", "Experts", figure_json(expert_figure(edit, left_out, layer_count(edit, run.diagnosis))),
        "One cell per expert: the sum of |λ| over its neurons. Red: the strengthened neurons outweigh the weakened "
        "ones; blue: the weakened ones do; the neutral middle colour: not edited. An empty column is a layer without "
        "experts, or one that the edit leaves out."
        f"{' A cross: left out, because too few tokens reached it.' if left_out.tokens else ''}",
        f"Heat map by layer and expert: neurons of {touched} of {len(experts)} experts are edited.",
    )  # fmt: skip


def diagnosis_panel(run: RunResults, edit: WeightEdit) -> Panel | None:
    """Diagnosis by layer, or `None` if the run has none."""
    sites = run.diagnosis.sites
    if not sites:
        return None
    noisy = sum(entry.noise for entry in sites.values())
    return Panel(
        "diagnosis", "Diagnosis", figure_json(diagnosis_figure(run.diagnosis, layer_count(edit, run.diagnosis))),
        "Above: how well vectors from two halves of the data agree (1: the same direction, 0: unrelated). Below: how "
        "well the vector separates held-out responses, with 95 % intervals (0.5: not at all). A cross marks a site "
        "that is flagged as noise.",
        f"Two line charts by layer; {noisy} of {len(sites)} sites are flagged as noise.",
    )  # fmt: skip
