"""What tests cost: an engine that replies at once and counts what it is asked for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Intervention
from steer2edit.engines import Request, ResponseScore
from steer2edit.models import EncodedResponse, LanguageModel, Prompt, Reply, Sampling
from steer2edit.models.chat import embedding_rows

_CHARACTERS = 256  # of a prompt that are as long as a usual reply's pass


@dataclass(frozen=True)
class Cost:
    """Rough size of a test, from which its time is estimated.

    Args:
        replies: generated; one that is four times as long as usual counts four times.
        passes: forward passes (or gradient steps) over a prompt or a reply.
    """

    replies: int = 0
    passes: int = 0


class CountingEngine:
    """Replies at once, with nothing of worth, and counts.

    Args:
        model: whose tokenizer prompts are encoded with.
        usual: tokens of a reply that counts once.
    """

    def __init__(self, model: LanguageModel, usual: int) -> None:
        self.model = model
        self.replies = self.passes = 0
        self._usual = usual

    def generate(self, requests: Sequence[Request], sampling: Sampling, description: str = "") -> list[Reply]:
        """A reply for each request, of the longest length; a long prompt counts as passes besides."""
        self.replies += len(requests) * max(1, round(sampling.max_new_tokens / self._usual))
        self.passes += sum(_characters(request.prompt) // _CHARACTERS for request in requests)
        return [Reply("x", (0,) * sampling.max_new_tokens, finished=True) for _ in requests]

    def score(
        self,
        responses: Sequence[EncodedResponse],
        interventions: Sequence[Intervention],
        *,
        kl: bool = True,
        description: str = "",
    ) -> list[list[ResponseScore]]:
        """A pass for each response under each intervention; the base's for the KL are not counted."""
        self.passes += len(responses) * len(interventions)
        return [[ResponseScore(-1.0, 1, 1.0 if kl else math.nan) for _ in responses] for _ in interventions]

    def next_token(self, requests: Sequence[Request], description: str = "") -> list[Float[Tensor, " v"]]:
        """A pass for each request; every token is as likely."""
        self.passes += len(requests)
        return [torch.zeros(embedding_rows(self.model)).log_softmax(dim=0) for _ in requests]


def _characters(prompt: Prompt) -> int:
    return len(prompt) if isinstance(prompt, str) else sum(len(message["content"]) for message in prompt)
