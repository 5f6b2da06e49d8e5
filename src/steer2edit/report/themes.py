"""Colours and plotly templates. The page applies the light or the dark template; traces use colours for both."""

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
    axis = {
        "gridcolor": grid,
        "zerolinecolor": line,
        "linecolor": line,
        "tickcolor": line,
        "tickfont": {"color": muted},
        "title": {"font": {"color": text}, "standoff": 10},
        "automargin": True,
    }
    return {
        "layout": {
            "font": {"family": FONT, "size": 13, "color": text},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {
                "bgcolor": raised,
                "bordercolor": line,
                "font": {"color": text, "family": FONT},
                "align": "left",
            },
            "legend": {"font": {"color": text}, "bgcolor": "rgba(0,0,0,0)"},
            "annotationdefaults": {"font": {"color": muted, "size": 12}},
            "shapedefaults": {"line": {"color": muted}},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": muted, "activecolor": text},
            "coloraxis": {
                "colorscale": [list(stop) for stop in diverging],
                "colorbar": {"outlinewidth": 0, "tickfont": {"color": muted}, "thickness": 12},
            },
        }
    }
