"""Loading a tokenizer, with the chat template that prompts are rendered by."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from steer2edit.errors import ModelError

_PLAIN_TEXT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def load_tokenizer(path: str, chat_template: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, with its own chat template or the one that is asked for.

    transformers prefers mistral-common's tokenizer where that package is installed. It renders by rules of its own, so
    another is taken where there is a chat template.

    Args:
        path: a directory or a Hub id.
        chat_template: a Jinja file, a JSON file with a `chat_template`, `none` for plain text, or `None` for its own.
        trust_remote_code: run the checkpoint's own code.

    Raises:
        ModelError: the file is no template, or the tokenizer takes none.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    if renders_tokens(tokenizer):
        other = _without_mistral_common(path, tokenizer)
        tokenizer = other if other is not None and (chat_template or other.chat_template) else tokenizer
    if chat_template is not None:
        _set_template(tokenizer, chat_template)
    return tokenizer


def _without_mistral_common(path: str, its: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase | None:
    """The tokenizer of `tokenizer.json`, or what transformers makes of `tekken.json`."""
    try:
        other: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(path)
    except Exception:  # transformers says in many ways that there is none
        return None
    for name, token in its.special_tokens_map.items():
        if getattr(other, name, None) is None:
            setattr(other, name, token)
    return other


def renders_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it is mistral-common's: it renders a conversation as tokens, and has no template, text or offsets."""
    return type(tokenizer).__name__ == "MistralCommonBackend"


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, AddedToken]:
    """Tokens that were added to the vocabulary, by id; mistral-common's tokenizer cannot say which."""
    return {} if renders_tokens(tokenizer) else dict(tokenizer.added_tokens_decoder)


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of tokens, with special ones."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a tokenizer's chat template, or of its named ones; empty if it has none."""
    template = getattr(tokenizer, "chat_template", None)
    return str(template) if template else ""


def _set_template(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> None:
    if renders_tokens(tokenizer):
        raise ModelError(
            f"the chat template {chat_template!r} cannot be used: the package mistral-common gives this checkpoint's "
            "tokenizer, which takes none. Leave --chat-template out, put a tokenizer.json beside the weights, "
            "or uninstall mistral-common."
        )
    if chat_template == "none":
        begins = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = (tokenizer.bos_token if begins else "") + _PLAIN_TEXT_TEMPLATE
    else:
        tokenizer.chat_template = read_template(Path(chat_template))


def read_template(file: Path) -> Any:
    """The Jinja text of a file, or what a JSON file has as its `chat_template`: a text, or texts by name.

    Raises:
        ModelError: it cannot be read, or is JSON without one.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read the chat template '{file}': {error}") from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return text
    template = content.get("chat_template") if isinstance(content, dict) else None
    if isinstance(template, list):  # of templates with a name
        named = [one for one in template if isinstance(one, dict) and {"name", "template"} <= one.keys()]
        template = {one["name"]: one["template"] for one in named}
    if not template or not isinstance(template, (str, dict)):
        raise ModelError(
            f"'{file}' is JSON without a chat_template, and a chat template is wanted: give a Jinja file, or a "
            "chat_template.json or tokenizer_config.json that has one."
        )
    return template
