"""Ways to write a request so that its words are not in the clear."""

import base64
import codecs
import json
import re
from collections.abc import Callable, Mapping
from itertools import pairwise

from steer2edit.errors import InvalidValueError, did_you_mean

_LEET = str.maketrans("aeiostAEIOST", "431057431057")
_FULL_WIDTH = str.maketrans({code: code + 0xFEE0 for code in range(0x21, 0x7F)})
_WORD = re.compile(r"[A-Za-z]+")


def _pig_latin(text: str) -> str:
    """`string` to `ing-stray`: the hyphen keeps where the word began, so that it can be undone."""

    def word(match: re.Match[str]) -> str:
        start = re.match(r"[^aeiouAEIOU]*", match[0])
        cut = start.end() if start else 0
        return f"{match[0][cut:]}-{match[0][:cut]}ay" if cut < len(match[0]) else f"{match[0]}-ay"

    return _WORD.sub(word, text)


def _in_pieces(text: str, count: int) -> list[str]:
    """The text as assignments, `a = "..."`."""
    borders = [round(index * len(text) / count) for index in range(count + 1)]
    pieces = [json.dumps(text[start:end], ensure_ascii=False) for start, end in pairwise(borders)]
    return [f"{chr(ord('a') + index)} = {piece}" for index, piece in enumerate(pieces)]


CODINGS: Mapping[str, Callable[[str], str]] = {
    "none": str,
    "base64": lambda text: base64.b64encode(text.encode()).decode("ascii"),
    "rot13": lambda text: codecs.encode(text, "rot13"),
    "leetspeak": lambda text: text.translate(_LEET),
    "full-width": lambda text: text.translate(_FULL_WIDTH),
    "spaced": lambda text: "   ".join(" ".join(word) for word in text.split(" ")),  # three spaces between words
    "pig-latin": _pig_latin,
    "halves": lambda text: "\n".join(_in_pieces(text, 2)),
    "five-pieces": lambda text: "\n".join(reversed(_in_pieces(text, 5))),
}


def encoded(name: str, text: str) -> str:
    """The text in a coding.

    Raises:
        InvalidValueError: there is no such coding.
    """
    if name not in CODINGS:
        raise InvalidValueError(f"there is no coding {name!r}. {did_you_mean(name, CODINGS)}")
    return CODINGS[name](text)
