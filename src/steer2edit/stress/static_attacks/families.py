"""The families of ways to word a request, as `static_attacks.toml` has them."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from steer2edit.steering import find_behaviour
from steer2edit.stress.findings import Group
from steer2edit.stress.static_attacks.transformation import REQUEST, Transformation


@dataclass(frozen=True)
class Family:
    """Attacks of one kind.

    Args:
        name: lower case with dashes.
        summary: one line of what they do.
        citation: where the family was published.
        attacks: the first is the quick suite's; each is called `family/attack`.
        group: of its test.
    """

    name: str
    summary: str
    citation: str
    attacks: tuple[Transformation, ...]
    group: Group = "static"


@cache
def families() -> tuple[Family, ...]:
    """All families, in the order of the file."""
    data = resources.files("steer2edit.stress.static_attacks").joinpath("static_attacks.toml")
    return tuple(
        Family(name, attacks=tuple(_transformation(name, row) for row in table.pop("attacks")), **table)
        for name, table in tomllib.loads(data.read_text(encoding="utf-8")).items()
    )


def held_out_attacks(first_only: bool) -> list[Transformation]:
    """The attacks of all families that are no condition of their own; of each family the first that is in the clear."""
    own = [list(family.attacks) for family in families() if family.group == "static"]
    if not first_only:
        return [attack for attacks in own for attack in attacks]
    return [clear[0] for attacks in own if (clear := [attack for attack in attacks if not attack.hides])]


@cache
def harmless_shots() -> tuple[tuple[str, str], ...]:
    """Harmless requests with helpful answers, from the training split: never among the prompts that are asked."""
    return tuple(
        (str(example.prompt), example.response)
        for example in find_behaviour("safety-benign").examples()
        if example.label == "negative" and example.split == "train" and example.response is not None
    )


def data_rows(name: str) -> list[dict[str, str]]:
    """Rows of a data file: `looks_unsafe`, `other_languages`, `long_preamble`."""
    text = resources.files("steer2edit.stress").joinpath(f"sets/{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _transformation(family: str, row: Mapping[str, Any]) -> Transformation:
    given = {**row, "template": row.get("template", REQUEST).strip("\n"), "name": f"{family}/{row['name']}"}
    if paragraphs := given.get("preamble", 0):
        before = "\n\n".join(text["text"] for text in data_rows("long_preamble")[:paragraphs])
        given["template"] = f"{before}\n\n{given['template']}"
    given["shots"] = harmless_shots()[: row.get("shots", 0)]
    given["turns"] = tuple((said, answer) for said, answer in row.get("turns", ()))
    given["openers"] = tuple(row.get("openers", ()))
    return Transformation(**given)
