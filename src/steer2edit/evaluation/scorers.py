"""Scorers: what a reply is judged to be. `None` is unscored, never a verdict."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from steer2edit.models import Prompt, Reply
from steer2edit.steering import RefusalPhrases, refusal_phrases


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
