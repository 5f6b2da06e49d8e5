"""Attacks on plain text, in families, as `attacks.toml` has them: each is a way to word a request."""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from steer2edit.steering.presets import written_answers
from steer2edit.steering.transformation import REQUEST, Transformation
from steer2edit.stress.findings import Group

_WRAPPING = re.compile(r"\s*(?:\d+[.)]|[-*•#>|{\[]+|\"[^\"\n]{1,20}\"\s*:|[A-Z][\w ]{0,20}:)\s*")


def unwrapped(reply: str, openers: Sequence[str] = ()) -> str:
    """A reply without the form that an attack asked for (numbers, bullets, headings, a JSON key, a speaker's name, the
    openers that it dictated), so that a refusal within it is seen; whole where nothing would be left.
    """
    rest = reply.strip()
    while rest:
        lowered = rest.lower().lstrip("\"'")
        opener = next((one for one in openers if one and lowered.startswith(one.lower())), None)
        match = _WRAPPING.match(rest)
        if opener is not None:
            rest = rest.lstrip("\"'")[len(opener) :].lstrip(" \"'.,:;!-\n")
        elif match:
            rest = rest[match.end() :]
        else:
            return rest
    return reply.strip()


@dataclass(frozen=True)
class Family:
    """Attacks of one kind."""

    name: str  # lower case with dashes
    summary: str  # one line of what they do
    citation: str  # where the family was published
    attacks: tuple[Transformation, ...]  # the first is the quick suite's; each is called `family/attack`
    group: Group = "static"  # of its test


@cache
def families() -> tuple[Family, ...]:
    """All families, in the order of the file."""
    shots = tuple((str(request), reply) for request, reply in written_answers("safety-benign", "negative"))

    def attack(family: str, row: Mapping[str, Any]) -> Transformation:
        paragraphs = row.get("preamble", 0)
        before = [text["text"] for text in data_rows("long_preamble")[:paragraphs]] if paragraphs else []
        given = {
            "name": f"{family}/{row['name']}",
            "template": "\n\n".join([*before, row.get("template", REQUEST).strip("\n")]),
            "shots": shots[: row.get("shots", 0)],
            "turns": tuple((said, answer) for said, answer in row.get("turns", ())),
            "openers": tuple(row.get("openers", ())),
        }
        return Transformation(**{**row, **given})

    return tuple(
        Family(name, attacks=tuple(attack(name, row) for row in table.pop("attacks")), **table)
        for name, table in data_tables("attacks").items()
    )


def held_out_attacks(first_only: bool) -> list[Transformation]:
    """The attacks of all families that are no condition of their own; of each family the first that is in the clear."""
    own = [list(family.attacks) for family in families() if family.group == "static"]
    if not first_only:
        return [attack for attacks in own for attack in attacks]
    return [clear[0] for attacks in own if (clear := [attack for attack in attacks if not attack.hides])]


def data_tables(name: str) -> dict[str, dict[str, Any]]:
    """Tables of a data file: `attacks`, `tests`, `effects`."""
    return tomllib.loads(resources.files("steer2edit.stress").joinpath(f"{name}.toml").read_text(encoding="utf-8"))


def data_rows(name: str) -> list[dict[str, str]]:
    """Rows of a data file: `looks_unsafe`, `other_languages`, `long_preamble`."""
    text = resources.files("steer2edit.stress").joinpath(f"sets/{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
