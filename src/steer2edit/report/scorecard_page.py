"""The page of a stress run's scorecard: one file with everything inline, made without a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from steer2edit.artifacts.manifest import read_json
from steer2edit.report import themes
from steer2edit.report.html import plot_text, rendered, visible_json, write_page
from steer2edit.stress.run import SCORECARD_FILE, StressFolder
from steer2edit.stress.scorecard import (
    BROKEN,
    NOISE,
    SUMMARY_TITLES,
    ArmRecord,
    Entry,
    Line,
    Scorecard,
    named,
    read_scorecard,
)

Replies = Mapping[str, Mapping[str, Mapping[str, Sequence[str]]]]
"""By test, arm and line."""

SHOWN_REPLIES, SHOWN_CHARACTERS = 3, 120
_MOST_LINES = 60
_KINDS = {
    "base": (themes.BASE, "circle"),
    "steering": (themes.STEERING, "diamond"),
    "edit": (themes.EDIT, "square"),
    "baseline": (themes.BEYOND, "cross"),
}


def render_scorecard(card: Scorecard, replies: Replies | None = None, *, full_replies: bool = False) -> str:
    """The scorecard as one HTML page that works offline, with what the models said, by test, arm and line.

    Its texts are untrusted. Unless all replies are wanted, a few of each line are shown, shortened.
    """
    card = Scorecard.model_validate(visible_json(card.to_json()))
    groups = [("Plain prompts", [card.plain]), *card.groups()]
    lines = [rate_lines(tests, card) for _, tests in groups]
    provenance = {
        "model": card.model.name,
        "revision": card.model.revision,
        "model fingerprint": card.model.fingerprint,
        "edit": card.edit.name,
        "edit SHA-256": card.edit.sha256,
        "vectors SHA-256": card.vectors_sha256,
        "suite": card.suite,
        **{name: value for name, value in card.settings.items() if name != "suite"},
        **card.versions,
    }
    content = {
        "card": card,
        "broken": BROKEN,
        "noise": NOISE,
        "titles": SUMMARY_TITLES,
        "groups": [(title, len(own), tests) for (title, tests), own in zip(groups, lines, strict=True)],
        "most_lines": _MOST_LINES,
        "replies": {name: _shown(visible_json(own), full_replies) for name, own in (replies or {}).items()},
        "full_replies": full_replies,
        "arms_of": lambda lines: list(dict.fromkeys(arm for line in lines for arm in line.arms)),
        "provenance": [(name, str(value)) for name, value in provenance.items() if value not in (None, "")],
    }
    figures = {f"rates-{i}": _rates_figure(own[:_MOST_LINES], card.arms) for i, own in enumerate(lines) if own}
    return rendered("scorecard", figures, content)


def write_stress_page(run: Path, page: Path | None = None, *, full_replies: bool = False) -> Path:
    """Make the page of a stress run from the `scorecard.json` and the replies in its folder; where it is.

    An ArtifactError if the folder holds no finished stress run, or the page cannot be written.
    """
    card, results = read_scorecard(read_json(run / SCORECARD_FILE)), StressFolder(run)
    replies = {entry.name: results.replies(entry.name) for entry in (card.plain, *card.tests) if entry.tested}
    page = page or run / "report.html"
    write_page(render_scorecard(card, replies, full_replies=full_replies), page, overwrite=True)
    return page


def _shown(replies: Mapping[str, Mapping[str, Sequence[str]]], full: bool) -> list[tuple[str, Any, int]]:
    """(line, replies by arm, how many more there are); shortened unless all are shown."""

    def shortened(text: str) -> str:
        return text if full or len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS].rstrip()} …"

    shown = []
    for line in dict.fromkeys(line for by_line in replies.values() for line in by_line):
        texts = {arm: by_line[line] for arm, by_line in replies.items() if line in by_line}
        longest = max(map(len, texts.values()))
        most = longest if full else SHOWN_REPLIES
        few = {arm: list(map(shortened, own[:most])) for arm, own in texts.items()}
        shown.append((line, few, max(0, longest - most)))
    return shown


def rate_lines(tests: Sequence[Entry], card: Scorecard) -> list[tuple[str, Line]]:
    """The rates of some tests that some arm has, by name."""
    every = [(named(test.name, line.name), line) for test in tests for line in test.lines if line.share]
    return [(name, line) for name, line in every if any(_label(line, arm) in line.arms for arm in card.arms)]


def _label(line: Line, arm: ArmRecord) -> str:
    """The label under which a line has an arm: for a line on other arms than the edit, the first of those."""
    return next(iter(line.judged)) if line.judged and arm.kind == "edit" else arm.label


def _rates_figure(lines: Sequence[tuple[str, Line]], arms: Sequence[ArmRecord]) -> go.Figure:
    figure, names = go.Figure(), [plot_text(name) for name, _ in lines]
    for place, arm in enumerate(arms):
        found = [(i, line.arms.get(_label(line, arm))) for i, (_, line) in enumerate(lines)]
        shown = [(i, e) for i, e in found if e is not None and None not in (e.low, e.value, e.high)]
        ends = [(100 * (e.low or 0), 100 * (e.value or 0), 100 * (e.high or 0)) for _, e in shown]
        colour, symbol = _KINDS[arm.kind]
        figure.add_scatter(
            x=[value for _, value, _ in ends],
            y=[i + 0.22 * (place - (len(arms) - 1) / 2) for i, _ in shown],
            error_x=themes.error_bars(ends, colour, width=0),
            mode="markers",
            name=plot_text(arm.label),
            marker={"color": colour, "symbol": symbol, "size": 8},
            customdata=[[e.n, names[i]] for i, e in shown],
            hovertemplate="<b>%{customdata[1]}</b><br>%{x:.1f} %, n = %{customdata[0]}<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(
        height=120 + 34 * len(lines),
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0, "traceorder": "normal"},
        xaxis={"title": {"text": "rate (%)"}, "range": [-3, 103]},
        yaxis={"tickvals": list(range(len(lines))), "ticktext": names, "range": [len(lines) - 0.4, -0.6],
               "zeroline": False},
    )  # fmt: skip
    return figure
