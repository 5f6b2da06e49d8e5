"""Prompts and responses into tokens: the exact boundary between the two."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from steer2edit.errors import DataError, InvalidValueError
from steer2edit.models.chat_format import decoded, renders_tokens
from steer2edit.models.language_model import LanguageModel
from steer2edit.models.rendering import (
    Prompt,
    Turn,
    messages_of,
    prompt_ids,
    render,
    render_turns,
    tokenizer_of,
    turn_ids,
)  # fmt: skip
from steer2edit.models.thoughts import find_thought

PARTS = ("response", "thought", "answer")
SPAN_RULE = "positions whose next token belongs to the response: [start-1, end-1)"


@dataclass(frozen=True)
class EncodedResponse:
    """Tokens of prompt + response, and where the response starts."""

    ids: tuple[int, ...]  # token ids of the prompt followed by the response
    start: int  # index of the response's first token
    # (first, last + 1) of the tokens that are asked for, where that is not the whole response
    part: tuple[int, int] | None = None

    @property
    def span(self) -> range:
        """Positions whose next token belongs to the response, or to the part of it."""
        first, end = self.part or (self.start, len(self.ids))
        return range(first - 1, end - 1)

    @property
    def response_ids(self) -> tuple[int, ...]:
        """The response's tokens."""
        return self.ids[self.start :]


def encode_prompts(model: LanguageModel, prompts: Sequence[Prompt], room: int = 0) -> list[list[int]]:
    """Token ids of rendered prompts, behind which so many tokens must still fit into the context.

    Raises:
        DataError: a prompt is empty, is longer than the context leaves room for, or has a token without a row.
    """
    if not prompts:
        return []
    tokenizer = tokenizer_of(model)
    if renders_tokens(tokenizer):
        encoded = [prompt_ids(model, messages_of(model, prompt)) for prompt in prompts]
    else:
        texts = [render(model, prompt) for prompt in prompts]
        encoded = [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    for prompt, ids in zip(prompts, encoded, strict=True):
        _require_fit(model, prompt, len(ids) + room)
        require_rows(model, ids, "a prompt")
    return encoded


def encode_responses(
    model: LanguageModel, pairs: Sequence[tuple[Prompt, str]], part: str = "response"
) -> list[EncodedResponse]:
    """Tokenise every prompt with its response as one text, and find the first token of the response.

    The text is that of `render_turns`, up to the response's end. The boundary comes from the tokenizer's character
    offsets, so it is exact even where a token would be split or merged differently by tokenising the two apart: a token
    that straddles the boundary belongs to the response. Without offsets, what stands before the response is tokenised
    alone too, and compared.

    Args:
        part: what of a response is asked for: `response`, its `thought` or `answer`, or its first tokens (`16`).

    Raises:
        DataError: an empty response, an empty prompt, a pair longer than the context, a token without a row, or a
            response without that part.
        InvalidValueError: there is no such part.
    """
    require_part(part)
    if not pairs:
        return []
    for prompt, response in pairs:
        if not response.strip():
            raise DataError(f"the response to {prompt!r} is empty: there are no response tokens to average over.")
    tokenizer = tokenizer_of(model)
    if renders_tokens(tokenizer):
        given = [(messages_of(model, prompt), response) for prompt, response in pairs]
        encoded = [_behind(tokenizer, prompt_ids(model, own), turn_ids(model, own, reply)) for own, reply in given]
    else:
        turns = render_turns(model, pairs, thoughts=part == "thought")
        fast = getattr(tokenizer, "is_fast", False)
        encoded = _encode_by_offsets(tokenizer, turns) if fast else _encode_twice(tokenizer, turns)
    for (prompt, response), item in zip(pairs, encoded, strict=True):
        if not 0 < item.start < len(item.ids):
            raise DataError(f"the response {response!r} to {prompt!r} has no tokens of its own.")
        _require_fit(model, prompt, len(item.ids))
        require_rows(model, item.ids, "a prompt or its response")
    return encoded if part == "response" else [_part(tokenizer, item, part) for item in encoded]


def require_part(part: str) -> None:
    """Refuse what is no part of a response. Raises InvalidValueError."""
    if part not in PARTS and not (part.isdecimal() and int(part) > 0):
        raise InvalidValueError(f"a span must be response, thought, answer, or a number of tokens >= 1, got {part!r}.")


def _part(tokenizer: PreTrainedTokenizerBase, item: EncodedResponse, part: str) -> EncodedResponse:
    if part.isdecimal():
        return replace(item, part=(item.start, min(item.start + int(part), len(item.ids))))
    found = find_thought(tokenizer, item.ids[: item.start], item.response_ids)
    if found is None:
        own = range(len(item.response_ids)) if part == "answer" else range(0)
    else:
        own = found.thought if part == "thought" else found.answer or range(0)
    if not own:
        raise DataError(
            f"the response {decoded(tokenizer, item.response_ids)[:60]!r}... has no {part}, and the span is its "
            f"{part}. Give responses that have one (a template that thinks, replies long enough to end the thought: "
            "--max-new-tokens), or take the whole response."
        )
    return replace(item, part=(item.start + own.start, item.start + own.stop))


def _encode_by_offsets(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> list[EncodedResponse]:
    texts = [turn.text[: turn.end] for turn in turns]
    with _whole_offsets(tokenizer):
        encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    return [
        EncodedResponse(tuple(ids), next((i for i, (_, end) in enumerate(offsets) if end > turn.start), len(offsets)))
        for turn, ids, offsets in zip(turns, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


@contextmanager
def _whole_offsets(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Offsets with the whitespace of each token: a post-processor may trim it, and adds nothing that is used here."""
    backend = tokenizer.backend_tokenizer
    post_processor = backend.post_processor
    backend.post_processor = None
    try:
        yield
    finally:
        backend.post_processor = post_processor


def _encode_twice(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> list[EncodedResponse]:
    heads = tokenizer([turn.text[: turn.start] for turn in turns], add_special_tokens=False)["input_ids"]
    wholes = tokenizer([turn.text[: turn.end] for turn in turns], add_special_tokens=False)["input_ids"]
    return [_behind(tokenizer, head, whole) for head, whole in zip(heads, wholes, strict=True)]


def _behind(tokenizer: PreTrainedTokenizerBase, head: list[int], whole: list[int]) -> EncodedResponse:
    """The response begins where the whole says more than the head, which may be split into other tokens there."""
    count = next((i for i, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b), min(len(head), len(whole)))
    if count < len(head):
        said = str(tokenizer.decode(head, clean_up_tokenization_spaces=False))
        for longer in range(count + 1, len(whole)):
            text = str(tokenizer.decode(whole[:longer], clean_up_tokenization_spaces=False))
            if len(text) > len(said):
                break
            if said.startswith(text):
                count = longer
    return EncodedResponse(tuple(whole), count)


def embedding_rows(model: LanguageModel) -> int:
    """How many tokens the input embedding has a row for."""
    return int(model.network.get_input_embeddings().weight.shape[0])


def require_rows(model: LanguageModel, ids: Sequence[int], where: str) -> None:
    """Refuse a token that the embedding has no row for. Raises DataError."""
    rows = embedding_rows(model)
    if (highest := max(ids, default=0)) >= rows:
        token = tokenizer_of(model).convert_ids_to_tokens(highest)
        raise DataError(
            f"{token!r} (in {where}) is token {highest}, and the embedding of {model.name!r} has {rows} rows: its "
            "tokenizer was given tokens that its weights do not know. Use the tokenizer that belongs to the weights, "
            "or leave the token out."
        )


def _require_fit(model: LanguageModel, prompt: Prompt, length: int) -> None:
    limit = model.context_length
    if limit is not None and length > limit:
        shown = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        raise DataError(
            f"the prompt {shown[:60]!r}... needs {length} tokens with its response, but the context of "
            f"{model.name!r} is {limit}. Shorten it, leave it out, or ask for shorter replies "
            "(--max-new-tokens)."
        )
