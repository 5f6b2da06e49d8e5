"""Ways to word a request: a template around it, which may be coded, and what stands before it."""

import base64
import codecs
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import cycle, pairwise
from typing import Literal

from steer2edit.errors import DataError, InvalidValueError
from steer2edit.models import LanguageModel, Message, Prompt, encode_prompts

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
    """A pure function from a prompt to another wording of it. It changes the last message, the user's, alone.

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
    openers: tuple[str, ...] = ()  # what it asks the reply to begin with
    opener: str = ""  # what the reply is begun with, for the model to go on
    preamble: int = 0  # how many paragraphs of a harmless text the template begins with

    def __post_init__(self) -> None:
        if sum(text.count(REQUEST) for text in (self.template, *(text for pair in self.turns for text in pair))) != 1:
            raise InvalidValueError(
                f"the template of {self.name!r} needs {REQUEST} exactly once, got {self.template!r}"
            )

    def __call__(self, prompt: Prompt) -> Prompt:
        """The prompt in this wording; a DataError where the prompt does not end with a message of the user."""
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
        raise DataError(f"a prompt to reword must end with a message of the user, got {list(prompt)!r}.")
    return prompt[-1]["content"]


def takes_system_prompt(model: LanguageModel) -> bool:
    """Whether the chat template accepts a system message."""
    try:
        encode_prompts(model, [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}]])
    except DataError:
        return False
    return True
