"""What a reply is, and where it ends."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from steer2edit.errors import DataError
from steer2edit.models.chat import render, render_turns, tokenizer_of
from steer2edit.models.language_model import LanguageModel


@dataclass(frozen=True)
class Reply:
    """A generated reply.

    Args:
        text: without special tokens.
        ids: its tokens, without the end token.
        finished: whether it ended by itself; a reply that was cut off is not short.
    """

    text: str
    ids: tuple[int, ...]
    finished: bool


def end_ids(model: LanguageModel) -> list[int]:
    """Tokens that end a reply: all that the checkpoint, the tokenizer or the chat template names.

    A configuration's class has a default for it, so what it names must be a special or added token of the tokenizer.
    """
    network, tokenizer = model.network, model.tokenizer
    declared = _listed(getattr(network.generation_config, "eos_token_id", None))
    if tokenizer is None:
        return declared
    configs = (network.config, network.config.get_text_config())
    others = [token for config in configs for token in _listed(getattr(config, "eos_token_id", None))]
    others += [*_listed(tokenizer.eos_token_id), *_listed(turn_end(model))]
    marks = _marks(tokenizer)
    return list(dict.fromkeys([*declared, *(token for token in others if token in marks)]))


def turn_end(model: LanguageModel) -> int | None:
    """The token that the chat template writes behind an assistant's last message; `None` where it writes none.

    It is the first special or added token there that the template does not write within a reply as well.
    """
    tokenizer = model.tokenizer
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        return None
    try:
        asked, (answered,) = render(model, "Hello"), render_turns(model, [("Hello", "Hello")])
    except DataError:
        return None
    before, behind = answered.text[: answered.start], answered.text[answered.end :]
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(asked, before, strict=False)))
    inside, outside = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before[shared:], behind))
    return next((token for token in outside if token in _marks(tokenizer).difference(inside)), None)


def reply_of(model: LanguageModel, row: list[int], ends: list[int]) -> Reply:
    """The reply that generated tokens make, up to the first end token."""
    stop = next((i for i, token in enumerate(row) if token in ends), None)
    ids = tuple(row if stop is None else row[:stop])
    text = tokenizer_of(model).decode(list(ids), skip_special_tokens=True)
    return Reply(str(text).strip(), ids, stop is not None)


def _listed(tokens: Any) -> list[int]:
    if tokens is None:
        return []
    return [int(token) for token in tokens] if isinstance(tokens, Iterable) else [int(tokens)]


def _marks(tokenizer: Any) -> set[int]:
    """Tokens that are no text of their own: special ones, and those added to the vocabulary."""
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
