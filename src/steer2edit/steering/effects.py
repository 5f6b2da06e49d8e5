"""What each component does to a behaviour, and what it costs: measured, one backward pass per response.

A   what decides the behaviour, by `decided_by`:
        first    log p of a response's first tokens: a refusal is decided there
        answer   log p of the whole response per token: s is of the log-odds of true against false answers
        end      log p of the end of the turn: behind short responses, less that in the middle of long ones
s = mean of the effects on A over positive responses, less that over negative ones
C = mean square of the effects on the score of tokens drawn from the model, over its own benign replies
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Site, SiteEffects, SteeringVectors
from steer2edit.errors import DataError, InvalidValueError
from steer2edit.method import output_direction
from steer2edit.models import EncodedResponse, LanguageModel, encode_responses
from steer2edit.models.batching import DEFAULT_BATCH_TOKENS
from steer2edit.models.effects import Score, ended, first_tokens, response_effects, sampled_tokens, whole_response
from steer2edit.models.reply import turn_end
from steer2edit.steering.benign import BUILT_IN, benign_answers
from steer2edit.steering.contrast import ContrastSet, Pair

DECIDING_TOKENS = 4
"""First tokens of a response that decide what kind of reply it is."""
DECIDED_BY = {"truthfulness": "answer", "conciseness": "end"}
"""By preset, what of a response decides the behaviour; of every other contrast it is the first tokens."""
_DECISIONS = ("first", "answer", "end")
_DRAWS = 3  # of tokens at every position, for the curvature
_FEWEST = 8  # responses of a class, below which two halves say nothing of each other


def measure_effects(
    model: LanguageModel,
    vectors: SteeringVectors,
    contrast: ContrastSet,
    *,
    decided_by: str | None = None,
    benign: str = BUILT_IN,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    seed: int = 0,
) -> SteeringVectors:
    """The vectors with the effects of every site, which `Rules(importance="effect")` makes edits of.

    Args:
        model: the base model, with weights that gradients can pass.
        vectors: whose directions u the effects are along.
        contrast: its training part says what the attribute is.
        decided_by: what of a response decides it: `first` tokens, the whole `answer`, or its `end`; by default what
            suits the preset, and the first tokens for one's own contrast.
        benign: requests whose replies must not drift: `benign` (built in), or a file of prompts.
        batch_tokens: rows × longest row of a batch stays within this.
        seed: of the tokens that are drawn.

    Raises:
        DataError: fewer than eight responses of a class, or a model without a token that ends a turn.
        InvalidValueError: no such decision, effects that are not finite, or a model that gradients cannot be taken of.
    """
    pairs = (contrast.train.positive, contrast.train.negative)
    decided_by = decided_by or DECIDED_BY.get(contrast.name, "first")
    if decided_by not in _DECISIONS:
        raise InvalidValueError(f"effects are decided by {', '.join(_DECISIONS)}, got {decided_by!r}.")
    if min(map(len, pairs)) < _FEWEST:
        raise DataError(
            f"effects need at least {_FEWEST} training responses of each class, so that two halves can be compared; "
            f"{contrast.name!r} has {len(pairs[0])} positive and {len(pairs[1])} negative ones. Give more."
        )
    directions = {site: output_direction(means.steering_vector) for site, means in vectors.sites.items()}
    measure = _Measurement(model, directions, batch_tokens)
    score = whole_response if decided_by == "answer" else first_tokens(DECIDING_TOKENS)
    positive, negative = (
        measure.halves(part, score, f"Effects on {name} responses")
        for part, name in zip(_scored(model, pairs, decided_by), ("positive", "negative"), strict=True)
    )
    generator = torch.Generator().manual_seed(seed)
    answers, _ = benign_answers(model, benign)
    drift = measure.squares(answers * _DRAWS, sampled_tokens(generator), "Effects on benign replies")
    sites = {}
    for site, means in vectors.sites.items():
        half = positive[site] - negative[site]
        agreement = torch.nn.functional.cosine_similarity(half[0], half[1], dim=0).item()
        effects = SiteEffects(half.mean(dim=0).float(), drift[site].float(), agreement)
        sites[site] = replace(means, effects=effects)
    made = {"decided_by": decided_by, "benign": benign, "benign_replies": len(answers), "draws": _DRAWS}
    return replace(vectors, sites=sites, metadata={**vectors.metadata, "effects": made})


def _scored(
    model: LanguageModel, pairs: tuple[Sequence[Pair], Sequence[Pair]], decided_by: str
) -> tuple[list[EncodedResponse], list[EncodedResponse]]:
    """What is scored of both classes."""
    positive, negative = (encode_responses(model, part) for part in pairs)
    if decided_by != "end":
        return positive, negative
    end = turn_end(model)
    if end is None:
        raise DataError(
            f"{model.name!r} has no token that its chat template ends a turn with, so what ends a reply cannot be "
            "measured. Give a --chat-template that has one, or decide by the first tokens or the whole answer."
        )
    return [ended(r, end) for r in positive], [ended(r, end, 0.5) for r in negative]


class _Measurement:
    """Sums over responses, in float64, so that memory does not depend on how many there are."""

    def __init__(self, model: LanguageModel, directions: dict[Site, Tensor], batch_tokens: int) -> None:
        self._model, self._directions, self._batch_tokens = model, directions, batch_tokens

    def halves(self, responses: list[EncodedResponse], score: Score, doing: str) -> dict[Site, Float[Tensor, "2 m"]]:
        """Mean effects over the even and over the odd responses."""
        counts = torch.tensor([(len(responses) + 1) // 2, len(responses) // 2])[:, None]
        return {site: total / counts for site, total in self._sums(responses, score, doing, squared=False).items()}

    def squares(self, responses: list[EncodedResponse], score: Score, doing: str) -> dict[Site, Float[Tensor, " m"]]:
        """Mean squares of the effects."""
        sums = self._sums(responses, score, doing, squared=True)
        return {site: total.sum(dim=0) / len(responses) for site, total in sums.items()}

    def _sums(
        self, responses: list[EncodedResponse], score: Score, doing: str, *, squared: bool
    ) -> dict[Site, Float[Tensor, "2 m"]]:
        sums: dict[Site, Tensor] = {}
        try:
            for batch in response_effects(
                self._model, responses, self._directions, score, batch_tokens=self._batch_tokens, description=doing
            ):
                member = torch.nn.functional.one_hot(torch.tensor(batch.rows) % 2, 2).T.double()
                for site, effects in batch.sites.items():
                    values = effects.double()
                    total = member @ (values.square() if squared else values)
                    sums[site] = sums[site] + total if site in sums else total
        except (NotImplementedError, RuntimeError) as error:
            if "gradient" not in str(error) and "derivative" not in str(error) and "backward" not in str(error):
                raise
            raise InvalidValueError(
                f"effects need gradients, and {self._model.name!r} gives none ({' '.join(str(error).split())[:150]}). "
                "Load it unquantised, or convert with --importance cosine."
            ) from error
        return sums
