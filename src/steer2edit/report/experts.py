"""Mixtures of experts: which experts carry an edit, as a heat map and as a table."""

from collections.abc import Sequence

import plotly.graph_objects as go

from steer2edit.artifacts.left_out import LeftOut
from steer2edit.core import WeightEdit
from steer2edit.core.expert_edits import ExpertEdit, expert_edits, top_experts
from steer2edit.report import themes
from steer2edit.report.figures import set_heat_map
from steer2edit.report.text import signed

TOP_EXPERTS = 20
_MOST_TICKS = 16
_SHARED = "shared"
_WIDE = 64  # rows from which gaps between the cells would hide them


def expert_figure(edit: WeightEdit, left_out: LeftOut, layers: int) -> go.Figure:
    """Heat map of Σ|λ| by layer (x) and expert (y), signed as the larger part is; a cross where one is left out.

    Args:
        edit: an edit with at least one mixture of experts.
        left_out: which experts had too few tokens.
        layers: how many layers to draw.
    """
    experts = {(e.site.layer, e.name): e for e in expert_edits(edit)}
    skipped = {(site.layer, name): tokens for (site, name), tokens in left_out.tokens.items()}
    names = expert_names(edit)
    cells = [[(layer, name) for layer in range(layers)] for name in names]
    drawn = [[None if cell in skipped else experts.get(cell) for cell in row] for row in cells]
    gap = 1 if len(names) <= _WIDE else 0
    figure = go.Figure(
        go.Heatmap(
            z=[[None if expert is None else expert.signed_mass for expert in row] for row in drawn],
            x=list(range(layers)),
            y=list(range(len(names))),
            text=[[None if expert is None else _hover(expert) for expert in row] for row in drawn],
            coloraxis="coloraxis",
            xgap=gap,
            ygap=gap,
            hoverongaps=False,
            hovertemplate="%{text}<extra></extra>",
        )
    )
    _add_left_out(figure, names, skipped)
    largest = max((expert.mass for row in drawn for expert in row if expert is not None), default=0.0)
    set_heat_map(figure, layers, len(names), largest, "± Σ|λ|")
    shown = [row for row in range(0, len(names), -(-len(names) // _MOST_TICKS)) if names[row] != _SHARED]
    shown += [names.index(_SHARED)] if _SHARED in names else []
    figure.update_yaxes(title_text="expert", tickvals=shown, ticktext=[names[row] for row in shown])
    # marks would else widen the axes beyond the cells
    figure.update_xaxes(range=[-0.5, layers - 0.5])
    figure.update_yaxes(range=[len(names) - 0.5, -0.5], autorange=False)
    return figure


def expert_names(edit: WeightEdit) -> list[str]:
    """Names of the experts of all mixtures: the routed ones in order, and then the shared one."""
    sizes = [own.experts for own in edit.sites.values() if own.experts is not None]
    routed = max((size.routed for size in sizes), default=0)
    return [f"E{e}" for e in range(routed)] + [_SHARED] * any(size.shared for size in sizes)


def _hover(expert: ExpertEdit) -> str:
    return (
        f"<b>{expert}</b><br>{expert.edited:,} of {expert.neurons:,} neurons<br>"
        f"Σλ of {expert.strengthened:,} strengthened: {expert.raised:+.3f}<br>"
        f"Σλ of {expert.weakened:,} weakened: {expert.lowered:+.3f}"
    )


def _add_left_out(figure: go.Figure, names: Sequence[str], skipped: dict[tuple[int, str], int]) -> None:
    rows = {name: row for row, name in enumerate(names)}
    found = {cell: tokens for cell, tokens in skipped.items() if cell[1] in rows}
    if found:
        figure.add_scatter(
            name="left out",
            x=[layer for layer, _ in found],
            y=[rows[name] for _, name in found],
            hovertext=[
                f"<b>L{layer}.{name}</b><br>left out: {tokens} tokens" for (layer, name), tokens in found.items()
            ],
            hovertemplate="%{hovertext}<extra></extra>",
            mode="markers",
            marker={"symbol": "x-thin", "size": 5, "line": {"width": 1, "color": themes.BASE}},
            showlegend=False,
        )


def expert_rows(edit: WeightEdit) -> list[tuple[str, str, str, str, str]]:
    """(name, Σ|λ|, Σ of the positive λ, Σ of the negative λ, edited neurons) of the experts with the largest Σ|λ|."""
    return [
        (
            str(expert),
            f"{expert.mass:.3f}",
            signed(expert.raised, 3),
            signed(expert.lowered, 3),
            f"{expert.edited:,} of {expert.neurons:,}",
        )
        for expert in top_experts(edit, TOP_EXPERTS)
    ]


def left_out_rows(left_out: LeftOut) -> list[tuple[str, str]]:
    """(mixture, its experts that are left out with their tokens), by layer."""
    sites = dict.fromkeys(site for site, _ in left_out.tokens)
    return [(str(site), left_out.experts_of(site)) for site in sites]
