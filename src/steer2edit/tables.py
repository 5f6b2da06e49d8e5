"""Text for people: without controls, and as tables that fit a width; rows as a data frame.

A line is broken between an estimate and its interval, never within a number.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from steer2edit.errors import InvalidValueError

if TYPE_CHECKING:
    import pandas

_TOKENS = re.compile(r"\[[^\]]*\]|\([^)]*\)|[+\-−]?[\d.,]+ (?:%|points|tokens)|\S+")
_GAP = "  "
# C0 without tab and newline, DEL, C1, zero-width space, line separators, bidirectional marks, overrides and isolates,
# lone surrogates, tags. Zero-width joiners stay: Persian, Hindi and emoji need them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)

Cells = Sequence[Sequence[str]]


def visible(text: str) -> str:
    """The text with every control character written as its code point, `⟨U+001B⟩`, so that it can be read and stored.

    Tabs and newlines stay; a Windows line end counts as a newline.
    """
    return _INVISIBLE.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text.replace("\r\n", "\n"))


def shown_reply(text: str) -> str:
    """A reply as people read it: one without text would be a gap."""
    return text if text.strip() else "(empty reply)"


def text_table(columns: Sequence[str], rows: Cells, width: int) -> list[str]:
    """The lines of a table, the first column text and the others figures.

    Where it is too wide its cells are broken, and where it still is, it is divided into several, one below the other,
    each with the first column. Nothing is ever cut off; a newline in a title is kept.
    """
    table = [[visible(cell) for cell in row] for row in (columns, *rows)]
    least = [max(_longest(row[place]) for row in table) for place in range(len(columns))]
    groups, used = [[0]], least[0]  # columns that fit beside each other, each group with the first
    for place, own in enumerate(least[1:], start=1):
        if used + len(_GAP) + own > width and len(groups[-1]) > 1:
            groups.append([0])
            used = least[0]
        groups[-1].append(place)
        used += len(_GAP) + own
    lines: list[str] = []
    for group in groups:
        part = [[row[place] for place in group] for row in table]
        lines += [""] * bool(lines) + _laid_out(part, _widths(part, [least[place] for place in group], width))
    return lines


def _widths(table: Cells, least: Sequence[int], width: int) -> list[int]:
    """The natural widths, narrowed as far as needed: the widest first, and the first column last."""
    widths = [max(cell_len(line) for row in table for line in row[i].split("\n")) for i in range(len(least))]
    while sum(widths) + len(_GAP) * (len(widths) - 1) > width:
        room = [(i > 0, own, i) for i, (own, low) in enumerate(zip(widths, least, strict=True)) if own > low]
        if not room:
            break
        widths[max(room)[2]] -= 1
    return widths


def _laid_out(table: Cells, widths: Sequence[int]) -> list[str]:
    lines = []
    for row in table:
        cells = [_broken(cell, width) for cell, width in zip(row, widths, strict=True)]
        for texts in zip_longest(*cells, fillvalue=""):
            spaces = [" " * (width - cell_len(text)) for text, width in zip(texts, widths, strict=True)]
            first, *others = zip(texts, spaces, strict=True)
            lines.append(_GAP.join(["".join(first), *(space + text for text, space in others)]).rstrip())
    return lines


def _longest(text: str) -> int:
    return max(map(cell_len, _TOKENS.findall(text)), default=0)


def _broken(text: str, width: int) -> list[str]:
    """The lines of a cell."""
    lines: list[str] = []
    for part in text.split("\n"):
        if cell_len(part) <= width:
            lines.append(part)
            continue
        line = ""
        for token in _TOKENS.findall(part):
            if line and cell_len(line) + 1 + cell_len(token) > width:
                lines.append(line)
                line = token
            else:
                line = f"{line} {token}" if line else token
        lines.append(line)
    return lines


def frame(rows: Sequence[Mapping[str, Any]]) -> "pandas.DataFrame":
    """Rows as a table of pandas."""
    try:
        import pandas
    except ImportError as error:
        raise InvalidValueError("to_pandas() needs pandas, which is not installed: pip install pandas.") from error
    return pandas.DataFrame(rows)
