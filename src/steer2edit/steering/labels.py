"""Labellers: which generated replies are positive examples of a behaviour, and which negative.

A labeller is a plain function from replies to labels; `None` leaves a reply out.
"""

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from steer2edit.errors import DataError, InvalidValueError, did_you_mean
from steer2edit.models import Prompt, Reply
from steer2edit.steering.refusal import RefusalPhrases, refusal_phrases

Label = Literal["positive", "negative"]


@dataclass(frozen=True)
class Candidate:
    """A generated reply that waits for a label.

    Args:
        prompt: what was asked.
        reply: what the model answered.
        reference: the known right answer, if the data has one.
    """

    prompt: Prompt
    reply: Reply
    reference: str | None = None


Labeller = Callable[[Sequence[Candidate]], list[Label | None]]


def by_refusal(phrases: RefusalPhrases, refused: Label = "positive", answered: Label = "negative") -> Labeller:
    """Refusals get one label, other replies the other; empty ones, and those that do not show it, are left out."""
    names: dict[bool | None, Label | None] = {True: refused, False: answered, None: None}
    return lambda candidates: [names[phrases.refuses(c.reply)] for c in candidates]


def by_length(percentile: float = 25.0) -> Labeller:
    """The shortest `percentile` % of the replies that ended by themselves are positive, the longest % negative.

    A reply that was cut off counts among the longest, never among the shortest: its length is not known. The thought of
    a reasoning model counts, and is part of the example.

    Raises:
        InvalidValueError: the percentile is outside (0, 50].
    """
    if not 0 < percentile <= 50:
        raise InvalidValueError(f"percentile must be in (0, 50], got {percentile}: the two ends must not overlap.")

    def label(candidates: Sequence[Candidate]) -> list[Label | None]:
        finished = sorted(len(c.reply.ids) for c in candidates if c.reply.finished and c.reply.ids)
        every = sorted(len(c.reply.ids) for c in candidates if c.reply.ids)
        if not finished:
            return [None] * len(candidates)
        shortest = finished[max(0, round(len(finished) * percentile / 100) - 1)]
        longest = every[min(len(every) - 1, round(len(every) * (1 - percentile / 100)))]
        return [_by_bounds(c.reply, shortest, longest) for c in candidates]

    label.reads_thought = True  # type: ignore[attr-defined]
    return label


def example_text(labeller: Labeller | None, reply: Reply) -> str | None:
    """What of a reply is an example: what its labeller looked at, the answer or all of it."""
    return reply.text if getattr(labeller, "reads_thought", False) else reply.answer


def _by_bounds(reply: Reply, shortest: int, longest: int) -> Label | None:
    if not reply.ids or shortest >= longest:
        return None
    if reply.finished and len(reply.ids) <= shortest:
        return "positive"
    return "negative" if len(reply.ids) >= longest else None


def by_reference(candidates: Sequence[Candidate]) -> list[Label | None]:
    """Replies that give the reference answer are positive, other replies negative.

    Compared as text without case, punctuation and articles: the reply must equal the reference, or, where the
    reference is a number, have it as its last number.

    Raises:
        DataError: a row has no reference.
    """
    return [_matches(candidate) for candidate in candidates]


def _matches(candidate: Candidate) -> Label | None:
    if candidate.reference is None:
        raise DataError(f"the labeller 'reference' needs a 'reference' in every row; {candidate.prompt!r} has none.")
    if not candidate.reply.answer:
        return None
    wanted, text = candidate.reference.strip(), candidate.reply.answer
    number = re.fullmatch(r"-?[\d,]*\.?\d+", wanted)
    if number:
        found = re.findall(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)", text)
        right = bool(found) and float(found[-1].replace(",", "")) == float(wanted.replace(",", ""))
    else:
        right = _normalised(text) == _normalised(wanted)
    return "positive" if right else "negative"


def _normalised(text: str) -> str:
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join(word for word in words if word not in {"a", "an", "the"})


def by_callable(function: Callable[[Prompt, str], Any]) -> Labeller:
    """A user's own `function(prompt, answer)` that returns "positive", "negative" or `None`; it sees no thought.

    Raises:
        DataError: the function returns something else.
    """

    def label(candidates: Sequence[Candidate]) -> list[Label | None]:
        return [None if c.reply.answer is None else _checked(function(c.prompt, c.reply.answer)) for c in candidates]

    return label


def _checked(value: Any) -> Label | None:
    if value not in ("positive", "negative", None):
        raise DataError(f"a labeller must return 'positive', 'negative' or None, got {value!r}.")
    label: Label | None = value
    return label


_NAMED: dict[str, Callable[[], Labeller]] = {
    "refusal": lambda: by_refusal(refusal_phrases("strict")),
    "refusal-official": lambda: by_refusal(refusal_phrases("official")),
    "compliance": lambda: by_refusal(refusal_phrases("strict"), "negative", "positive"),
    "length": by_length,
    "reference": lambda: by_reference,
}


def find_labeller(name: str) -> Labeller:
    """A labeller by name (`refusal`, `refusal-official`, `compliance`, `length`, `reference`) or as `module:function`.

    Raises:
        InvalidValueError: no such name, or the function cannot be imported.
    """
    if name in _NAMED:
        return _NAMED[name]()
    module, colon, attribute = name.partition(":")
    if not colon:
        raise InvalidValueError(
            f"unknown labeller {name!r}. {did_you_mean(name, _NAMED)} Or name your own function as module:function."
        )
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InvalidValueError(f"cannot import the labeller {name!r}: {error}") from error
    if not callable(function):
        raise InvalidValueError(f"the labeller {name!r} is not a function: name one as module:function.")
    return by_callable(function)
