"""Colours, error bars and plotly templates: the page applies the light or the dark one, traces use colours for both."""

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
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


@cache
def themes() -> dict[str, Any]:
    """The plotly templates `light` and `dark`, as JSON; the middle of their diverging scales, λ = 0, is quiet."""
    found: dict[str, Any] = json.loads(
        resources.files("steer2edit.report").joinpath("templates/themes.json").read_text(encoding="utf-8")
    )
    return found


def error_bars(
    ends: Sequence[tuple[float | None, float | None, float | None]], colour: object, width: int = 3
) -> dict[str, object]:
    """Bars from (low, value, high) of every mark; none where one of them is not known, hidden without any."""
    above = [None if value is None or high is None else high - value for _, value, high in ends]
    below = [None if value is None or low is None else value - low for low, value, _ in ends]
    if not any(value is not None for value in above):
        return {"visible": False}
    return {"array": above, "arrayminus": below, "color": colour, "thickness": 1, "width": width}
