"""Colours, error bars and plotly templates: the page applies the light or the dark one, traces use colours for both."""

from collections.abc import Sequence
from typing import Any

BASE = "#7d8590"
STEERING = "#8b68d0"
EDIT = "#2b7bba"
BEYOND = "#c4682f"
CHOSEN = "#d0437c"
POSITIVE = "#cf5548"
NEGATIVE = "#3d84c6"
ATTN = "#b37a1c"
SSM = "#3f9142"
MLP = "#5b7fd0"
"""Each has a contrast of at least 3 : 1 with the page's light and dark background."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"

# Diverging scales whose middle, λ = 0, is quiet on the page's background.
_LIGHT_DIVERGING = ((0.0, "#1f5c99"), (0.25, "#7fb0d9"), (0.5, "#f1f2f4"), (0.75, "#eb9d88"), (1.0, "#a92b23"))
_DARK_DIVERGING = ((0.0, "#8cc4ff"), (0.25, "#3a6ea5"), (0.5, "#272b31"), (0.75, "#a84a3c"), (1.0, "#ff9f8a"))


def themes() -> dict[str, Any]:
    """The plotly templates `light` and `dark`, as JSON."""
    return {
        "light": _template("#1f2328", "#57606a", "#e4e7eb", "#c3c8ce", "#ffffff", _LIGHT_DIVERGING),
        "dark": _template("#e3e6ea", "#9da5ae", "#2b3036", "#4a5159", "#1d2126", _DARK_DIVERGING),
    }


def _template(
    text: str, muted: str, grid: str, line: str, raised: str, diverging: tuple[tuple[float, str], ...]
) -> dict[str, Any]:
    own, tick, clear = {"color": text}, {"color": muted}, "rgba(0,0,0,0)"
    axis = {
        "gridcolor": grid, "zerolinecolor": line, "linecolor": line, "tickcolor": line, "tickfont": tick,
        "title": {"font": own, "standoff": 10}, "automargin": True,
    }  # fmt: skip
    layout = {
        "font": {"family": FONT, "size": 13, **own},
        "paper_bgcolor": clear,
        "plot_bgcolor": clear,
        "xaxis": axis,
        "yaxis": axis,
        "hoverlabel": {"bgcolor": raised, "bordercolor": line, "font": {"family": FONT, **own}, "align": "left"},
        "legend": {"font": own, "bgcolor": clear},
        "annotationdefaults": {"font": {"size": 12, **tick}},
        "shapedefaults": {"line": tick},
        "modebar": {"bgcolor": clear, "color": muted, "activecolor": text},
        "coloraxis": {
            "colorscale": [list(stop) for stop in diverging],
            "colorbar": {"outlinewidth": 0, "tickfont": tick, "thickness": 12},
        },
    }
    return {"layout": layout}


def error_bars(
    ends: Sequence[tuple[float | None, float | None, float | None]], colour: object, width: int = 3
) -> dict[str, object]:
    """Bars from (low, value, high) of every mark; none where one of them is not known, hidden without any."""
    above = [None if value is None or high is None else high - value for _, value, high in ends]
    below = [None if value is None or low is None else value - low for low, value, _ in ends]
    if not any(value is not None for value in above):
        return {"visible": False}
    return {"array": above, "arrayminus": below, "color": colour, "thickness": 1, "width": width}
