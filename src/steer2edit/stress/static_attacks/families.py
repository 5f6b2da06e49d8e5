"""The families of static attacks, read from `static_attacks.toml`."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from steer2edit.steering.presets import preset_examples
from steer2edit.stress.static_attacks.transformation import REQUEST, Transformation


@dataclass(frozen=True)
class Family:
    """Attacks of one kind.

    Args:
        name: lower case with dashes.
        summary: one line of what they do.
        citation: where the family was published.
        attacks: the first is the quick suite's.
    """

    name: str
    summary: str
    citation: str
    attacks: tuple[Transformation, ...]


@cache
def families() -> tuple[Family, ...]:
    """All families, in the order of the file."""
    text = (
        resources.files("steer2edit.stress.static_attacks").joinpath("static_attacks.toml").read_text(encoding="utf-8")
    )
    return tuple(
        Family(name, table["summary"], table["citation"], tuple(_transformation(row) for row in table["attacks"]))
        for name, table in tomllib.loads(text).items()
    )


@cache
def harmless_shots() -> tuple[tuple[str, str], ...]:
    """Harmless requests with helpful answers, from the training split: never among the prompts that are asked."""
    examples, _ = preset_examples("safety-benign")
    return tuple(
        (str(example.prompt), example.response)
        for example in examples
        if example.label == "negative" and example.split == "train" and example.response is not None
    )


def _transformation(row: Mapping[str, Any]) -> Transformation:
    given = {**row, "template": row.get("template", REQUEST).strip("\n")}
    given["shots"] = harmless_shots()[: row.get("shots", 0)]
    given["openers"] = tuple(row.get("openers", ()))
    return Transformation(**given)
