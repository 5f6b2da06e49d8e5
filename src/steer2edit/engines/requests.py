"""What an engine is asked for: replies and drifts under interventions that may differ from request to request."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from steer2edit.core import Intervention
from steer2edit.models import EncodedResponse, LanguageModel, Prompt, Reply, Sampling


@dataclass(frozen=True)
class Request:
    """One prompt under one intervention (`None`: the base model)."""

    prompt: Prompt
    intervention: Intervention = None


@dataclass(frozen=True)
class ResponseScore:
    """A given response under an intervention, in nats.

    Args:
        log_probability: sum over the response's tokens.
        tokens: their number.
        kl: KL(base ‖ model) of the next-token distribution, mean over the response's tokens.
    """

    log_probability: float
    tokens: int
    kl: float

    @property
    def nll(self) -> float:
        """Negative log-likelihood per token."""
        return -self.log_probability / self.tokens


@runtime_checkable
class Engine(Protocol):
    """Runs a model under interventions."""

    @property
    def model(self) -> LanguageModel:
        """The base model."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Reply]:
        """Replies in the order of the requests; one batch may hold different interventions."""

    def score(
        self, responses: Sequence[EncodedResponse], interventions: Sequence[Intervention]
    ) -> list[list[ResponseScore]]:
        """Score of every response under every intervention: `scores[intervention][response]`."""
