"""What a model says: replies, batch by batch, and log-distributions of the next token.

Shapes: b = rows of a batch, t = tokens, s = span positions of all rows of a batch, v = vocabulary.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GenerationConfig

from steer2edit.errors import InvalidValueError
from steer2edit.models.batching import TokenBudget, pad, run_batches
from steer2edit.models.chat import EncodedResponse, Prompt, encode_prompts
from steer2edit.models.language_model import LanguageModel
from steer2edit.models.reply import Reply, end_ids, reply_of
from steer2edit.models.swapped import swapped
from steer2edit.progress import step

Growing = Callable[[list[Reply]], None]
"""(replies so far) → shows them."""
GENERATION_TOKENS = 8192
"""Rows × (longest prompt + reply) of a batch on a CPU, where larger batches gain no more."""


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn."""

    max_new_tokens: int = 32  # longest reply, in tokens
    temperature: float = 0.0  # 0 for greedy decoding
    top_p: float = 1.0  # nucleus; only used when sampling
    seed: int = 0  # of the sampler

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InvalidValueError(f"max_new_tokens must be >= 1, got {self.max_new_tokens}.")
        if not self.temperature >= 0 or not 0 < self.top_p <= 1:
            raise InvalidValueError(
                f"temperature must be >= 0 and top_p in (0, 1], got {self.temperature} and {self.top_p}."
            )


def generate(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    sampling: Sampling = Sampling(),
    *,
    budget: TokenBudget | None = None,
    around: Callable[[list[int]], AbstractContextManager[None]] | None = None,
    description: str = "Generating",
) -> list[Reply]:
    """Replies to prompts, in their order, with hooks and edits in force.

    `around` is entered around each batch with the indices of its prompts, in the order of the batch's rows.
    """
    encoded = encode_prompts(model, prompts, room=sampling.max_new_tokens)
    lengths = [len(ids) + sampling.max_new_tokens for ids in encoded]
    with step(description, len(prompts)) as advance:

        def run(batch: list[int]) -> list[Reply]:
            share = len(batch) / sampling.max_new_tokens
            watch = _EachToken(lambda tokens: advance(share))
            with around(batch) if around else nullcontext():
                replies = generate_batch(model, [encoded[i] for i in batch], sampling, streamer=watch)
            advance(len(batch) - max(0, watch.steps) * share)  # also where its replies ended early
            return replies

        return run_batches(lengths, budget or TokenBudget(GENERATION_TOKENS), run)


class _EachToken:
    """A streamer of transformers for a whole batch: calls a function with the next token of every row."""

    def __init__(self, then: Callable[[list[int]], object]) -> None:
        self._then, self.steps = then, -1  # the prompts come first

    def put(self, value: Tensor) -> None:
        self.steps += 1
        if self.steps:
            self._then(value.flatten().tolist())

    def end(self) -> None:
        pass


@torch.inference_mode()
def generate_batch(
    model: LanguageModel,
    encoded: Sequence[Sequence[int]],
    sampling: Sampling,
    growing: Growing | None = None,
    *,
    streamer: Any = None,
) -> list[Reply]:
    """Replies to one batch of token sequences; `growing` is given all so far, whenever each has another token."""
    ends = end_ids(model)
    rows: list[list[int]] = [[] for _ in encoded]

    def replies() -> list[Reply]:
        return [reply_of(model, prompt, row, ends) for prompt, row in zip(encoded, rows, strict=True)]

    def grow(tokens: list[int]) -> None:
        for row, token in zip(rows, tokens, strict=True):
            row.append(token)
        if growing:
            growing(replies())

    ids, mask = pad(encoded, pad_id=ends[0] if ends else 0, device=model.device, left=True)
    sampled = sampling.temperature > 0
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=sampled,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
        remove_invalid_values=sampled,  # of a model that an edit has broken: nothing can be drawn from NaN
        **({"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if sampled else {}),
    )
    with generating(model, config), torch.random.fork_rng(enabled=sampled):
        if sampled:
            torch.manual_seed(sampling.seed)
        streamer = _EachToken(grow) if growing else streamer
        inputs = {"input_ids": ids, "attention_mask": mask}
        output = model.network.generate(**inputs, generation_config=config, streamer=streamer)
    rows = output[:, ids.shape[1] :].tolist()
    return replies()


def generating(model: LanguageModel, config: GenerationConfig | None = None) -> AbstractContextManager[None]:
    """For a while transformers fills what a call leaves unset from this, not from what the checkpoint recommends."""
    own = config or GenerationConfig(eos_token_id=end_ids(model) or None)
    return swapped(model.network, "generation_config", own)


@torch.inference_mode()
def span_log_probabilities(model: LanguageModel, responses: Sequence[EncodedResponse]) -> list[Float[Tensor, "_ v"]]:
    """Log-distribution of the next token at every span position, one [length, v] tensor per response, float32."""
    return span_distributions(model, responses)


def span_distributions(model: LanguageModel, responses: Sequence[EncodedResponse]) -> list[Float[Tensor, "_ v"]]:
    """`span_log_probabilities`, with gradients where they are enabled."""
    ids, mask = pad([response.ids for response in responses], pad_id=0, device=model.device)
    spans = [response.span for response in responses]
    first = min(span.start for span in spans)
    positions = torch.arange(first, ids.shape[1] - 1)  # on the CPU: the hidden states may be on another device
    logits = model.network(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=positions).logits
    rows = [i * len(positions) + at - first for i, span in enumerate(spans) for at in span]
    picked = logits.flatten(0, 1).index_select(0, torch.tensor(rows, device=logits.device))
    return list(picked.float().log_softmax(dim=-1).split([len(span) for span in spans]))


def token_log_probabilities(log_probabilities: Float[Tensor, "t v"], response: EncodedResponse) -> Float[Tensor, " t"]:
    """Log-probability of each of a response's own tokens."""
    targets = torch.tensor(response.response_ids, device=log_probabilities.device)
    return log_probabilities.gather(1, targets[:, None])[:, 0]
