"""Labellers: functions from generated replies to their class, positive or negative; `None` leaves a reply out."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, Literal

from steer2edit.errors import DataError, InvalidValueError, did_you_mean
from steer2edit.models import Prompt, Reply
from steer2edit.steering.refusal import RefusalPhrases, refusal_phrases

Label = Literal["positive", "negative"]


@dataclass(frozen=True)
class Candidate:
    """A generated reply that waits for a label."""

    prompt: Prompt
    reply: Reply
    reference: str | None = None  # the known right answer, if the data has one


Labeller = Callable[[Sequence[Candidate]], list[Label | None]]


def by_refusal(phrases: RefusalPhrases, refused: Label = "positive", answered: Label = "negative") -> Labeller:
    """Refusals get one label, other replies the other; empty ones, and those that do not show it, are left out."""
    names: dict[bool | None, Label | None] = {True: refused, False: answered, None: None}
    return lambda candidates: [names[phrases.refuses(c.reply)] for c in candidates]


_ENDS = 0.25  # share of the replies at either end, the shortest and the longest


def by_length(candidates: Sequence[Candidate]) -> list[Label | None]:
    """The shortest quarter of the replies that ended by themselves is positive, the longest quarter negative.

    A reply that was cut off counts among the longest, never among the shortest: its length is not known. The thought of
    a reasoning model counts, and is part of the example.
    """
    finished = sorted(len(c.reply.ids) for c in candidates if c.reply.finished and c.reply.ids)
    every = sorted(len(c.reply.ids) for c in candidates if c.reply.ids)
    if not finished:
        return [None] * len(candidates)
    shortest = finished[max(0, round(len(finished) * _ENDS) - 1)]
    longest = every[min(len(every) - 1, round(len(every) * (1 - _ENDS)))]
    if shortest >= longest:
        return [None] * len(candidates)
    long: list[Label | None] = ["negative" if len(c.reply.ids) >= longest else None for c in candidates]
    short = [c.reply.finished and 0 < len(c.reply.ids) <= shortest for c in candidates]
    return ["positive" if is_short else other for is_short, other in zip(short, long, strict=True)]


def example_text(labeller: Labeller | None, reply: Reply) -> str | None:
    """What of a reply is an example: what its labeller looked at, the answer or all of it."""
    return reply.text if labeller is by_length else reply.answer


def by_reference(candidates: Sequence[Candidate]) -> list[Label | None]:
    """Replies that give the reference answer are positive, other replies negative; a DataError without a reference.

    Compared as text without case, punctuation and articles: the reply must equal the reference, or, where the
    reference is a number, have it as its last number.
    """

    def label(candidate: Candidate) -> Label | None:
        if candidate.reference is None:
            raise DataError(
                f"the labeller 'reference' needs a 'reference' in every row; {candidate.prompt!r} has none."
            )
        if not (text := candidate.reply.answer):
            return None
        wanted = candidate.reference.strip()
        if re.fullmatch(r"-?[\d,]*\.?\d+", wanted):
            found = re.findall(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)", text)
            right = bool(found) and float(found[-1].replace(",", "")) == float(wanted.replace(",", ""))
        else:
            right = words(text) == words(wanted)
        return "positive" if right else "negative"

    def words(text: str) -> list[str]:
        return [word for word in re.sub(r"[^\w\s]", " ", text.lower()).split() if word not in {"a", "an", "the"}]

    return [label(candidate) for candidate in candidates]


def by_callable(function: Callable[[Prompt, str], Any]) -> Labeller:
    """A user's own `function(prompt, answer)`; it sees no thought. A DataError where it returns what is no label."""

    def label(candidates: Sequence[Candidate]) -> list[Label | None]:
        found = [None if c.reply.answer is None else function(c.prompt, c.reply.answer) for c in candidates]
        if wrong := [value for value in found if value not in ("positive", "negative", None)]:
            raise DataError(f"a labeller must return 'positive', 'negative' or None, got {wrong[0]!r}.")
        return found

    return label


_NAMED: dict[str, Callable[[], Labeller]] = {
    "refusal": lambda: by_refusal(refusal_phrases("strict")),
    "refusal-official": lambda: by_refusal(refusal_phrases("official")),
    "compliance": lambda: by_refusal(refusal_phrases("strict"), "negative", "positive"),
    "length": lambda: by_length,
    "reference": lambda: by_reference,
}


def find_labeller(name: str) -> Labeller:
    """A labeller by name, or `module:function`; an InvalidValueError where neither can be had."""
    if name in _NAMED:
        return _NAMED[name]()
    if ":" not in name:
        raise InvalidValueError(
            f"unknown labeller {name!r}. {did_you_mean(name, _NAMED)} Or name your own function as module:function."
        )
    try:
        function = resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidValueError(f"cannot import the labeller {name!r}: {error}") from error
    if not callable(function):
        raise InvalidValueError(f"the labeller {name!r} is not a function: name one as module:function.")
    return by_callable(function)
