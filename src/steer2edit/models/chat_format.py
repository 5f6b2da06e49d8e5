"""The tokenizer with its chat template, and what else a rendered prompt depends on: arguments and the day."""

import hashlib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jinja2 import meta
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from steer2edit.errors import InvalidValueError, ModelError
from steer2edit.models.swapped import swapped

_SETTINGS = {
    *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
    "messages",
    "strftime_now",
    "raise_exception",
}


@dataclass(frozen=True)
class ChatFormat:
    """How prompts are rendered: fixed for a model, written into what is made with it, and taken from there later."""

    # handed to the template by name, such as `{"enable_thinking": False}`
    arguments: Mapping[str, Any] = field(default_factory=dict)
    # the day that templates which write the date are told, as YYYY-MM-DD; by default today
    date: str = field(default_factory=lambda: date.today().isoformat())
    source: str | None = None  # the file that the template came from, for messages
    system: str | None = None  # a system message that conversations begin with which have none of their own

    def __post_init__(self) -> None:
        try:
            plain = json.loads(json.dumps(dict(self.arguments), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise InvalidValueError(f"template arguments must be JSON, got {self.arguments!r}: {error}.") from error
        object.__setattr__(self, "arguments", plain)
        for name in plain:
            if not name.isidentifier() or name in _SETTINGS:
                raise InvalidValueError(
                    f"{name!r} cannot be a template argument: it must be the name of a variable of the chat template, "
                    "such as enable_thinking."
                )
        try:
            date.fromisoformat(self.date)
        except ValueError as error:
            raise InvalidValueError(f"the date must be YYYY-MM-DD, got {self.date!r}.") from error
        if self.system is not None and not self.system.strip():
            raise InvalidValueError(
                f"the system message must not be empty, got {self.system!r}. Leave it out for none."
            )

    @classmethod
    def going_on(
        cls, arguments: Mapping[str, Any], like: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        source: str | None, system: str | None = None,
    ) -> "ChatFormat":  # fmt: skip
        """The format of what is gone on from, by the first metadata with a record; what is given takes precedence."""
        recorded = recorded_chat(*((like,) if isinstance(like, Mapping) else like))
        day = {"date": str(recorded["date"])} if recorded.get("date") else {}
        own = recorded.get("system") if system is None else system
        return cls({**(recorded.get("arguments") or {}), **arguments}, source=source, system=own, **day)

    def require_used(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse an argument that a tokenizer's template does not read, with an InvalidValueError that lists those."""
        unread = [name for name in self.arguments if not re.search(rf"\b{name}\b", template_of(tokenizer))]
        if not unread:
            return
        templates, known = tokenizer.chat_template, set[str]()
        for text in templates.values() if isinstance(templates, dict) else [templates] if templates else []:
            environment = chat_template_utils._compile_jinja_template(text).environment
            known |= meta.find_undeclared_variables(environment.parse(text)) - environment.globals.keys() - _SETTINGS
        shown = ", ".join(sorted(name for name in known if not name.endswith("_token")))
        raise InvalidValueError(
            f"the chat template has no variable {unread[0]!r}, so an argument of that name would change nothing. It "
            f"knows {shown or 'none'}. Check the spelling, or leave the argument out."
        )

    def describe(self, template: str) -> dict[str, Any]:
        """JSON-able record for artifacts: the template's SHA-256, the arguments, and the day if it may write that."""
        return {
            "template": hashlib.sha256(template.encode()).hexdigest(),
            "arguments": dict(self.arguments),
            "date": self.date if "strftime_now" in template else None,
            **({} if self.system is None else {"system": self.system}),
        }

    def clock(self) -> AbstractContextManager[None]:
        """Within the context, templates are told midnight of the day: transformers asks its module's `datetime`."""
        day = datetime.fromisoformat(self.date)
        return swapped(chat_template_utils, "datetime", SimpleNamespace(now=lambda: day))


def recorded_chat(*metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first record of `ChatFormat.describe` in the metadata of artifacts, or in what makes a run this run."""
    for own in metadata:
        for holder in (own.get("model"), own):
            chat = holder.get("chat") if isinstance(holder, Mapping) else None
            if isinstance(chat, Mapping):
                return chat
    return {}


_PLAIN_TEXT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def load_tokenizer(path: str, chat_template: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, with its own chat template or the one that is asked for."""
    tokenizer = with_template(AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code), path)
    if chat_template == "none":
        begins = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = (tokenizer.bos_token if begins else "") + _PLAIN_TEXT_TEMPLATE
    elif chat_template is not None:
        tokenizer.chat_template = read_template(Path(chat_template))
    return tokenizer


def with_template(tokenizer: PreTrainedTokenizerBase, path: str) -> PreTrainedTokenizerBase:
    """A tokenizer that renders text: itself, or instead of mistral-common's what tokenizer.json or tekken.json makes.

    transformers prefers mistral-common's where that package is installed, which renders by rules of its own, without
    text or offsets. A ModelError where there is no other.
    """
    if type(tokenizer).__name__ != "MistralCommonBackend":
        return tokenizer
    try:
        found: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(path)
    except Exception as error:  # transformers says in many ways that there is none
        raise ModelError(
            f"there is no tokenizer in {path!r} but mistral-common's, which renders no text: put a tokenizer.json "
            "beside the weights, or wrap(model, PreTrainedTokenizerFast.from_pretrained(FOLDER)) with another."
        ) from error
    for name, token in tokenizer.special_tokens_map.items():
        if getattr(found, name, None) is None:
            setattr(found, name, token)
    return found


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of tokens, with special ones."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a tokenizer's chat template, or of its named ones; empty if it has none."""
    return str(getattr(tokenizer, "chat_template", None) or "")


def read_template(file: Path) -> Any:
    """The Jinja text of a file, or what a JSON file has as its `chat_template`; a ModelError where there is none."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read the chat template '{file}': {error}") from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return text
    template = content.get("chat_template") if isinstance(content, dict) else None
    if not template or not isinstance(template, str):
        raise ModelError(
            f"'{file}' is JSON without a chat_template that is text: give a Jinja file, or a chat_template.json or "
            "tokenizer_config.json that has one."
        )
    return template
