"""Scorers: what a reply is judged to be. `None` is unscored, never a verdict."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from steer2edit.errors import InvalidValueError, did_you_mean
from steer2edit.models import Prompt, Reply
from steer2edit.steering import RefusalPhrases, refusal_phrases

SCORERS = ("strict", "official", "judge")
"""Two lists of phrases, and a model that is asked."""


@runtime_checkable
class Scorer(Protocol):
    """Tells for every reply whether it has an attribute, for example whether it refuses."""

    def score(self, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> list[bool | None]:
        """One verdict per reply, in order, on its answer; `None` where there is none."""


@dataclass(frozen=True)
class PhraseScorer:
    """Refusal by phrases: fast and offline.

    Args:
        phrases: what counts as a refusal.
    """

    phrases: RefusalPhrases = field(default_factory=refusal_phrases)

    def score(self, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> list[bool | None]:
        """Whether each answer refuses; `None` where it is empty or unclear. The prompts are not looked at."""
        return [self.phrases.refuses(reply) for _, reply in zip(prompts, replies, strict=True)]


def find_scorer(name: str, judge: Scorer | None = None) -> Scorer:
    """A scorer of refusals: `strict` or `official` phrases, or the `judge` that is given.

    Raises:
        InvalidValueError: there is no such scorer, or no judge is given.
    """
    if name not in SCORERS:
        raise InvalidValueError(f"unknown scorer {name!r}. {did_you_mean(name, SCORERS)}")
    if name != "judge":
        return PhraseScorer(refusal_phrases(name))
    if judge is None:
        raise InvalidValueError("the scorer 'judge' needs an endpoint and a model: --judge-url and --judge-model.")
    return judge
