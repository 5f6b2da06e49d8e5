"""Figures of an edit and of a diagnosis, each by layer along x."""

from collections.abc import Callable, Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steer2edit.artifacts.left_out import LeftOut
from steer2edit.core import Block, Component, Site, WeightEdit
from steer2edit.core.edit import expert_edits
from steer2edit.estimates import Notation
from steer2edit.report import themes
from steer2edit.report.html import plot_text
from steer2edit.steering.diagnosis import Diagnosis

_MARGIN = {"l": 60, "r": 20, "t": 30, "b": 50}
_LEGEND = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
_ROW_HEIGHT, _MOST_HEIGHT = 20, 720
_MOST_TICKS = 16
_WIDE = 64  # rows from which gaps between the cells would hide them
_SHARED = "shared"
_HOVER = "%{hovertext}<extra></extra>"
_NUMBER = Notation(".3f", typeset=True)
_STYLES: Mapping[Block, tuple[str, str, str, float]] = {
    "attn": ("attention", themes.ATTN, "circle", -0.12),
    "ssm": ("state-space mixer", themes.SSM, "diamond", 0.0),
    "mlp": ("MLP", themes.MLP, "square", 0.12),
}
"""In a diagnosis: name, colour, symbol, and how far marks stand beside the layer, so that intervals do not overlap."""


def edit_figures(edit: WeightEdit, layers: int) -> dict[str, go.Figure]:
    """What the edit does by layer: heads, neurons, experts; a block that is off has none."""
    figures, blocks = {}, {site.block for site in edit.sites}
    if "attn" in blocks:
        figures["heads"] = head_figure(edit, layers)
    if "ssm" in blocks:
        figures["mixer-heads"] = head_figure(edit, layers, "ssm")
    if "mlp" in blocks:
        figures["neurons"] = neuron_figure(edit, layers)
    if expert_edits(edit):
        figures["experts"] = expert_figure(edit, LeftOut.of(edit.metadata), layers)
    return figures


def _heat_map(
    rows: int, layers: int, cell: Callable[[int, int], tuple[float, str] | None], quantity: str, row_name: str
) -> go.Figure:
    """A map by row (y) and layer (x) with colours centred at 0; `cell(row, layer)` is a value and what is shown."""
    cells = [[cell(row, layer) for layer in range(layers)] for row in range(rows)]
    bound = max((abs(one[0]) for row in cells for one in row if one), default=0.0) or 1.0
    gap = 1 if rows <= _WIDE else 0
    figure = go.Figure()
    figure.add_heatmap(
        z=[[one and one[0] for one in row] for row in cells], x=list(range(layers)), y=list(range(rows)),
        text=[[one and one[1] for one in row] for row in cells], hovertemplate="%{text}<extra></extra>",
        hoverongaps=False, coloraxis="coloraxis", xgap=gap, ygap=gap,
    )  # fmt: skip
    plain = {"showgrid": False, "zeroline": False}
    figure.update_layout(
        height=min(130 + max(_ROW_HEIGHT * rows, 120), _MOST_HEIGHT),
        margin=_MARGIN,
        coloraxis={"cmin": -bound, "cmax": bound, "colorbar": {"title": {"text": quantity}}},
        # ranges: marks would else widen the axes beyond the cells
        xaxis={"title": {"text": "layer"}, "range": [-0.5, layers - 0.5], **plain, **_whole_ticks(layers)},
        yaxis={"title": {"text": row_name}, "range": [rows - 0.5, -0.5], **plain},
    )
    return figure


def _whole_ticks(count: int) -> dict[str, object]:
    """Ticks at whole numbers only, at most about 16 of them."""
    return {"tick0": 0, "dtick": -(-count // _MOST_TICKS)}


def head_figure(edit: WeightEdit, layers: int, block: Block = "attn") -> go.Figure:
    """Heat map of λ by layer (x) and head (y) of one block, of which the edit has a site."""
    by_layer = {site.layer: own for site, own in edit.sites.items() if site.block == block}
    heads = max(len(own.magnitude) for own in by_layer.values())

    def cell(head: int, layer: int) -> tuple[float, str] | None:
        own = by_layer.get(layer)
        if own is None or head >= len(own.magnitude):
            return None
        magnitude, importance = own.magnitude[head].item(), own.importance[head].item()
        name = Component(Site(layer, block), head)
        return magnitude, f"<b>{name}</b><br>λ = {magnitude:+.4f}<br>g = {importance:+.4f}"

    return _heat_map(heads, layers, cell, "λ", "head").update_yaxes(**_whole_ticks(heads))


def expert_figure(edit: WeightEdit, left_out: LeftOut, layers: int) -> go.Figure:
    """Heat map of Σ|λ| by layer (x) and expert (y), signed as the larger part is; a cross where one is left out."""
    sizes = [own.experts for own in edit.sites.values() if own.experts is not None]
    routed = max((size.routed for size in sizes), default=0)
    names = [f"E{e}" for e in range(routed)] + [_SHARED] * any(size.shared for size in sizes)
    experts = {(e.site.layer, e.name): e for e in expert_edits(edit)}
    skipped = {(site.layer, name): n for (site, name), n in left_out.tokens.items() if name in names}

    def cell(row: int, layer: int) -> tuple[float, str] | None:
        found = experts.get(place := (layer, names[row]))
        if found is None or place in skipped:
            return None
        return found.signed_mass, (
            f"<b>{found}</b><br>{found.edited:,} of {found.neurons:,} neurons<br>"
            f"Σλ of {found.strengthened:,} strengthened: {found.raised:+.3f}<br>"
            f"Σλ of {found.weakened:,} weakened: {found.lowered:+.3f}"
        )

    figure = _heat_map(len(names), layers, cell, "± Σ|λ|", "expert")
    if skipped:
        figure.add_scatter(
            name="left out", x=[layer for layer, _ in skipped], y=[names.index(name) for _, name in skipped],
            hovertext=[f"<b>L{layer}.{name}</b><br>left out: {n} tokens" for (layer, name), n in skipped.items()],
            hovertemplate=_HOVER, mode="markers", showlegend=False,
            marker={"symbol": "x-thin", "size": 5, "line": {"width": 1, "color": themes.BASE}},
        )  # fmt: skip
    shown = [row for row in range(0, len(names), -(-len(names) // _MOST_TICKS)) if names[row] != _SHARED]
    shown += [names.index(_SHARED)] if _SHARED in names else []
    return figure.update_yaxes(tickvals=shown, ticktext=[names[row] for row in shown])


def _two_rows(layers: int, height: int, above: str, below: str) -> go.Figure:
    """Two plots by layer, one below the other."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    figure.update_layout(height=height, margin=_MARGIN, legend=_LEGEND)
    figure.update_xaxes(range=[-0.6, layers - 0.4], zeroline=False, showgrid=False, **_whole_ticks(layers))
    figure.update_xaxes(title_text="layer", row=2)
    return figure.update_yaxes(title_text=above, row=1).update_yaxes(title_text=below, row=2)


def neuron_figure(edit: WeightEdit, layers: int) -> go.Figure:
    """MLP edits by layer: sums of positive and of negative λ above, counts of edited neurons below."""
    figure = _two_rows(layers, 440, "Σ λ", "neurons")
    sites = [site for site in edit.sites if site.block == "mlp"]
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
                text=[f"{value:+.3f}" for value in sums], textposition="none", hovertemplate=hover,
            )  # fmt: skip
    return figure.update_layout(barmode="relative", bargap=0.25)


def diagnosis_figure(diagnosis: Diagnosis, layers: int) -> go.Figure:
    """Split-half cosine (above) and AUROC with interval (below) by layer, one line per block; noise is crossed."""
    figure = _two_rows(layers, 480, "split-half cosine", "AUROC")
    for block, (name, colour, symbol, offset) in _STYLES.items():
        found = [(site, entry) for site, entry in sorted(diagnosis.sites.items()) if site.block == block]
        hovers = [
            f"<b>{site}</b>{' (noise)' if e.noise else ''}<br>split-half cosine "
            f"{_NUMBER.value(e.split_half_cosine)}<br>AUROC {_NUMBER.value(e.auroc)} ({_NUMBER.value(e.auroc_low)} to "
            f"{_NUMBER.value(e.auroc_high)})<br>norm of v {_NUMBER.value(e.norm)}"
            for site, e in found
        ]
        shared = {"x": [site.layer + offset for site, _ in found], "hovertext": hovers, "hovertemplate": _HOVER}
        bars = themes.error_bars([(e.auroc_low, e.auroc, e.auroc_high) for _, e in found], colour, width=2)
        rows = ([e.split_half_cosine for _, e in found], None), ([e.auroc for _, e in found], bars)
        for row, (values, error) in enumerate(rows, start=1) if found else ():
            place: dict[str, Any] = {"row": row, "col": 1, "showlegend": row == 1, **shared}
            figure.add_scatter(
                y=values, error_y=error, name=name, legendgroup=name, mode="lines+markers",
                line={"color": colour, "width": 1.5}, marker={"symbol": symbol, "size": 6}, **place,
            )  # fmt: skip
            crossed = [value if e.noise else None for value, (_, e) in zip(values, found, strict=True)]
            if any(value is not None for value in crossed):
                place["showlegend"] = not any(trace.name == "noise" for trace in figure.data)
                cross = {"symbol": "x", "size": 9, "color": themes.CHOSEN}
                figure.add_scatter(y=crossed, name="noise", legendgroup="noise", mode="markers", marker=cross, **place)
    figure.add_hline(y=0.5, row=2, col=1, line={"dash": "dot", "width": 1}, annotation_text="chance")
    figure.update_xaxes(showgrid=True)
    return figure.update_yaxes(rangemode="tozero", row=1)
