"""Untrusted text made harmless: what a model wrote may hold markup, terminal escapes, or invisible controls."""

import html
import re
from typing import Any

from steer2edit.estimates import Estimate

# C0 without tab and newline, DEL, C1, zero-width space, line separators, bidirectional overrides and isolates, lone
# surrogates. Zero-width joiners stay: Persian, Hindi and emoji need them.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]")


def visible(text: str) -> str:
    """The text with every control character written as its code point, `⟨U+001B⟩`, so that it can be read and stored.

    Tabs and newlines stay; a Windows line end counts as a newline.
    """
    return _INVISIBLE.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text.replace("\r\n", "\n"))


def visible_json(value: Any) -> Any:
    """A JSON value with every string in it, keys included, made visible."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list):
        return [visible_json(entry) for entry in value]
    if isinstance(value, dict):
        return {visible(key): visible_json(entry) for key, entry in value.items()}
    return value


def plot_text(text: str) -> str:
    """The text for a plotly label: escaped, because plotly reads `<b>`, `<a>` and entities as markup."""
    return html.escape(visible(text))


def counts(found: Estimate) -> str:
    """What an estimate rests on, with unbreakable spaces."""
    return found.counts.replace(" = ", "\u00a0=\u00a0")
