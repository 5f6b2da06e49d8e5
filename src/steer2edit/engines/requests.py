"""What an engine is asked for: replies and drifts under interventions that may differ from request to request.

And engines around engines: one that remembers greedy replies, and one that runs steering on an engine of its own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Editing, Intervention, Steering
from steer2edit.models import (
    EncodedResponse,
    LanguageModel,
    Prompt,
    Reply,
    Sampling,
    encode_prompts,
    token_log_probabilities,
)  # fmt: skip


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

        With `kl` every distribution is compared with the base's, which costs a pass of the base.
        """


Asked = tuple[int, tuple[int, ...], int]
"""What a remembered reply answers: (place of the intervention, tokens of the prompt, longest reply)."""
_Result = TypeVar("_Result")


class RememberingEngine:
    """Another engine, asked only once for each greedy reply under some interventions.

    Besides the time saved, such replies cannot differ between two calls: in half precision they can, because a
    batch's other rows change how its sums are rounded. Interventions are the same if they hold the same edit or vectors
    (the object, not an equal one) at the same strength. `replies` are known already, such as those of another process.
    """

    def __init__(
        self,
        engine: Engine,
        interventions: Sequence[Intervention] = (None,),
        replies: Mapping[Asked, Reply] | None = None,
    ) -> None:
        self.model, self._engine = engine.model, engine
        self._interventions = tuple(interventions)  # kept: ids stay theirs
        self._places = {identity(one): place for place, one in enumerate(interventions)}
        self.replies = dict(replies or {})

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Reply]:
        """As the engine does; greedy replies that are remembered, from memory."""
        if sampling.temperature > 0:
            return self._engine.generate(requests, sampling)
        encoded = encode_prompts(self.model, [request.prompt for request in requests], room=sampling.max_new_tokens)
        places = [self._places.get(identity(request.intervention)) for request in requests]
        keys: list[Asked | int] = [  # the request's index, where its reply is not to be remembered
            index if place is None else (place, tuple(ids), sampling.max_new_tokens)
            for index, (ids, place) in enumerate(zip(encoded, places, strict=True))
        ]
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in self.replies}
        replies = self._engine.generate(list(missing.values()), sampling) if missing else []
        made = dict(zip(missing, replies, strict=True))
        self.replies |= {key: reply for key, reply in made.items() if not isinstance(key, int)}
        return [made[key] if isinstance(key, int) else self.replies[key] for key in keys]

    def score(
        self, responses: Sequence[EncodedResponse], interventions: Sequence[Intervention], *, kl: bool = True
    ) -> list[list[ResponseScore]]:
        """As the engine does."""
        return self._engine.score(responses, interventions, kl=kl)


def identity(intervention: Intervention) -> tuple[object, ...]:
    """What an intervention is recognised by while it is alive."""
    if isinstance(intervention, Editing):
        return id(intervention.edit), intervention.strength
    if isinstance(intervention, Steering):
        return id(intervention.vectors), intervention.strength
    return (None if intervention is None else id(intervention),)


class RoutingEngine:
    """Edits and the base on one engine, activation steering on another.

    vLLM runs edits as adapters, but has nothing for a constant that is added to a site's output. Each engine compares
    with its own base, so a KL does not mix the rounding of two.
    """

    def __init__(self, edits: Engine, steering: Engine) -> None:
        self.model, self._edits, self._steering = edits.model, edits, steering

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Reply]:
        """Each request on the engine that it belongs to."""
        asked = [request.intervention for request in requests]
        return self._routed(asked, lambda engine, own: engine.generate([requests[i] for i in own], sampling))

    def score(
        self, responses: Sequence[EncodedResponse], interventions: Sequence[Intervention], *, kl: bool = True
    ) -> list[list[ResponseScore]]:
        """Each intervention on the engine that it belongs to."""
        return self._routed(
            interventions, lambda engine, own: engine.score(responses, [interventions[i] for i in own], kl=kl)
        )

    def _routed(
        self, interventions: Sequence[Intervention], run: Callable[[Engine, list[int]], list[_Result]]
    ) -> list[_Result]:
        """Results in their order, each from the engine it belongs to; an engine without work is not asked."""
        found: dict[int, _Result] = {}
        for engine, wanted in ((self._edits, False), (self._steering, True)):
            own = [i for i, one in enumerate(interventions) if isinstance(one, Steering) == wanted]
            if own:
                found.update(zip(own, run(engine, own), strict=True))
        return [found[i] for i in range(len(interventions))]
