"""The model's own replies to benign requests: what an edit is to leave as it is."""

from collections.abc import Sequence
from pathlib import Path

from steer2edit.errors import DataError
from steer2edit.models import EncodedResponse, LanguageModel, Prompt, Sampling, encode_prompts, generate
from steer2edit.steering.examples import read_examples
from steer2edit.steering.presets import safety_prompts

BUILT_IN = "benign"
REPLIES = Sampling(max_new_tokens=24)
_PROMPTS = 96


def benign_answers(model: LanguageModel, source: str | Path = BUILT_IN) -> list[tuple[Prompt, EncodedResponse]]:
    """The model's own replies to benign requests, the built-in training ones (`benign`) or a file of prompts."""
    if str(source) == BUILT_IN:
        return own_answers(model, safety_prompts("train")[1][:_PROMPTS])
    return own_answers(model, [example.prompt for example in read_examples(source)])


def own_answers(
    model: LanguageModel, prompts: Sequence[Prompt], sampling: Sampling = REPLIES
) -> list[tuple[Prompt, EncodedResponse]]:
    """The model's own greedy replies, as exact tokens, with the requests that it does answer; a DataError if none."""
    encoded = encode_prompts(model, prompts, room=sampling.max_new_tokens)
    replies = generate(model, prompts, sampling, description="Answering benign requests")
    answered = [
        (prompt, EncodedResponse((*ids, *reply.ids), len(ids)))
        for prompt, ids, reply in zip(prompts, encoded, replies, strict=True) if reply.ids
    ]  # fmt: skip
    if not answered:
        raise DataError(f"the model answers none of the {len(prompts)} benign requests: there is nothing to measure.")
    return answered
