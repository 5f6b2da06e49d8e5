"""Figures of the edit and of the diagnosis: pure functions of results, every one by layer along x."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steer2edit.artifacts.left_out import LeftOut
from steer2edit.core import Block, Site, WeightEdit
from steer2edit.core.expert_edits import ExpertEdit, expert_edits
from steer2edit.estimates import Notation
from steer2edit.report import themes
from steer2edit.report.blocks import STYLES, BlockStyle, block_extent
from steer2edit.report.run_results import Diagnosis
from steer2edit.report.text import plot_text
from steer2edit.steering.diagnosis import SiteDiagnosis

_MARGIN = {"l": 60, "r": 20, "t": 30, "b": 50}
_LEGEND = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
_ROW_HEIGHT, _MOST_HEIGHT = 20, 720
_MOST_TICKS = 16
_WIDE = 64  # rows from which gaps between the cells would hide them
_SHARED = "shared"
_NUMBER = Notation(".3f", typeset=True)


def layer_count(edit: WeightEdit, diagnosis: Diagnosis) -> int:
    """Layers of the model, as far as the edit and the diagnosis know of them."""
    return 1 + max(site.layer for site in {*edit.sites, *diagnosis.sites})


def _heat_map(
    rows: int, layers: int, cell: Callable[[int, int], tuple[float, str] | None], quantity: str, row_name: str
) -> go.Figure:
    """A map by row (y) and layer (x) with colours centred at 0; `cell(row, layer)` is a value and what is shown."""
    cells = [[cell(row, layer) for layer in range(layers)] for row in range(rows)]
    bound = max((abs(one[0]) for row in cells for one in row if one), default=0.0) or 1.0
    gap = 1 if rows <= _WIDE else 0
    figure = go.Figure(
        go.Heatmap(
            z=[[one and one[0] for one in row] for row in cells],
            x=list(range(layers)),
            y=list(range(rows)),
            text=[[one and one[1] for one in row] for row in cells],
            coloraxis="coloraxis",
            xgap=gap,
            ygap=gap,
            hoverongaps=False,
            hovertemplate="%{text}<extra></extra>",
        )
    )
    figure.update_layout(
        height=min(130 + max(_ROW_HEIGHT * rows, 120), _MOST_HEIGHT),
        margin=_MARGIN,
        coloraxis={"cmin": -bound, "cmax": bound, "colorbar": {"title": {"text": quantity}}},
    )
    # ranges: marks would else widen the axes beyond the cells
    figure.update_xaxes(
        title_text="layer", showgrid=False, zeroline=False, range=[-0.5, layers - 0.5], **_whole_ticks(layers)
    )
    figure.update_yaxes(title_text=row_name, showgrid=False, zeroline=False, range=[rows - 0.5, -0.5])
    return figure


def _whole_ticks(count: int) -> dict[str, object]:
    """Ticks at whole numbers only, at most about 16 of them."""
    return {"tick0": 0, "dtick": -(-count // _MOST_TICKS)}


def head_figure(edit: WeightEdit, layers: int, block: Block = "attn") -> go.Figure:
    """Heat map of λ by layer (x) and head (y).

    Args:
        edit: an edit with at least one site of the block.
        layers: how many layers to draw.
        block: whose heads.
    """
    by_layer = {site.layer: edit.sites[site] for site in block_extent(edit, block).sites}
    heads = max(len(own.magnitude) for own in by_layer.values())

    def cell(head: int, layer: int) -> tuple[float, str] | None:
        own = by_layer.get(layer)
        if own is None or head >= len(own.magnitude):
            return None
        magnitude, importance = own.magnitude[head].item(), own.importance[head].item()
        name = Site(layer, block).component(head)
        return magnitude, f"<b>{name}</b><br>λ = {magnitude:+.4f}<br>g = {importance:+.4f}"

    figure = _heat_map(heads, layers, cell, "λ", "head")
    figure.update_yaxes(**_whole_ticks(heads))
    return figure


def expert_figure(edit: WeightEdit, left_out: LeftOut, layers: int) -> go.Figure:
    """Heat map of Σ|λ| by layer (x) and expert (y), signed as the larger part is; a cross where one is left out.

    Args:
        edit: an edit with at least one mixture of experts.
        left_out: which experts had too few tokens.
        layers: how many layers to draw.
    """
    names = _expert_names(edit)
    experts = {(e.site.layer, e.name): e for e in expert_edits(edit)}
    skipped = {(site.layer, name): n for (site, name), n in left_out.tokens.items() if name in names}

    def cell(row: int, layer: int) -> tuple[float, str] | None:
        place = (layer, names[row])
        found = None if place in skipped else experts.get(place)
        return None if found is None else (found.signed_mass, _expert_hover(found))

    figure = _heat_map(len(names), layers, cell, "± Σ|λ|", "expert")
    if skipped:
        figure.add_scatter(
            name="left out",
            x=[layer for layer, _ in skipped],
            y=[names.index(name) for _, name in skipped],
            hovertext=[f"<b>L{layer}.{name}</b><br>left out: {n} tokens" for (layer, name), n in skipped.items()],
            hovertemplate="%{hovertext}<extra></extra>",
            mode="markers",
            marker={"symbol": "x-thin", "size": 5, "line": {"width": 1, "color": themes.BASE}},
            showlegend=False,
        )
    shown = [row for row in range(0, len(names), -(-len(names) // _MOST_TICKS)) if names[row] != _SHARED]
    shown += [names.index(_SHARED)] if _SHARED in names else []
    figure.update_yaxes(tickvals=shown, ticktext=[names[row] for row in shown])
    return figure


def _expert_names(edit: WeightEdit) -> list[str]:
    """Names of the experts of all mixtures: the routed ones in order, and then the shared one."""
    sizes = [own.experts for own in edit.sites.values() if own.experts is not None]
    routed = max((size.routed for size in sizes), default=0)
    return [f"E{e}" for e in range(routed)] + [_SHARED] * any(size.shared for size in sizes)


def _expert_hover(expert: ExpertEdit) -> str:
    return (
        f"<b>{expert}</b><br>{expert.edited:,} of {expert.neurons:,} neurons<br>"
        f"Σλ of {expert.strengthened:,} strengthened: {expert.raised:+.3f}<br>"
        f"Σλ of {expert.weakened:,} weakened: {expert.lowered:+.3f}"
    )


def _two_rows(layers: int, height: int, titles: Sequence[str]) -> go.Figure:
    """Two plots by layer, one below the other."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    figure.update_layout(height=height, margin=_MARGIN, legend=_LEGEND)
    figure.update_xaxes(range=[-0.6, layers - 0.4], zeroline=False, showgrid=False, **_whole_ticks(layers))
    figure.update_xaxes(title_text="layer", row=2)
    for row, title in enumerate(titles, start=1):
        figure.update_yaxes(title_text=title, row=row)
    return figure


def neuron_figure(edit: WeightEdit, layers: int) -> go.Figure:
    """MLP edits by layer: sums of positive and of negative λ above, counts of edited neurons below.

    Args:
        edit: an edit with at least one MLP site.
        layers: how many layers to draw.
    """
    figure = _two_rows(layers, 440, ("Σ λ", "neurons"))
    sites = block_extent(edit, "mlp").sites
    for sign, name, colour in ((1, "strengthened (λ > 0)", themes.POSITIVE), (-1, "weakened (λ < 0)", themes.NEGATIVE)):
        parts = [(edit.sites[site].magnitude * sign).clamp(min=0) for site in sites]
        sums = [sign * part.double().sum().item() for part in parts]
        counts = [sign * int(part.count_nonzero()) for part in parts]
        shown = [f"{abs(count):,} of {part.numel():,} neurons" for count, part in zip(counts, parts, strict=True)]
        hover = f"<b>layer %{{x}}</b>, {plot_text(name)}<br>%{{customdata}}<br>Σλ = %{{text}}<extra></extra>"
        for row, y in ((1, sums), (2, counts)):
            figure.add_bar(
                x=[site.layer for site in sites], y=y, row=row, col=1, name=name, legendgroup=name,
                marker={"color": colour}, showlegend=row == 1, customdata=shown,
                text=[f"{value:+.3f}" for value in sums], textposition="none",
                hovertemplate=hover,
            )  # fmt: skip
    figure.update_layout(barmode="relative", bargap=0.25)
    return figure


def diagnosis_figure(diagnosis: Diagnosis, layers: int) -> go.Figure:
    """Split-half cosine (above) and AUROC with interval (below) by layer, one line per block; noise is crossed.

    Args:
        diagnosis: a diagnosis of at least one site.
        layers: how many layers to draw.
    """
    figure = _two_rows(layers, 480, ("split-half cosine", "AUROC"))
    for block, style in STYLES.items():
        found = {site: entry for site, entry in sorted(diagnosis.sites.items()) if site.block == block}
        if found:
            _add_diagnosis(figure, found, style)
    figure.add_hline(y=0.5, row=2, col=1, line={"dash": "dot", "width": 1}, annotation_text="chance")
    figure.update_xaxes(showgrid=True)
    figure.update_yaxes(rangemode="tozero", row=1)
    return figure


def _add_diagnosis(figure: go.Figure, found: Mapping[Site, SiteDiagnosis], style: BlockStyle) -> None:
    entries = list(found.values())
    shared = {
        "x": [site.layer + style.offset for site in found],
        "hovertext": [_diagnosis_hover(site, entry) for site, entry in found.items()],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }
    line = {"color": style.colour, "width": 1.5}
    known = [(e.auroc, e.auroc_low, e.auroc_high) for e in entries]
    bars = {
        "array": [None if a is None or high is None else high - a for a, _, high in known],
        "arrayminus": [None if a is None or low is None else a - low for a, low, _ in known],
        "color": style.colour, "thickness": 1, "width": 2,
    }  # fmt: skip
    rows = ([entry.split_half_cosine for entry in entries], None), ([entry.auroc for entry in entries], bars)
    for row, (values, error) in enumerate(rows, start=1):
        place: dict[str, Any] = {"row": row, "col": 1, "showlegend": row == 1, **shared}
        figure.add_scatter(
            y=values, error_y=error, name=style.name, legendgroup=style.name, mode="lines+markers", line=line,
            marker={"symbol": style.symbol, "size": 6}, **place,
        )  # fmt: skip
        crossed = [value if entry.noise else None for value, entry in zip(values, entries, strict=True)]
        if any(value is not None for value in crossed):
            place["showlegend"] = not any(trace.name == "noise" for trace in figure.data)
            cross = {"symbol": "x", "size": 9, "color": themes.CHOSEN}
            figure.add_scatter(y=crossed, name="noise", legendgroup="noise", mode="markers", marker=cross, **place)


def _diagnosis_hover(site: Site, entry: SiteDiagnosis) -> str:
    lines = (
        f"<b>{site}</b>{' (noise)' if entry.noise else ''}",
        f"split-half cosine {_NUMBER.value(entry.split_half_cosine)}",
        f"AUROC {_NUMBER.value(entry.auroc)} ({_NUMBER.value(entry.auroc_low)} to {_NUMBER.value(entry.auroc_high)})",
        f"norm of v {_NUMBER.value(entry.norm)}",
    )
    return "<br>".join(lines)
