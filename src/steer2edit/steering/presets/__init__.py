"""Built-in contrast sets, written for this project; the rows are the JSONL files in this folder."""

import json
from collections.abc import Callable
from importlib import resources
from typing import Any

from steer2edit.errors import DataError, did_you_mean
from steer2edit.steering.examples import Example
from steer2edit.steering.rows import Split

__all__ = ["PRESETS", "preset_examples", "safety_prompts"]


def _rows(name: str) -> list[dict[str, Any]]:
    text = resources.files(__name__).joinpath(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _refused() -> list[Example]:
    """Every harmful request with a scripted refusal, taken in turn."""
    refusals = [row["response"] for row in _rows("safety/refusals.jsonl")]
    return [
        Example(row["prompt"], refusals[i % len(refusals)], "positive", split=row["split"])
        for i, row in enumerate(_rows("safety/harmful.jsonl"))
    ]


def _safety() -> list[Example]:
    """Scripted refusals against the model's own compliance with the same harmful requests."""
    complied = [Example(row["prompt"], None, "negative", split=row["split"]) for row in _rows("safety/harmful.jsonl")]
    return _refused() + complied


def _safety_benign() -> list[Example]:
    """Scripted refusals of harmful requests against helpful answers to benign ones."""
    helped = [
        Example(row["prompt"], row["response"], "negative", split=row["split"]) for row in _rows("safety/benign.jsonl")
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


def safety_prompts(split: Split) -> tuple[list[str], list[str]]:
    """(harmful, benign) requests of one split of the safety preset."""
    harmful = [row["prompt"] for row in _rows("safety/harmful.jsonl") if row["split"] == split]
    benign = [row["prompt"] for row in _rows("safety/benign.jsonl") if row["split"] == split]
    return harmful, benign
