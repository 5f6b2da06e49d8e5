import re

import pytest
from jinja2 import PackageLoader

from steer2edit.report import themes


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    lighter, darker = sorted((luminance(a), luminance(b)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def page_backgrounds() -> list[str]:
    style = PackageLoader("steer2edit.report").get_source(None, "report.css.jinja")[0]  # type: ignore[arg-type]
    return re.findall(r"--page: (#[0-9a-f]{6})", style)


@pytest.mark.parametrize(
    "name", ["BASE", "STEERING", "EDIT", "BEYOND", "CHOSEN", "POSITIVE", "NEGATIVE", "ATTN", "SSM", "MLP"]
)
def test_marks_can_be_seen_on_both_backgrounds(name: str) -> None:
    light, dark = page_backgrounds()
    assert contrast(getattr(themes, name), light) >= 3
    assert contrast(getattr(themes, name), dark) >= 3


def test_both_heat_map_scales_are_quiet_in_the_middle_and_loud_at_the_ends() -> None:
    for background, theme in zip(page_backgrounds(), ("light", "dark"), strict=True):
        scale = [colour for _, colour in themes.themes()[theme]["layout"]["coloraxis"]["colorscale"]]
        distances = [contrast(colour, background) for colour in scale]
        assert distances[0] > distances[1] > distances[2] < distances[3] < distances[4]
        assert distances[2] < 1.3
