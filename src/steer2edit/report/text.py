"""Untrusted text made harmless: what a model wrote may hold markup, terminal escapes, or invisible controls."""

import html
import re
from typing import Any

# C0 without tab and newline, DEL, C1, zero-width space, line separators, bidirectional overrides and isolates, lone
# surrogates. Zero-width joiners stay: Persian, Hindi and emoji need them.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]")
_CONTROL_PICTURES = 0x2400
_DELETE_PICTURE = "\u2421"


def visible(text: str) -> str:
    """The text with every control character replaced by a sign for it, so that it can be read and stored.

    C0 controls become their Unicode pictures (ESC → ␛), all others `⟨U+202E⟩`. Tabs and newlines stay; a Windows
    line end counts as a newline.
    """
    return _INVISIBLE.sub(_picture, text.replace("\r\n", "\n"))


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(_CONTROL_PICTURES + code)
    return _DELETE_PICTURE if code == 0x7F else f"⟨U+{code:04X}⟩"


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
