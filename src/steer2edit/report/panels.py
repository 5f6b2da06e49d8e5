"""Figures with the words that go with them: a caption that says how to read it, and a text alternative."""

import json
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from steer2edit.artifacts.left_out import LeftOut
from steer2edit.core import Block, WeightEdit
from steer2edit.core.expert_edits import expert_edits
from steer2edit.evaluation import attribute_of, metric_name
from steer2edit.report.blocks import block_sites
from steer2edit.report.experts import expert_figure
from steer2edit.report.figures import diagnosis_figure, head_figure, layer_count, neuron_figure
from steer2edit.report.run_results import RunResults
from steer2edit.report.tables import block_summary
from steer2edit.report.tradeoff import DAMAGE, Plane, beyond, right_edge, tradeoff_figure

_HEAD_PANELS: dict[Block, str] = {"attn": "heads", "ssm": "mixer-heads"}


@dataclass(frozen=True)
class Panel:
    """One figure of the page.

    Args:
        name: its id in the page.
        title: a few words, the label of its tab if it is one of several.
        data: the figure's data and layout as JSON, without a template: the page adds the light or the dark one.
        caption: how to read it, in a line.
        alternative: what it shows, for those who cannot see it.
    """

    name: str
    title: str
    data: dict[str, Any]
    caption: str
    alternative: str

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.data["layout"]["height"])


def figure_json(figure: go.Figure) -> dict[str, Any]:
    """Data and layout of a figure as JSON values, without its template."""
    content = json.loads(figure.to_json())
    content["layout"].pop("template", None)
    return {"data": content["data"], "layout": content["layout"]}


def tradeoff_panels(run: RunResults) -> list[Panel]:
    """One panel per damage metric for which some condition has a place in the plot."""
    conditions = [*run.validation.conditions, *run.held_out.conditions]
    return [_tradeoff_panel(run, damage) for damage in DAMAGE if Plane.of(run, damage).drawable(conditions)]


def _tradeoff_panel(run: RunResults, damage: str) -> Panel:
    plane = Plane.of(run, damage)
    x, y = metric_name(damage), metric_name(plane.attribute)
    points = "; ".join(
        f"{c.label}: {y.in_cells.value(c.metrics[y.name])} at {x.short} {x.in_cells.value(c.metrics[x.name])}"
        for c in plane.drawable(run.held_out.conditions)
    )
    return Panel(
        name=f"tradeoff-{damage}",
        title=x.short,
        data=figure_json(tradeoff_figure(run, damage)),
        caption=_tradeoff_caption(run, plane),
        alternative=f"Scatter plot of {y.short} against {x.short}. Held-out: {points or 'none'}.",
    )


def _tradeoff_caption(run: RunResults, plane: Plane) -> str:
    upwards = attribute_of(run.behaviour)[1] > 0
    caption = (
        f"{'Up' if upwards else 'Down'} and to the left is better: more of what was asked for, with less damage. Small "
        "marks are measured on validation prompts, the large ones with 95 % intervals on held-out prompts."
    )
    edge = right_edge(run, plane)
    if edge is not None:
        bound = metric_name(plane.damage).bound(edge)
        caption += f" Beyond {bound} lie {beyond(run, plane, edge)} more: double-click the plot to see all."
    missing = plane.undrawn(run)
    if missing:
        caption += f" Not drawn, because a metric was not scored: {missing}."
    return caption


def head_panel(run: RunResults, edit: WeightEdit, block: Block = "attn") -> Panel | None:
    """Heat map of λ of the heads of one block, or `None` if the edit has none of it."""
    if not block_sites(edit, block):
        return None
    summary = block_summary(edit, block)
    caption = (
        "One cell per head. Red: the head writes more strongly along the steering vector; blue: less strongly; "
        "the neutral middle colour: not edited. An empty column is a layer that the edit leaves out"
    )
    shares = " These heads take the ρ of the attention." if block == "ssm" else ""
    return Panel(
        name=_HEAD_PANELS[block],
        title=summary.title,
        data=figure_json(head_figure(edit, layer_count(edit, run.diagnosis), block)),
        caption=f"{caption}, or that has no such heads.{shares}",
        alternative=f"Heat map of λ by layer and head: {summary.edited} of {summary.total} heads are edited.",
    )


def neuron_panel(run: RunResults, edit: WeightEdit) -> Panel | None:
    """MLP edits by layer, or `None` if the MLP block is off."""
    if not block_sites(edit, "mlp"):
        return None
    summary = block_summary(edit, "mlp")
    return Panel(
        name="neurons",
        title="MLP neurons",
        data=figure_json(neuron_figure(edit, layer_count(edit, run.diagnosis))),
        caption=(
            "Above: the sums of the positive and of the negative λ of a layer's neurons. "
            "Below: how many neurons that is, strengthened ones upwards, weakened ones downwards."
        ),
        alternative=(
            f"Bar charts by layer: {summary.edited} of {summary.total} neurons are edited, "
            f"{summary.strengthened} of them strengthened."
        ),
    )


def expert_panel(run: RunResults, edit: WeightEdit) -> Panel | None:
    """Heat map of the experts, or `None` if no site of the edit is a mixture."""
    experts = expert_edits(edit)
    if not experts:
        return None
    touched = sum(expert.edited > 0 for expert in experts)
    left_out = LeftOut.of(edit.metadata)
    crossed = " A cross: left out, because too few tokens reached it." if left_out.tokens else ""
    return Panel(
        name="experts",
        title="Experts",
        data=figure_json(expert_figure(edit, left_out, layer_count(edit, run.diagnosis))),
        caption=(
            "One cell per expert: the sum of |λ| over its neurons. Red: the strengthened neurons outweigh the weakened "
            "ones; blue: the weakened ones do; the neutral middle colour: not edited. An empty column is a layer "
            f"without experts, or one that the edit leaves out.{crossed}"
        ),
        alternative=f"Heat map by layer and expert: neurons of {touched} of {len(experts)} experts are edited.",
    )


def diagnosis_panel(run: RunResults, edit: WeightEdit) -> Panel | None:
    """Diagnosis by layer, or `None` if the run has none."""
    if not run.diagnosis.sites:
        return None
    noisy = sum(entry.noise for entry in run.diagnosis.sites.values())
    return Panel(
        name="diagnosis",
        title="Diagnosis",
        data=figure_json(diagnosis_figure(run.diagnosis, layer_count(edit, run.diagnosis))),
        caption=(
            "Above: how well vectors from two halves of the data agree (1: the same direction, 0: unrelated). "
            "Below: how well the vector separates held-out responses, with 95 % intervals (0.5: not at all). "
            "A cross marks a site that is flagged as noise."
        ),
        alternative=f"Two line charts by layer; {noisy} of {len(run.diagnosis.sites)} sites are flagged as noise.",
    )
