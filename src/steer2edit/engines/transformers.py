"""The default engine: the loaded transformers model, with interventions as hooks that differ row by row."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress

import torch
from torch import Tensor

from steer2edit.core import Intervention
from steer2edit.editing import intervened
from steer2edit.engines.requests import Request, ResponseScore, response_score
from steer2edit.models import (
    GENERATION_TOKENS,
    EncodedResponse,
    LanguageModel,
    Reply,
    Sampling,
    TokenBudget,
    generate,
    run_batches,
    span_log_probabilities,
)
from steer2edit.progress import step

_SHARE = 0.5  # of the memory that the weights leave; the rest is for fragmentation and for others
_CPU_SCORING_TOKENS = 2048  # larger batches gain nothing on a CPU
_WIDE_COPIES = 4  # float32 rows [tokens, vocabulary] alive while scoring: logits, spans, log-softmax, divergence


class TransformersEngine:
    """Runs requests on a model in memory, whose weights are never touched.

    Rows × (longest prompt + reply) of a batch stays within `generation_tokens`, and rows × longest row of a scoring
    batch within `scoring_tokens`; by default what the device's memory allows. When memory runs out, batches are halved.
    """

    def __init__(
        self, model: LanguageModel, *, generation_tokens: int | None = None, scoring_tokens: int | None = None
    ) -> None:
        config = model.network.config.get_text_config()
        # a token's key-value cache, with one layer's activations; its distributions over the vocabulary
        kept = (2 * int(getattr(config, "num_hidden_layers", 1)) + 16) * int(config.hidden_size) * model.dtype.itemsize
        wide = _WIDE_COPIES * 4 * int(config.vocab_size)
        self.model = model
        self._generation = TokenBudget(generation_tokens or _most_tokens(model, kept, GENERATION_TOKENS))
        self._scoring = TokenBudget(scoring_tokens or _most_tokens(model, wide, _CPU_SCORING_TOKENS))

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Reply]:
        """As `Engine.generate`; raises as `models.generate`."""
        prompts, asked = [r.prompt for r in requests], [r.intervention for r in requests]
        return generate(
            self.model, prompts, sampling, budget=self._generation, around=lambda batch: self._under(asked, batch)
        )

    def score(
        self, responses: Sequence[EncodedResponse], interventions: Sequence[Intervention], *, kl: bool = True
    ) -> list[list[ResponseScore]]:
        """As `Engine.score`; the base's distributions are computed once per batch of responses."""
        if not interventions:
            return []
        lengths = [len(response.ids) for response in responses]
        with step("Scoring", len(responses) * len(interventions)) as advance:

            def run(batch: list[int]) -> list[list[ResponseScore]]:
                return self._score_rows([responses[i] for i in batch], interventions, kl, advance)

            scores = run_batches(lengths, self._scoring, run)
        return [[by_intervention[index] for by_intervention in scores] for index in range(len(interventions))]

    def _score_rows(
        self,
        rows: Sequence[EncodedResponse],
        interventions: Sequence[Intervention],
        kl: bool,
        advance: Callable[[int], None],
    ) -> list[list[ResponseScore]]:
        """Scores by response, then by intervention; as many interventions at a time as the budget has room for."""
        base = span_log_probabilities(self.model, rows) if kl else []
        before: Sequence[Tensor | None] = base or [None] * len(rows)
        known = [i for i, one in enumerate(interventions) if one is None and kl]  # itself: no second pass is needed
        scores = dict.fromkeys(known, list(map(response_score, rows, base, base)) if known else [])
        advance(len(rows) * len(scores))
        asked = [i for i in range(len(interventions)) if i not in scores]
        together = max(1, self._scoring.tokens // (len(rows) * max(len(row.ids) for row in rows)))
        for begin in range(0, len(asked), together):
            group = asked[begin : begin + together]
            with self._under(interventions, [i for i in group for _ in rows]):
                after = span_log_probabilities(self.model, list(rows) * len(group))
            advance(len(after))
            for place, i in enumerate(group):
                own = after[place * len(rows) : (place + 1) * len(rows)]
                scores[i] = list(map(response_score, rows, before, own))
        return [[scores[i][row] for i in range(len(interventions))] for row in range(len(rows))]

    def _under(self, interventions: Sequence[Intervention], batch: Sequence[int]) -> AbstractContextManager[None]:
        """One intervention for the whole batch where all rows share it: no per-row factors are needed then."""
        rows = [interventions[i] for i in batch]
        return intervened(self.model, rows[:1] if all(row is rows[0] for row in rows) else rows)


def _most_tokens(model: LanguageModel, bytes_per_token: int, on_cpu: int) -> int:
    """It goes by the memory that the weights' devices have, not what is free: the same run makes the same batches."""
    if model.device.type == "cuda":
        devices = {p.device for p in model.network.parameters() if p.device.type == "cuda"}
        memory = sum(torch.cuda.get_device_properties(device).total_memory for device in devices)
        most = 64 * on_cpu
    else:
        most, memory = on_cpu, 8 << 30  # where the system does not say
        with suppress(AttributeError, OSError, ValueError):
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    weights = sum(p.numel() * p.element_size() for p in model.network.parameters())
    room = max(0.0, _SHARE * (memory - weights))
    return int(min(most, max(1, room // bytes_per_token)))
