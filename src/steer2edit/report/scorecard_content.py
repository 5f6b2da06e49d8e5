"""Everything that the page of a scorecard prints, as text ready to print."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from steer2edit.estimates import Estimate, Notation
from steer2edit.report.panels import Panel
from steer2edit.report.scorecard_figure import rates_panel
from steer2edit.report.text import counts, visible
from steer2edit.stress.contract import Contract
from steer2edit.stress.records import Entry, Line
from steer2edit.stress.scorecard import SUMMARY_TITLES, Scorecard

Replies = Mapping[str, Mapping[str, Mapping[str, Sequence[str]]]]
"""By test, arm and line."""

SHOWN_REPLIES = 3
SHOWN_CHARACTERS = 120

_OUTCOMES = {
    "held": "held",
    "weakened": "weakened",
    "failed": "failed",
    "cost": "a cost",
    "no-cost": "no cost",
    "control": "control",
    "open": "open",
}
_VERDICTS = {
    "broken": "Broken",
    "no-effect": "No effect",
    "no-gain": "No gain",
    "loss": "A loss",
    "gain": "A gain",
}


@dataclass(frozen=True)
class ArmCell:
    """What one arm came to in one line, with its difference to the first arm."""

    value: str
    interval: str = ""
    counts: str = ""
    difference: str = ""


@dataclass(frozen=True)
class LineRow:
    """One line of a test."""

    name: str
    metric: str
    outcome: str
    sentence: str
    note: str
    cells: tuple[ArmCell | None, ...]
    against_steering: str


@dataclass(frozen=True)
class ShownReplies:
    """Replies of one line, by arm; shortened unless the page shows all."""

    line: str
    arms: tuple[tuple[str, tuple[str, ...]], ...]
    left_out: int


@dataclass(frozen=True)
class EntrySection:
    """One test with its lines and replies."""

    name: str
    summary: str
    citation: str
    message: str
    arms: tuple[str, ...]
    rows: tuple[LineRow, ...]
    compares_steering: bool
    facts: str
    replies: tuple[ShownReplies, ...]


def scorecard_content(card: Scorecard, replies: Replies, *, full_replies: bool) -> dict[str, Any]:
    """The template's variables. All strings are plain text; the template escapes them."""
    groups = [("Plain prompts", [card.plain]), *card.groups()]
    panels: list[Panel | None] = [rates_panel(f"rates-{i}", title, own, card) for i, (title, own) in enumerate(groups)]
    return {
        "title": visible(card.title),
        "model": visible(card.model.name),
        "suite": card.suite,
        "created": card.created.isoformat(),
        "verdict": _VERDICTS[card.verdict.kind],
        "verdict_kind": card.verdict.kind,
        "verdict_sentence": visible(card.verdict.sentence),
        "reasons": [visible(reason) for reason in card.verdict.reasons],
        "rules": list(card.verdict.rules.values()),
        "steering": visible(card.steering),
        "contract": _contract(card.contract),
        "counts": _counts(card),
        "summary": _summary(card),
        "groups": [
            (title, panel, [_section(entry, replies.get(entry.name, {}), full_replies) for entry in own])
            for (title, own), panel in zip(groups, panels, strict=True)
        ],
        "figures": {panel.name: panel.data for panel in panels if panel is not None},
        "full_replies": full_replies,
        "command": visible(card.command),
        "provenance": _provenance(card),
        "prompts": [(visible(name), f"{one.n}, {visible(one.source)}") for name, one in card.prompts.items()],
    }


_PERCENT, _POINTS = (Notation(".1f", unit, 100.0, typeset=True) for unit in ("\u00a0%", " points"))
_NUMBER, _CHANGE = Notation(typeset=True), Notation(".3f", signed=True, typeset=True)


def _difference(found: Estimate, share: bool) -> str:
    """`+12.5 points (+3.1 to +22.0 points)`, `+0.148 (+0.120 to +0.176)`."""
    notation = replace(_POINTS, signed=True) if share else _CHANGE
    return notation.value(found) + (f" ({notation.interval(found)})" if found.has_interval else "")


def _contract(contract: Contract) -> dict[str, Any]:
    """The claim, the arms, and by condition its ending and its lines: rate and share that is left of every arm."""
    arms = list(dict.fromkeys(arm for one in contract.conditions for line in one.lines for arm in line.arms))
    return {
        "claim": contract.claim,
        "rules": contract.rules,
        "arms": list(map(visible, arms)),
        "conditions": [
            {
                "title": one.title,
                "ending": one.words,
                "seconds": f"{one.seconds:.0f} s",
                "lines": [
                    {
                        "name": visible(line.name),
                        "outcome": _OUTCOMES[line.outcome],
                        "cells": [_contract_cell(line, arm) for arm in arms],
                    }
                    for line in one.lines
                ],
            }
            for one in contract.conditions
        ],
    }


def _contract_cell(line: Line, arm: str) -> ArmCell | None:
    found, share = line.arms.get(arm), line.shares.get(arm)
    if found is None:
        return None
    left = "" if share is None or share.low is None else f"left: {_PERCENT.sentence(share)}"
    return ArmCell(_PERCENT.value(found), _PERCENT.interval(found), counts(found), left)


def _counts(card: Scorecard) -> list[tuple[str, list[tuple[str, int]]]]:
    """By group, how many lines came to what."""
    rows = []
    for title, tests in card.groups():
        outcomes = [line.outcome for test in tests for line in test.lines]
        found = [(words, outcomes.count(outcome)) for outcome, words in _OUTCOMES.items() if outcome in outcomes]
        untested = sum(not test.tested for test in tests)
        rows.append((title, [*found, *([("not tested", untested)] if untested else [])]))
    return rows


def _summary(card: Scorecard) -> list[tuple[str, list[str]]]:
    sections = card.summary
    return [(title, [visible(text) for text in sections[name]]) for name, title in SUMMARY_TITLES.items()]


def _section(entry: Entry, replies: Mapping[str, Mapping[str, Sequence[str]]], full: bool) -> EntrySection:
    arms = tuple(dict.fromkeys(arm for line in entry.lines for arm in line.arms))
    facts = [f"{name}: {value}" for name, value in entry.facts.items() if isinstance(value, str | int | float)]
    return EntrySection(
        name=visible(entry.name),
        summary=visible(entry.summary),
        citation=visible(entry.citation),
        message="" if entry.tested else visible(entry.message),
        arms=tuple(map(visible, arms)),
        rows=tuple(_row(line, arms) for line in entry.lines),
        compares_steering=any(line.edit_minus_steering is not None for line in entry.lines),
        facts=visible("; ".join(facts)),
        replies=tuple(_replies(replies, full)),
    )


def _row(line: Line, arms: Sequence[str]) -> LineRow:
    against = line.edit_minus_steering
    return LineRow(
        visible(line.name),
        visible(line.metric),
        _OUTCOMES[line.outcome],
        visible(line.sentence),
        visible(line.note),
        tuple(_cell(line, arm) for arm in arms),
        "" if against is None else _difference(against, line.share),
    )


def _cell(line: Line, arm: str) -> ArmCell | None:
    found = line.arms.get(arm)
    if found is None:
        return None
    notation = _PERCENT if line.share else _NUMBER
    difference = line.differences.get(arm)
    return ArmCell(
        notation.value(found),
        notation.interval(found),
        counts(found),
        "" if difference is None else _difference(difference, line.share),
    )


def _replies(replies: Mapping[str, Mapping[str, Sequence[str]]], full: bool) -> list[ShownReplies]:
    lines = dict.fromkeys(line for by_line in replies.values() for line in by_line)
    shown = []
    for line in lines:
        texts = {arm: by_line[line] for arm, by_line in replies.items() if line in by_line}
        most = max(map(len, texts.values()))
        arms = tuple((visible(arm), tuple(_shortened(text, full) for text in (own if full else own[:SHOWN_REPLIES])))
                     for arm, own in texts.items())  # fmt: skip
        shown.append(ShownReplies(visible(line), arms, 0 if full else max(0, most - SHOWN_REPLIES)))
    return shown


def _shortened(text: str, full: bool) -> str:
    cut = text if full or len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS].rstrip()} …"
    return visible(cut)


def _provenance(card: Scorecard) -> list[tuple[str, str]]:
    rows = {
        "model": card.model.name,
        "revision": card.model.revision or "",
        "model fingerprint": card.model.fingerprint,
        "edit": card.edit.name,
        "edit SHA-256": card.edit.sha256,
        "vectors SHA-256": card.vectors_sha256 or "",
        "suite": card.suite,
        **{name: "" if value is None else str(value) for name, value in card.settings.items() if name != "suite"},
        **card.versions,
    }
    return [(visible(name), visible(value)) for name, value in rows.items() if value]
