"""Two engines as one: what the first cannot express runs on the second."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Intervention, Steering
from steer2edit.engines.requests import Engine, Request, ResponseScore
from steer2edit.models import EncodedResponse, LanguageModel, Reply, Sampling

Result = TypeVar("Result")


class RoutingEngine:
    """Edits and the base on one engine, activation steering on another.

    vLLM runs edits as adapters, but has nothing for a constant that is added to a site's output. Each engine compares
    with its own base, so a KL does not mix the rounding of two.

    Args:
        edits: runs edits and the base model.
        steering: runs activation steering, on the same model.
    """

    def __init__(self, edits: Engine, steering: Engine) -> None:
        self._edits = edits
        self._steering = steering

    @property
    def model(self) -> LanguageModel:
        """The base model."""
        return self._edits.model

    def generate(self, requests: Sequence[Request], sampling: Sampling, description: str = "Generating") -> list[Reply]:
        """Replies in the order of the requests."""
        return self._routed(
            [request.intervention for request in requests],
            lambda engine, own: engine.generate([requests[i] for i in own], sampling, description),
        )

    def score(
        self,
        responses: Sequence[EncodedResponse],
        interventions: Sequence[Intervention],
        *,
        kl: bool = True,
        description: str = "Scoring",
    ) -> list[list[ResponseScore]]:
        """Score of every response under every intervention: `scores[intervention][response]`."""
        return self._routed(
            interventions,
            lambda engine, own: engine.score(
                responses, [interventions[i] for i in own], kl=kl, description=description
            ),
        )

    def next_token(self, requests: Sequence[Request], description: str = "Predicting") -> list[Float[Tensor, " v"]]:
        """Log-distribution of each reply's first token."""
        return self._routed(
            [request.intervention for request in requests],
            lambda engine, own: engine.next_token([requests[i] for i in own], description),
        )

    def _routed(
        self, interventions: Sequence[Intervention], run: Callable[[Engine, list[int]], list[Result]]
    ) -> list[Result]:
        """Results in their order, each from the engine it belongs to; an engine without work is not asked."""
        found: dict[int, Result] = {}
        for engine, wanted in ((self._edits, False), (self._steering, True)):
            own = [i for i, one in enumerate(interventions) if isinstance(one, Steering) == wanted]
            if own:
                found.update(zip(own, run(engine, own), strict=True))
        return [found[i] for i in range(len(interventions))]
