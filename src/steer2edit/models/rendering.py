"""Prompts, and conversations that end with a given response, as text: by the chat template alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from transformers import PreTrainedTokenizerBase

from steer2edit.errors import DataError, ModelError
from steer2edit.models.chat_format import renders_tokens, template_of
from steer2edit.models.language_model import LanguageModel
from steer2edit.models.thoughts import begun_thought

_MARK = "\ue000"  # of Unicode's private use: in no text, and no whitespace that a template would strip


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
    """The model's tokenizer, which must have a chat template.

    Raises:
        ModelError: the model came without a tokenizer, or the tokenizer without a chat template.
    """
    if model.tokenizer is None:
        raise ModelError(f"{model.name!r} was loaded without a tokenizer; give one to read or write text.")
    if not template_of(model.tokenizer) and not renders_tokens(model.tokenizer):
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
    return _rendered(model, messages_of(model, prompt), reply=True)


def render_turns(model: LanguageModel, pairs: Sequence[tuple[Prompt, str]], *, thoughts: bool = False) -> list[Turn]:
    """Prompts with their responses, each where the template writes the assistant's turn.

    A template may put something between the prompt and the response (a space, an empty thought), and strip the
    response: what it puts there is what it writes in front of a mark that stands for the response. Where the template
    takes no turn of the assistant, or does not write the response as it is (most drop a thought that it begins with),
    the response stands where the model would write it: behind the rendered prompt. So it does where the template begins
    a thought there, and the response ends it or is known to begin with one (`thoughts`).

    Raises:
        DataError: a prompt is empty, or the template rejects it.
    """
    frames: dict[str, tuple[list[str], str]] = {}
    turns = []
    for prompt, response in pairs:
        messages = messages_of(model, prompt)
        key = repr(messages)
        if key not in frames:
            frame = (_assistant_turn(model, messages, _MARK) or "").split(_MARK)
            frames[key] = frame, _rendered(model, messages, reply=True)
        frame, asked = frames[key]
        begun = begun_thought(asked)
        inside = begun is not None and (thoughts or begun.closes in response)
        turn = None if inside else _framed(model, messages, response, frame)
        turns.append(turn or Turn(asked + response, len(asked), len(asked + response)))
    return turns


def _framed(model: LanguageModel, messages: Messages, response: str, frame: Sequence[str]) -> Turn | None:
    """The turn, if the template writes the response between the same texts as the mark."""
    text = _assistant_turn(model, messages, response) if len(frame) == 2 else None
    if text is None:
        return None
    before, behind = frame
    start, end = len(before), len(text) - len(behind)
    whole = text.startswith(before) and text.endswith(behind) and text[start:end].strip() == response.strip()
    return Turn(text, start, end) if whole else None


def _assistant_turn(model: LanguageModel, messages: Messages, content: str) -> str | None:
    """The conversation with a last turn of the assistant; `None` if the template takes none."""
    try:
        return _rendered(model, [*messages, {"role": "assistant", "content": content}], reply=False)
    except DataError:
        return None


def messages_of(model: LanguageModel, prompt: Prompt) -> list[dict[str, str]]:
    """The prompt as a conversation, which begins with the model's system message unless it has one of its own."""
    messages: list[Any] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [{**m} for m in prompt]
    if not messages or not str(messages[-1].get("content", "")).strip():
        raise DataError(f"a prompt must not be empty, got {prompt!r}.")
    if model.chat.system is None or any(message.get("role") == "system" for message in messages):
        return messages
    return [{"role": "system", "content": model.chat.system}, *messages]


def prompt_ids(model: LanguageModel, messages: Messages) -> list[int]:
    """Tokens of a conversation by a tokenizer that renders tokens, not text, up to where the next reply begins."""
    return list(_apply(model, messages, tokenize=True, return_dict=False, add_generation_prompt=True))


def turn_ids(model: LanguageModel, messages: Messages, response: str) -> list[int]:
    """Tokens of a conversation with a response, by such a tokenizer, up to the response's end."""
    turns = [*messages, {"role": "assistant", "content": response}]
    return list(_apply(model, turns, tokenize=True, return_dict=False, continue_final_message=True))


def _rendered(model: LanguageModel, messages: Messages, *, reply: bool) -> str:
    """The conversation as text; with `reply`, up to where the assistant's next reply begins.

    Raises:
        DataError: the template rejects it, or renders it without something that was said in it.
    """
    text = str(_apply(model, messages, tokenize=False, add_generation_prompt=reply))
    for message in messages:
        said = str(message.get("content", ""))
        written = said.strip() in text or "".join(said.split()) in "".join(text.split())  # templates strip white space
        if message.get("role") != "assistant" and not written:
            raise DataError(
                f"{_source(model)} renders the {message.get('role')}'s message {message['content'][:60]!r} without its "
                f"text, as {text[:60]!r}. Give a template that writes every message (--chat-template), or leave out "
                "those that it does not write."
            )
    return text


def _apply(model: LanguageModel, messages: Messages, **settings: Any) -> Any:
    tokenizer = tokenizer_of(model)
    try:
        with model.chat.clock():
            return tokenizer.apply_chat_template(messages, **settings, **model.chat.arguments)
    except Exception as error:  # a template is a program of the model's author: it raises what it likes
        raise DataError(f"{_source(model)} rejects the prompt {messages[-1]['content']!r}: {error}") from error


def _source(model: LanguageModel) -> str:
    """What renders prompts, for messages."""
    return f"the chat template {'of ' + repr(model.name) if model.chat.source is None else repr(model.chat.source)}"
