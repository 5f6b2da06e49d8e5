"""The default engine: the loaded transformers model, with interventions as hooks that differ row by row."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Intervention
from steer2edit.editing import intervened
from steer2edit.engines.requests import Request, ResponseScore
from steer2edit.models import (
    EncodedResponse,
    LanguageModel,
    Reply,
    Sampling,
    encode_prompts,
    generate_batch,
    length_batches,
    span_log_probabilities,
    token_log_probabilities,
)
from steer2edit.progress import step


class TransformersEngine:
    """Runs requests on a model in memory.

    Args:
        model: the base model; its weights are never touched.
        generation_tokens: rows × (longest prompt + reply) of a generation batch stays within this.
        scoring_tokens: rows × longest row of a scoring batch stays within this.
    """

    def __init__(self, model: LanguageModel, *, generation_tokens: int = 8192, scoring_tokens: int = 2048) -> None:
        self._model = model
        self._generation_tokens = generation_tokens
        self._scoring_tokens = scoring_tokens

    @property
    def model(self) -> LanguageModel:
        """The base model."""
        return self._model

    def generate(self, requests: Sequence[Request], sampling: Sampling, description: str = "Generating") -> list[Reply]:
        """Replies in the order of the requests; one batch may hold different interventions.

        Raises:
            DataError: an empty prompt, or one that does not fit into the context with its reply.
        """
        encoded = encode_prompts(self._model, [request.prompt for request in requests], room=sampling.max_new_tokens)
        lengths = [len(ids) + sampling.max_new_tokens for ids in encoded]
        replies: dict[int, Reply] = {}
        with step(description, len(requests)) as advance:
            for batch in length_batches(lengths, self._generation_tokens):
                with intervened(self._model, _rows([requests[i].intervention for i in batch])):
                    made = generate_batch(self._model, [encoded[i] for i in batch], sampling)
                replies.update(zip(batch, made, strict=True))
                advance(len(batch))
        return [replies[i] for i in range(len(requests))]

    def score(
        self,
        responses: Sequence[EncodedResponse],
        interventions: Sequence[Intervention],
        description: str = "Scoring",
    ) -> list[list[ResponseScore]]:
        """Score of every response under every intervention: `scores[intervention][response]`.

        The base model's distributions are computed once per batch and compared with each intervention's in float32.
        """
        scores: list[dict[int, ResponseScore]] = [{} for _ in interventions]
        lengths = [len(response.ids) for response in responses]
        with step(description, len(responses) * len(interventions)) as advance:
            for batch in length_batches(lengths, self._scoring_tokens):
                rows = [responses[i] for i in batch]
                base = span_log_probabilities(self._model, rows)
                for index, intervention in enumerate(interventions):
                    scores[index].update(zip(batch, self._score_batch(rows, base, intervention), strict=True))
                    advance(len(batch))
        return [[by_response[i] for i in range(len(responses))] for by_response in scores]

    def _score_batch(
        self, rows: Sequence[EncodedResponse], base: Sequence[Float[Tensor, "_ v"]], intervention: Intervention
    ) -> list[ResponseScore]:
        if intervention is None:
            changed = list(base)
        else:
            with intervened(self._model, [intervention]):
                changed = span_log_probabilities(self._model, rows)
        return [_score(row, before, after) for row, before, after in zip(rows, base, changed, strict=True)]


def _score(row: EncodedResponse, before: Float[Tensor, "t v"], after: Float[Tensor, "t v"]) -> ResponseScore:
    own = token_log_probabilities(after, row)
    kl = torch.nn.functional.kl_div(after, before, log_target=True, reduction="sum") / len(own)
    return ResponseScore(own.sum().item(), len(own), kl.item())


def _rows(interventions: Sequence[Intervention]) -> Sequence[Intervention]:
    """One intervention for the whole batch where all rows share it: no per-row factors are needed then."""
    first = interventions[0]
    return [first] if all(row is first for row in interventions) else interventions
