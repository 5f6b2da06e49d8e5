"""Prompts into tokens: chat templates, and the exact boundary between a prompt and its response."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict

from transformers import PreTrainedTokenizerBase

from steer2edit.errors import DataError, ModelError
from steer2edit.models.language_model import LanguageModel

SPAN_RULE = "positions whose next token belongs to the response: [start-1, end-1)"


class Message(TypedDict):
    """One chat message."""

    role: str
    content: str


Prompt = str | Sequence[Message]
"""A user's request, or a whole conversation that ends with it."""


@dataclass(frozen=True)
class EncodedResponse:
    """Tokens of prompt + response, and where the response starts.

    Args:
        ids: token ids of the prompt followed by the response.
        start: index of the response's first token; the span is `[start − 1, len(ids) − 1)`.
    """

    ids: tuple[int, ...]
    start: int

    @property
    def span(self) -> range:
        """Positions whose next token belongs to the response."""
        return range(self.start - 1, len(self.ids) - 1)

    @property
    def response_ids(self) -> tuple[int, ...]:
        """The response's tokens."""
        return self.ids[self.start :]


def tokenizer_of(model: LanguageModel) -> PreTrainedTokenizerBase:
    """The model's tokenizer, which must have a chat template.

    Raises:
        ModelError: the model came without a tokenizer, or the tokenizer without a chat template.
    """
    if model.tokenizer is None:
        raise ModelError(f"{model.name!r} was loaded without a tokenizer; give one to read or write text.")
    if not getattr(model.tokenizer, "chat_template", None):
        raise ModelError(
            f"the tokenizer of {model.name!r} has no chat template. Pass --chat-template FILE (a Jinja template), "
            "or --chat-template none to use prompts as plain text."
        )
    return model.tokenizer


def render(model: LanguageModel, prompt: Prompt) -> str:
    """The prompt as text, up to where the assistant's reply begins.

    Raises:
        DataError: the prompt is empty, or the template rejects it.
    """
    return _rendered(model, messages_of(prompt), reply=True)


@dataclass(frozen=True)
class Turn:
    """A rendered conversation that ends with a given response.

    Args:
        text: of the whole.
        start: of the response, in characters.
        end: of the response; what follows is what the template writes behind it.
    """

    text: str
    start: int
    end: int


def render_turns(model: LanguageModel, pairs: Sequence[tuple[Prompt, str]]) -> list[Turn]:
    """Prompts with their responses, each where the template writes the assistant's turn.

    A template may put something between the prompt and the response (a space, an empty thought), and strip the
    response: what it puts there is what it writes in front of a mark that stands for the response. Where the template
    takes no turn of the assistant, or does not write the response as it is (most drop a thought that it begins with),
    the response stands where the model would write it: behind the rendered prompt.

    Raises:
        DataError: a prompt is empty, or the template rejects it.
    """
    frames: dict[str, list[str]] = {}
    turns = []
    for prompt, response in pairs:
        messages = messages_of(prompt)
        key = repr(messages)
        if key not in frames:
            frames[key] = (_assistant_turn(model, messages, _MARK) or "").split(_MARK)
        turns.append(_framed(model, messages, response, frames[key]) or _behind(render(model, prompt), response))
    return turns


_MARK = "\ue000"  # of Unicode's private use: in no text, and no whitespace that a template would strip


def _framed(
    model: LanguageModel, messages: Sequence[Mapping[str, str]], response: str, frame: Sequence[str]
) -> Turn | None:
    """The turn, if the template writes the response between the same texts as the mark."""
    if len(frame) != 2:
        return None
    text = _assistant_turn(model, messages, response)
    if text is None:
        return None
    before, behind = frame
    start, end = len(before), len(text) - len(behind)
    whole = text.startswith(before) and text.endswith(behind) and text[start:end].strip() == response.strip()
    return Turn(text, start, end) if whole else None


def _behind(prompt: str, response: str) -> Turn:
    return Turn(prompt + response, len(prompt), len(prompt + response))


def _assistant_turn(model: LanguageModel, messages: Sequence[Mapping[str, str]], content: str) -> str | None:
    """The conversation with a last turn of the assistant; `None` if the template takes none."""
    try:
        return _rendered(model, [*messages, {"role": "assistant", "content": content}], reply=False)
    except DataError:
        return None


def messages_of(prompt: Prompt) -> list[dict[str, str]]:
    """The prompt as a conversation.

    Raises:
        DataError: it is empty.
    """
    messages: list[Any] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [{**m} for m in prompt]
    if not messages or not str(messages[-1].get("content", "")).strip():
        raise DataError(f"a prompt must not be empty, got {prompt!r}.")
    return messages


def _rendered(model: LanguageModel, messages: Sequence[Mapping[str, str]], *, reply: bool) -> str:
    """The conversation as text; with `reply`, up to where the assistant's next reply begins."""
    tokenizer = tokenizer_of(model)
    try:
        with model.chat.clock():
            return str(
                tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=reply, **model.chat.arguments
                )
            )
    except Exception as error:  # a template is a program of the model's author: it raises what it likes
        raise DataError(
            f"the chat template of {model.name!r} rejects the prompt {messages[-1]['content']!r}: {error}"
        ) from error


def encode_prompts(model: LanguageModel, prompts: Sequence[Prompt], room: int = 0) -> list[list[int]]:
    """Token ids of rendered prompts.

    Args:
        model: whose template and tokenizer are used.
        prompts: what to encode.
        room: tokens that must still fit into the context behind the prompt.

    Raises:
        DataError: a prompt is empty, or longer than the context leaves room for.
    """
    if not prompts:
        return []
    texts = [render(model, prompt) for prompt in prompts]
    encoded = tokenizer_of(model)(texts, add_special_tokens=False)["input_ids"]
    for prompt, ids in zip(prompts, encoded, strict=True):
        _require_fit(model, prompt, len(ids) + room)
    return [list(ids) for ids in encoded]


def encode_responses(model: LanguageModel, pairs: Sequence[tuple[Prompt, str]]) -> list[EncodedResponse]:
    """Tokenise every prompt with its response as one text, and find the first token of the response.

    The text is that of `render_turns`, up to the response's end. The boundary comes from the tokenizer's character
    offsets, so it is exact even where a token would be split or merged differently by tokenising the two apart: a token
    that straddles the boundary belongs to the response.

    Raises:
        DataError: an empty response, an empty prompt, or a pair longer than the context.
    """
    if not pairs:
        return []
    for prompt, response in pairs:
        if not response.strip():
            raise DataError(f"the response to {prompt!r} is empty: there are no response tokens to average over.")
    tokenizer = tokenizer_of(model)
    encode = _encode_by_offsets if tokenizer.is_fast else _encode_by_prefix
    encoded = encode(tokenizer, render_turns(model, pairs))
    for (prompt, response), item in zip(pairs, encoded, strict=True):
        if not 0 < item.start < len(item.ids):
            raise DataError(f"the response {response!r} to {prompt!r} has no tokens of its own.")
        _require_fit(model, prompt, len(item.ids))
    return encoded


def _encode_by_offsets(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> list[EncodedResponse]:
    with _whole_offsets(tokenizer):
        encoded = tokenizer(
            [turn.text[: turn.end] for turn in turns], add_special_tokens=False, return_offsets_mapping=True
        )
    starts = [
        _first_token_behind(turn.start, offsets) for turn, offsets in zip(turns, encoded["offset_mapping"], strict=True)
    ]
    return [EncodedResponse(tuple(ids), start) for ids, start in zip(encoded["input_ids"], starts, strict=True)]


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


def _first_token_behind(boundary: int, offsets: Sequence[tuple[int, int]]) -> int:
    """Index of the first token with a character behind the boundary."""
    return next((index for index, (_, end) in enumerate(offsets) if end > boundary), len(offsets))


def _encode_by_prefix(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> list[EncodedResponse]:
    """For tokenizers without offsets: what stands before the response is tokenised alone too, and compared."""
    heads = tokenizer([turn.text[: turn.start] for turn in turns], add_special_tokens=False)["input_ids"]
    wholes = tokenizer([turn.text[: turn.end] for turn in turns], add_special_tokens=False)["input_ids"]
    return [
        EncodedResponse(tuple(whole), _tokens_within(tokenizer, head, whole))
        for head, whole in zip(heads, wholes, strict=True)
    ]


def _tokens_within(tokenizer: PreTrainedTokenizerBase, head: list[int], whole: list[int]) -> int:
    """How many first tokens of the whole say nothing that the head does not say; it may be split differently there."""
    count = next((i for i, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b), min(len(head), len(whole)))
    if count < len(head):
        said = str(tokenizer.decode(head, clean_up_tokenization_spaces=False))
        for longer in range(count + 1, len(whole)):
            text = str(tokenizer.decode(whole[:longer], clean_up_tokenization_spaces=False))
            if len(text) > len(said):
                break
            if said.startswith(text):
                count = longer
    return count


def _require_fit(model: LanguageModel, prompt: Prompt, length: int) -> None:
    limit = model.context_length
    if limit is not None and length > limit:
        shown = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        raise DataError(
            f"the prompt {shown[:60]!r}... needs {length} tokens with its response, but the context of "
            f"{model.name!r} is {limit}. Shorten it or leave it out."
        )
