"""A transformation of a prompt: a template around a request, which may be coded, and what stands before it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from steer2edit.errors import DataError, InvalidValueError
from steer2edit.models import Message, Prompt
from steer2edit.stress.static_attacks.codings import encoded

REQUEST = "{request}"
Shots = Literal["turns", "transcript"]


@dataclass(frozen=True)
class Transformation:
    """A pure function from a prompt to the prompt of an attack. It changes the last message, the user's, alone.

    Args:
        name: within its family.
        template: of the new message; `{request}` stands for the request.
        coding: how the request is written, by name.
        system: replaces the system message, if given.
        shots: pairs of a request and an answer in front of the request.
        shots_as: whether they are turns of the conversation, or a transcript within the message.
        turns: scripted messages of user and assistant in front, pair by pair; the request may stand in one of them.
        openers: what the attack asks the reply to begin with.
        opener: what the reply is begun with, for the model to go on.
        preamble: how many paragraphs of a harmless text the template begins with.

    Raises:
        InvalidValueError: the template does not have the request exactly once, or there is no such coding.
    """

    name: str
    template: str = REQUEST
    coding: str = "none"
    system: str | None = None
    shots: tuple[tuple[str, str], ...] = ()
    shots_as: Shots = "turns"
    turns: tuple[tuple[str, str], ...] = ()
    openers: tuple[str, ...] = ()
    opener: str = ""
    preamble: int = 0

    def __post_init__(self) -> None:
        if sum(text.count(REQUEST) for text in (self.template, *(text for pair in self.turns for text in pair))) != 1:
            raise InvalidValueError(
                f"the template of {self.name!r} needs {REQUEST} exactly once, got {self.template!r}"
            )
        encoded(self.coding, "")

    def __call__(self, prompt: Prompt) -> Prompt:
        """The prompt of the attack.

        Raises:
            DataError: the prompt does not end with a message of the user.
        """
        request = encoded(self.coding, request_of(prompt))
        text = self._transcript + self.template.replace(REQUEST, request)
        pairs = [*(self.shots if self.shots_as == "turns" else ()), *self.turns]
        turns = [
            Message(role=role, content=said.replace(REQUEST, request) if pair in self.turns else said)
            for pair in pairs
            for role, said in zip(("user", "assistant"), pair, strict=True)
        ]
        if isinstance(prompt, str) and self.system is None and not turns:
            return text
        before: list[Message] = [] if isinstance(prompt, str) else list(prompt[:-1])
        if self.system is not None:
            before = [message for message in before if message["role"] != "system"]
            before.insert(0, Message(role="system", content=self.system))
        return [*before, *turns, Message(role="user", content=text)]

    @property
    def hides(self) -> bool:
        """Whether the words of the request are not in the clear, so that a model may be unable to read them."""
        return self.coding != "none"

    @property
    def _transcript(self) -> str:
        if self.shots_as != "transcript":
            return ""
        return "".join(f"Human: {request}\nAssistant: {answer}\n\n" for request, answer in self.shots)


def request_of(prompt: Prompt) -> str:
    """Text of the last message, the user's.

    Raises:
        DataError: the prompt is empty or does not end with a message of the user.
    """
    if isinstance(prompt, str):
        return prompt
    if not prompt or prompt[-1].get("role") != "user":
        raise DataError(f"a prompt to attack must end with a message of the user, got {list(prompt)!r}.")
    return prompt[-1]["content"]


_WRAPPING = re.compile(r"\s*(?:\d+[.)]|[-*•#>|{\[]+|\"[^\"\n]{1,20}\"\s*:|[A-Z][\w ]{0,20}:)\s*")


def unwrapped(reply: str, openers: Sequence[str] = ()) -> str:
    """A reply without the form that an attack asked for, so that a refusal within it is seen.

    Left out at the beginning, as often as they come: list numbers and bullets, headings, a JSON key, a speaker's
    name, and the openers that the attack dictated.

    Returns:
        The rest, or the whole reply where nothing would be left.
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
