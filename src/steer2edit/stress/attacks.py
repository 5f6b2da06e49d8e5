"""Attacks on plain text: a template around a request, which may be coded, and what stands before it.

They come in families, as `attacks.toml` has them.
"""

import base64
import codecs
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from itertools import cycle, pairwise
from typing import Any, Literal

from steer2edit.errors import DataError, InvalidValueError
from steer2edit.models import Message, Prompt
from steer2edit.steering.presets import written_answers
from steer2edit.stress.findings import Group

REQUEST = "{request}"
Shots = Literal["turns", "transcript"]

_LEET = str.maketrans("aeiostAEIOST", "431057431057")
_FULL_WIDTH = str.maketrans({code: code + 0xFEE0 for code in range(0x21, 0x7F)})


def _in_pieces(text: str, count: int) -> list[str]:
    """The text as assignments, `a = "..."`."""
    borders = [round(index * len(text) / count) for index in range(count + 1)]
    pieces = [json.dumps(text[start:end], ensure_ascii=False) for start, end in pairwise(borders)]
    return [f"{chr(ord('a') + index)} = {piece}" for index, piece in enumerate(pieces)]


CODINGS: Mapping[str, Callable[[str], str]] = {
    "none": str,
    "base64": lambda text: base64.b64encode(text.encode()).decode("ascii"),
    "rot13": lambda text: codecs.encode(text, "rot13"),
    "leetspeak": lambda text: text.translate(_LEET),
    "full-width": lambda text: text.translate(_FULL_WIDTH),
    "spaced": lambda text: "   ".join(" ".join(word) for word in text.split(" ")),  # three spaces between words
    "halves": lambda text: "\n".join(_in_pieces(text, 2)),
    "five-pieces": lambda text: "\n".join(reversed(_in_pieces(text, 5))),
}


@dataclass(frozen=True)
class Transformation:
    """A pure function from a prompt to the prompt of an attack. It changes the last message, the user's, alone.

    Raises:
        InvalidValueError: the template does not have the request exactly once.
    """

    name: str  # within its family
    template: str = REQUEST  # of the new message; `{request}` stands for the request
    coding: str = "none"  # how the request is written, a key of `CODINGS`
    system: str | None = None  # replaces the system message, if given
    shots: tuple[tuple[str, str], ...] = ()  # pairs of a request and an answer in front of the request
    shots_as: Shots = "turns"  # whether they are turns of the conversation, or a transcript within the message
    # scripted messages of user and assistant in front, pair by pair; the request may stand in one of them
    turns: tuple[tuple[str, str], ...] = ()
    openers: tuple[str, ...] = ()  # what the attack asks the reply to begin with
    opener: str = ""  # what the reply is begun with, for the model to go on
    preamble: int = 0  # how many paragraphs of a harmless text the template begins with

    def __post_init__(self) -> None:
        if sum(text.count(REQUEST) for text in (self.template, *(text for pair in self.turns for text in pair))) != 1:
            raise InvalidValueError(
                f"the template of {self.name!r} needs {REQUEST} exactly once, got {self.template!r}"
            )

    def __call__(self, prompt: Prompt) -> Prompt:
        """The prompt of the attack; a DataError where the prompt does not end with a message of the user."""
        request = CODINGS[self.coding](request_of(prompt))
        text = self.template.replace(REQUEST, request)
        if self.shots_as == "transcript":
            text = "".join(f"Human: {asked}\nAssistant: {answer}\n\n" for asked, answer in self.shots) + text
        shots = self.shots if self.shots_as == "turns" else ()
        said = [text for pair in shots for text in pair]
        said += [text.replace(REQUEST, request) for pair in self.turns for text in pair]
        turns = [Message(role=role, content=text) for role, text in zip(cycle(("user", "assistant")), said)]
        if isinstance(prompt, str) and self.system is None and not turns:
            return text
        before: list[Message] = [] if isinstance(prompt, str) else list(prompt[:-1])
        if self.system is not None:
            before = [message for message in before if message["role"] != "system"]
            before.insert(0, Message(role="system", content=self.system))
        return [*before, *turns, Message(role="user", content=text)]

    def without_system(self) -> "Transformation":
        """For a chat template that takes no system message: that is put first in the user's."""
        text = f"{self.system}\n\n{self.template}" if self.system else self.template
        return replace(self, system=None, template=text)

    @property
    def hides(self) -> bool:
        """Whether the words of the request are not in the clear, so that a model may be unable to read them."""
        return self.coding != "none"


def request_of(prompt: Prompt) -> str:
    """Text of the last message, the user's; a DataError where there is none."""
    if isinstance(prompt, str):
        return prompt
    if not prompt or prompt[-1].get("role") != "user":
        raise DataError(f"a prompt to attack must end with a message of the user, got {list(prompt)!r}.")
    return prompt[-1]["content"]


_WRAPPING = re.compile(r"\s*(?:\d+[.)]|[-*•#>|{\[]+|\"[^\"\n]{1,20}\"\s*:|[A-Z][\w ]{0,20}:)\s*")


def unwrapped(reply: str, openers: Sequence[str] = ()) -> str:
    """A reply without the form that an attack asked for, so that a refusal within it is seen.

    Left out at the beginning, as often as they come: list numbers and bullets, headings, a JSON key, a speaker's
    name, and the openers that the attack dictated; unless nothing would be left.
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
    data = resources.files("steer2edit.stress").joinpath("attacks.toml")
    shots = tuple((str(request), reply) for request, reply in written_answers("safety-benign", "negative"))

    def attack(family: str, row: Mapping[str, Any]) -> Transformation:
        before = [text["text"] for text in data_rows("long_preamble")[: row.get("preamble", 0)]]
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
        for name, table in tomllib.loads(data.read_text(encoding="utf-8")).items()
    )


def held_out_attacks(first_only: bool) -> list[Transformation]:
    """The attacks of all families that are no condition of their own; of each family the first that is in the clear."""
    own = [list(family.attacks) for family in families() if family.group == "static"]
    if not first_only:
        return [attack for attacks in own for attack in attacks]
    return [clear[0] for attacks in own if (clear := [attack for attack in attacks if not attack.hides])]


def data_rows(name: str) -> list[dict[str, str]]:
    """Rows of a data file: `looks_unsafe`, `other_languages`, `long_preamble`."""
    text = resources.files("steer2edit.stress").joinpath(f"sets/{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
