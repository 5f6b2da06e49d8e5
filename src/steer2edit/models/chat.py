"""Prompts and responses into text, by the chat template alone, and tokens: the exact boundary between the two."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from transformers import PreTrainedTokenizerBase

from steer2edit.errors import DataError, InvalidValueError, ModelError
from steer2edit.models.chat_format import decoded, template_of
from steer2edit.models.language_model import LanguageModel
from steer2edit.models.thoughts import begun_thought, find_thought

_MARK = "\ue000"  # of Unicode's private use: in no text, and no whitespace that a template would strip
PARTS = ("response", "thought", "answer")
SPAN_RULE = "positions whose next token belongs to the response: [start-1, end-1)"


class Message(TypedDict):
    """One chat message."""

    role: str
    content: str


Prompt = str | Sequence[Message]
"""A user's request, or a whole conversation that ends with it."""
Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Turn:
    """A rendered conversation that ends with a given response."""

    text: str  # of the whole
    start: int  # of the response, in characters
    end: int  # of the response; what follows is what the template writes behind it


def tokenizer_of(model: LanguageModel) -> PreTrainedTokenizerBase:
    """The model's tokenizer, which must be there and have a chat template; otherwise a ModelError."""
    if model.tokenizer is None:
        raise ModelError(f"{model.name!r} was loaded without a tokenizer; give one to read or write text.")
    if not template_of(model.tokenizer):
        raise ModelError(
            f"the tokenizer of {model.name!r} has no chat template. Pass --chat-template FILE (a Jinja template), "
            "or --chat-template none to use prompts as plain text. Of a tokenizer that is wrapped, set chat_template."
        )
    return model.tokenizer


def render(model: LanguageModel, prompt: Prompt) -> str:
    """The prompt as text, up to where the reply begins; a DataError if it is empty, or the template rejects it."""
    return _rendered(model, messages_of(model, prompt), reply=True)


def render_turns(model: LanguageModel, pairs: Sequence[tuple[Prompt, str]], *, thoughts: bool = False) -> list[Turn]:
    """Prompts with their responses, each where the template writes the assistant's turn.

    A template may put something between the prompt and the response (a space, an empty thought), and strip the
    response: what it puts there is what it writes in front of a mark that stands for the response. Where the template
    takes no turn of the assistant, or does not write the response as it is (most drop a thought that it begins with),
    the response stands where the model would write it: behind the rendered prompt. So it does where the template begins
    a thought there, and the response ends it or is known to begin with one (`thoughts`).
    """
    frames: dict[str, tuple[list[str], str]] = {}
    turns = []
    for prompt, response in pairs:
        messages = messages_of(model, prompt)
        key = repr(messages)
        if key not in frames:
            frame = _assistant_turn(model, messages, _MARK).split(_MARK)
            frames[key] = frame, _rendered(model, messages, reply=True)
        frame, asked = frames[key]
        turn = Turn(asked + response, len(asked), len(asked + response))
        begun = begun_thought(asked)
        inside = begun is not None and (thoughts or begun.closes in response)
        if len(frame) == 2 and not inside and (text := _assistant_turn(model, messages, response)):
            start, end = len(frame[0]), len(text) - len(frame[1])
            framed = text.startswith(frame[0]) and text.endswith(frame[1])
            if framed and text[start:end].strip() == response.strip():
                turn = Turn(text, start, end)
        turns.append(turn)
    return turns


def _assistant_turn(model: LanguageModel, messages: Messages, content: str) -> str:
    """The conversation with a last turn of the assistant; empty if the template takes none."""
    try:
        return _rendered(model, [*messages, {"role": "assistant", "content": content}], reply=False)
    except DataError:
        return ""


def messages_of(model: LanguageModel, prompt: Prompt) -> list[dict[str, str]]:
    """The prompt as a conversation, which begins with the model's system message unless it has one of its own."""
    messages: list[Any] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [{**m} for m in prompt]
    if not messages or not str(messages[-1].get("content", "")).strip():
        raise DataError(f"a prompt must not be empty, got {prompt!r}.")
    if model.chat.system is None or any(message.get("role") == "system" for message in messages):
        return messages
    return [{"role": "system", "content": model.chat.system}, *messages]


def _rendered(model: LanguageModel, messages: Messages, *, reply: bool) -> str:
    """The conversation as text; with `reply`, up to where the assistant's next reply begins."""
    tokenizer = tokenizer_of(model)
    source = f"the chat template {'of ' + repr(model.name) if model.chat.source is None else repr(model.chat.source)}"
    try:
        with model.chat.clock():
            arguments = model.chat.arguments
            text = str(
                tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=reply, **arguments)
            )
    except Exception as error:  # a template is a program of the model's author: it raises what it likes
        raise DataError(f"{source} rejects the prompt {messages[-1]['content']!r}: {error}") from error
    for message in messages:
        said = str(message.get("content", ""))
        written = said.strip() in text or "".join(said.split()) in "".join(text.split())  # templates strip white space
        if message.get("role") != "assistant" and not written:
            raise DataError(
                f"{source} renders the {message.get('role')}'s message {message['content'][:60]!r} without its text, "
                f"as {text[:60]!r}. Give a template that writes every message (--chat-template), or leave it out."
            )
    return text


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

    def first(self, count: int) -> "EncodedResponse":
        """The response up to so many of its tokens."""
        return EncodedResponse(self.ids[: self.start + count], self.start)


def encode_prompts(model: LanguageModel, prompts: Sequence[Prompt], room: int = 0) -> list[list[int]]:
    """Token ids of rendered prompts, behind which so many tokens must still fit into the context; else a DataError."""
    if not prompts:
        return []
    texts = [render(model, prompt) for prompt in prompts]
    encoded = [list(ids) for ids in tokenizer_of(model)(texts, add_special_tokens=False)["input_ids"]]
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
    alone too, and compared. `part` is what of a response is asked for: `response`, its `thought` or `answer`, or its
    first tokens (`16`). A DataError for a pair that is empty, too long for the context, or without that part.
    """
    if part not in PARTS and not (part.isdecimal() and int(part) > 0):
        raise InvalidValueError(f"a span must be response, thought, answer, or a number of tokens >= 1, got {part!r}.")
    if not pairs:
        return []
    for prompt, response in pairs:
        if not response.strip():
            raise DataError(f"the response to {prompt!r} is empty: there are no response tokens to average over.")
    tokenizer, turns = tokenizer_of(model), render_turns(model, pairs, thoughts=part == "thought")
    encoded = (_encode_by_offsets if getattr(tokenizer, "is_fast", False) else _encode_twice)(tokenizer, turns)
    for (prompt, response), item in zip(pairs, encoded, strict=True):
        if not 0 < item.start < len(item.ids):
            raise DataError(f"the response {response!r} to {prompt!r} has no tokens of its own.")
        _require_fit(model, prompt, len(item.ids))
        require_rows(model, item.ids, "a prompt or its response")
    return encoded if part == "response" else [_part(tokenizer, item, part) for item in encoded]


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
            f"the response {decoded(tokenizer, item.response_ids)[:60]!r}... has no {part}, which the span is. Give "
            "responses that have one (replies long enough to end a thought: --max-new-tokens), or take the whole."
        )
    return replace(item, part=(item.start + own.start, item.start + own.stop))


def _encode_by_offsets(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> list[EncodedResponse]:
    backend = tokenizer.backend_tokenizer
    post_processor = backend.post_processor
    backend.post_processor = None  # it may trim whitespace off a token's offsets, and adds nothing that is used here
    try:
        texts = [turn.text[: turn.end] for turn in turns]
        encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    finally:
        backend.post_processor = post_processor
    return [
        EncodedResponse(tuple(ids), next((i for i, (_, end) in enumerate(offsets) if end > turn.start), len(offsets)))
        for turn, ids, offsets in zip(turns, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def _encode_twice(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> list[EncodedResponse]:
    """The response begins where the whole says more than the head, which may be split into other tokens there."""
    heads = tokenizer([turn.text[: turn.start] for turn in turns], add_special_tokens=False)["input_ids"]
    wholes = tokenizer([turn.text[: turn.end] for turn in turns], add_special_tokens=False)["input_ids"]
    found = []
    for head, whole in zip(heads, wholes, strict=True):
        least = min(len(head), len(whole))
        count = next((i for i, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b), least)
        said = str(tokenizer.decode(head, clean_up_tokenization_spaces=False)) if count < len(head) else ""
        for longer in range(count + 1, len(whole)):
            text = str(tokenizer.decode(whole[:longer], clean_up_tokenization_spaces=False))
            if len(text) > len(said):
                break
            if said.startswith(text):
                count = longer
        found.append(EncodedResponse(tuple(whole), count))
    return found


def embedding_rows(model: LanguageModel) -> int:
    """How many tokens the input embedding has a row for."""
    return int(model.network.get_input_embeddings().weight.shape[0])


def require_rows(model: LanguageModel, ids: Sequence[int], where: str) -> None:
    """Refuse a token that the embedding has no row for, with a DataError."""
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
