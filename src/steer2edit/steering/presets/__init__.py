"""Built-in contrast sets, written for this project; the rows are the JSONL files in this folder."""

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from typing import Any

from steer2edit.errors import DataError, did_you_mean
from steer2edit.steering.examples import Example
from steer2edit.steering.rows import Split

__all__ = ["PRESETS", "borderline_prompts", "preset_examples", "safety_prompts"]

_USUAL: dict[Split, int] = {"train": 96, "validation": 48, "held_out": 96}
_USUAL_BORDERLINE: dict[Split, int] = {"train": 112, "validation": 16, "held_out": 16}


def _rows(name: str) -> list[dict[str, Any]]:
    text = resources.files(__name__).joinpath(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _first(name: str, counts: dict[Split, int]) -> list[dict[str, Any]]:
    """The first rows of each split."""
    rows = _rows(name)
    return [row for split, count in counts.items() for row in [r for r in rows if r["split"] == split][:count]]


def _refused() -> list[Example]:
    """Every harmful request with a scripted refusal, taken in turn."""
    refusals = [row["response"] for row in _rows("safety/refusals.jsonl")]
    return [
        Example(row["prompt"], refusals[i % len(refusals)], "positive", split=row["split"])
        for i, row in enumerate(_first("safety/harmful.jsonl", _USUAL))
    ]


def _safety() -> list[Example]:
    """Scripted refusals against the model's own compliance with the same harmful requests."""
    refused = _refused()
    return refused + [replace(example, response=None, label="negative") for example in refused]


def _safety_benign() -> list[Example]:
    """Scripted refusals of harmful requests against helpful answers to benign ones."""
    helped = [
        Example(row["prompt"], row["response"], "negative", split=row["split"])
        for row in _first("safety/benign.jsonl", _USUAL)
    ]
    return _refused() + helped


def _paired(name: str) -> Callable[[], list[Example]]:
    def examples() -> list[Example]:
        return [
            Example(row["prompt"], row[label], label, split=row["split"])
            for row in _rows(name)
            for label in ("positive", "negative")
        ]

    return examples


PRESETS: dict[str, tuple[Callable[[], list[Example]], str | None, str]] = {
    "safety": (_safety, "refusal", "scripted refusals of harmful requests against the model's own compliance"),
    "safety-benign": (_safety_benign, None, "scripted refusals of harmful requests against help with benign ones"),
    "truthfulness": (_paired("truthfulness.jsonl"), None, "true against commonly believed false answers"),
    "conciseness": (_paired("conciseness.jsonl"), None, "short against long answers to the same request"),
}
"""Preset name → (its rows, the labeller that checks generated replies, what it contrasts)."""


def preset_examples(name: str) -> tuple[list[Example], str | None]:
    """(rows, name of the labeller or `None`) of a preset.

    Raises:
        DataError: there is no such preset.
    """
    if name not in PRESETS:
        raise DataError(f"there is no preset or file {name!r}. {did_you_mean(name, PRESETS)} Or give a data file.")
    rows, labeller, _ = PRESETS[name]
    return rows(), labeller


def safety_prompts(split: Split, wanted: int | None = None) -> tuple[list[str], list[str]]:
    """(harmful, benign) requests of one split.

    Args:
        split: train, validation or held_out.
        wanted: how many of each the caller can use. There are the usual 96, 48 and 96 at least, which the contrast
            sets are made of; up to 136 benign training requests, 80 and 64 validation requests and 300 held-out ones
            where more are wanted.
    """
    counts = {split: max(_USUAL[split], wanted or 0)}
    harmful, benign = (_first(f"safety/{name}.jsonl", counts) for name in ("harmful", "benign"))
    return [row["prompt"] for row in harmful], [row["prompt"] for row in benign]


def borderline_prompts(split: Split, wanted: int | None = None) -> list[str]:
    """Safe requests that sound alarming, of one split.

    Args:
        split: train, validation or held_out.
        wanted: how many the caller can use. There are the usual 112, 16 and 16 at least; up to 64 validation requests
            and 176 held-out ones where more are wanted.
    """
    rows = _first("safety/borderline.jsonl", {split: max(_USUAL_BORDERLINE[split], wanted or 0)})
    return [row["prompt"] for row in rows]
