"""Ways to write a request so that its words are not in the clear, each with its inverse."""

import base64
import binascii
import codecs
import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from steer2edit.errors import InvalidValueError, did_you_mean

_LEET = str.maketrans("aeiostAEIOST", "431057431057")
_UNLEET = str.maketrans("431057", "aeiost")
_FULL_WIDTH = str.maketrans({code: code + 0xFEE0 for code in range(0x21, 0x7F)})
_WORD = re.compile(r"[A-Za-z]+")
_PIG_WORD = re.compile(r"[A-Za-z]+-[A-Za-z]*ay")
_PIECE = re.compile(r'^(\w+) = (".*")$', re.MULTILINE)


@dataclass(frozen=True)
class Coding:
    """A way to write a text.

    Args:
        encode: text to its other form.
        decode: back again.
        exact: whether `decode(encode(text)) == text` for every text of printable ASCII; otherwise only for one
            without digits, and without regard to case.
    """

    encode: Callable[[str], str]
    decode: Callable[[str], str]
    exact: bool = True


def _same(text: str) -> str:
    return text


def _to_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode("ascii")


def _from_base64(text: str) -> str:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise InvalidValueError(f"{text!r} is not base64: {error}") from error


def _rot13(text: str) -> str:
    return codecs.encode(text, "rot13")


def _to_full_width(text: str) -> str:
    return text.translate(_FULL_WIDTH)


def _from_full_width(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _to_spaced(text: str) -> str:
    """A space between letters, three between words."""
    return "   ".join(" ".join(word) for word in text.split(" "))


def _from_spaced(text: str) -> str:
    return " ".join("".join(letters.split(" ")) for letters in text.split("   "))


def _to_pig_latin(text: str) -> str:
    """`string` to `ing-stray`: the hyphen keeps where the word began, so that it can be undone."""

    def word(match: re.Match[str]) -> str:
        start = re.match(r"[^aeiouAEIOU]*", match[0])
        cut = start.end() if start else 0
        return f"{match[0][cut:]}-{match[0][:cut]}ay" if cut < len(match[0]) else f"{match[0]}-ay"

    return _WORD.sub(word, text)


def _from_pig_latin(text: str) -> str:
    def word(match: re.Match[str]) -> str:
        rest, _, start = match[0].partition("-")
        return start.removesuffix("ay") + rest

    return _PIG_WORD.sub(word, text)


def _in_pieces(count: int, shuffled: bool = False) -> Callable[[str], str]:
    """The text as assignments, `a = "..."`, in order or the last one first."""

    def encode(text: str) -> str:
        borders = [round(index * len(text) / count) for index in range(count + 1)]
        pieces = [text[start:end] for start, end in pairwise(borders)]
        lines = [
            f"{chr(ord('a') + index)} = {json.dumps(piece, ensure_ascii=False)}" for index, piece in enumerate(pieces)
        ]
        return "\n".join(reversed(lines) if shuffled else lines)

    return encode


def _together(text: str) -> str:
    pieces = {name: json.loads(value) for name, value in _PIECE.findall(text)}
    return "".join(pieces[name] for name in sorted(pieces))


CODINGS: Mapping[str, Coding] = {
    "none": Coding(_same, _same),
    "base64": Coding(_to_base64, _from_base64),
    "rot13": Coding(_rot13, _rot13),
    "leetspeak": Coding(lambda text: text.translate(_LEET), lambda text: text.translate(_UNLEET), exact=False),
    "full-width": Coding(_to_full_width, _from_full_width),
    "spaced": Coding(_to_spaced, _from_spaced),
    "pig-latin": Coding(_to_pig_latin, _from_pig_latin),
    "halves": Coding(_in_pieces(2), _together),
    "five-pieces": Coding(_in_pieces(5, shuffled=True), _together),
}


def coding(name: str) -> Coding:
    """A coding by its name.

    Raises:
        InvalidValueError: there is none.
    """
    if name not in CODINGS:
        raise InvalidValueError(f"there is no coding {name!r}. {did_you_mean(name, CODINGS)}")
    return CODINGS[name]
