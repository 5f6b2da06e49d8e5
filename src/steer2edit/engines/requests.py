"""What an engine is asked for: replies and drifts under interventions that may differ from request to request."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Intervention
from steer2edit.models import EncodedResponse, LanguageModel, Prompt, Reply, Sampling, token_log_probabilities


@dataclass(frozen=True)
class Request:
    """One prompt under one intervention (`None`: the base model)."""

    prompt: Prompt
    intervention: Intervention = None


@dataclass(frozen=True)
class ResponseScore:
    """A given response under an intervention, in nats."""

    log_probability: float  # sum over the response's tokens
    tokens: int  # their number
    # KL(base ‖ model) of the next-token distribution, mean over the response's tokens; NaN if not asked for
    kl: float = math.nan

    @property
    def nll(self) -> float:
        """Negative log-likelihood per token."""
        return -self.log_probability / self.tokens


def response_score(
    row: EncodedResponse, before: Float[Tensor, "t v"] | None, after: Float[Tensor, "t v"]
) -> ResponseScore:
    """Score of a response from the log-distributions at its positions, of the base if KL is asked for, and after."""
    own = token_log_probabilities(after, row)
    if before is None:
        return ResponseScore(own.sum().item(), len(own))
    kl = torch.nn.functional.kl_div(after, before, log_target=True, reduction="sum") / len(own)
    return ResponseScore(own.sum().item(), len(own), kl.item())


@runtime_checkable
class Engine(Protocol):
    """Runs a model under interventions."""

    @property
    def model(self) -> LanguageModel:
        """The base model."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Reply]:
        """Replies in the order of the requests; one batch may hold different interventions."""

    def score(
        self, responses: Sequence[EncodedResponse], interventions: Sequence[Intervention], *, kl: bool = True
    ) -> list[list[ResponseScore]]:
        """Score of every response under every intervention: `scores[intervention][response]`.

        Args:
            responses: what to score.
            interventions: `None` is the base.
            kl: whether to compare every distribution with the base's, which costs a pass of the base.
        """

    def next_token(self, requests: Sequence[Request]) -> list[Float[Tensor, " v"]]:
        """Log-distribution of each reply's first token, float32, on the CPU, in the order of the requests."""
