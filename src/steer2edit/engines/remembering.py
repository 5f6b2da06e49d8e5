"""An engine that remembers greedy replies: searches and tests ask for the same ones again and again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Editing, Intervention, Steering
from steer2edit.engines.requests import Engine, Request, ResponseScore
from steer2edit.models import EncodedResponse, LanguageModel, Reply, Sampling, encode_prompts


@dataclass(frozen=True)
class Asked:
    """What a remembered reply answers.

    Args:
        intervention: its position among those that are remembered.
        prompt_ids: tokens of the prompt.
        max_new_tokens: longest reply that was asked for.
    """

    intervention: int
    prompt_ids: tuple[int, ...]
    max_new_tokens: int


class RememberingEngine:
    """Another engine, asked only once for each greedy reply under some interventions.

    Besides the time saved, such replies cannot differ between two calls: in half precision they can, because a
    batch's other rows change how its sums are rounded.

    Args:
        engine: the engine that does the work.
        interventions: whose replies are remembered; by default the base model's. Others are the same if they hold the
            same edit or vectors (the object, not an equal one) at the same strength.
    """

    def __init__(self, engine: Engine, interventions: Sequence[Intervention] = (None,)) -> None:
        self._engine = engine
        self._interventions = tuple(interventions)
        self._replies: dict[Asked, Reply] = {}

    @property
    def model(self) -> LanguageModel:
        """The base model."""
        return self._engine.model

    @property
    def replies(self) -> Mapping[Asked, Reply]:
        """What is remembered."""
        return self._replies

    def remember(self, replies: Mapping[Asked, Reply]) -> None:
        """Take replies for known, such as those of another process."""
        self._replies.update(replies)

    def branch(self) -> "RememberingEngine":
        """Another one that knows what this one knows, and keeps to itself what it is told from then on."""
        branch = RememberingEngine(self._engine, self._interventions)
        branch.remember(self._replies)
        return branch

    def generate(self, requests: Sequence[Request], sampling: Sampling, description: str = "Generating") -> list[Reply]:
        """Replies in the order of the requests; those that are remembered from memory, where they are greedy."""
        if sampling.temperature > 0:
            return self._engine.generate(requests, sampling, description)
        encoded = encode_prompts(self.model, [request.prompt for request in requests], room=sampling.max_new_tokens)
        keys: list[Asked | int] = []  # the request's index, where its reply is not to be remembered
        for index, (ids, request) in enumerate(zip(encoded, requests, strict=True)):
            place = self._place(request.intervention)
            keys.append(index if place is None else Asked(place, tuple(ids), sampling.max_new_tokens))
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in self._replies}
        replies = self._engine.generate(list(missing.values()), sampling, description) if missing else []
        made = dict(zip(missing, replies, strict=True))
        self.remember({key: reply for key, reply in made.items() if isinstance(key, Asked)})
        return [self._replies[key] if isinstance(key, Asked) else made[key] for key in keys]

    def score(
        self,
        responses: Sequence[EncodedResponse],
        interventions: Sequence[Intervention],
        *,
        kl: bool = True,
        description: str = "Scoring",
    ) -> list[list[ResponseScore]]:
        """As the engine does."""
        return self._engine.score(responses, interventions, kl=kl, description=description)

    def next_token(self, requests: Sequence[Request], description: str = "Predicting") -> list[Float[Tensor, " v"]]:
        """As the engine does."""
        return self._engine.next_token(requests, description)

    def _place(self, intervention: Intervention) -> int | None:
        return next((i for i, known in enumerate(self._interventions) if _same(known, intervention)), None)


def _same(one: Intervention, other: Intervention) -> bool:
    if isinstance(one, Editing) and isinstance(other, Editing):
        return one.edit is other.edit and one.strength == other.strength
    if isinstance(one, Steering) and isinstance(other, Steering):
        return one.vectors is other.vectors and one.strength == other.strength
    return one is None and other is None
