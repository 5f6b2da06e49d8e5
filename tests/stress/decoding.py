"""The inverses of the codings, which say that nothing of a request is lost; and a request back from an attack."""

import base64
import codecs
import json
import re
import unicodedata
from collections.abc import Callable, Mapping

from steer2edit.models import Prompt
from steer2edit.steering.transformation import REQUEST, Transformation, request_of

_UNLEET = str.maketrans("431057", "aeiost")
LOSSY = {"leetspeak"}
"""Undone only for a text without digits, and without regard to case."""


def _from_pieces(text: str) -> str:
    pieces = {name: json.loads(value) for name, value in re.findall(r'^(\w+) = (".*")$', text, re.MULTILINE)}
    return "".join(pieces[name] for name in sorted(pieces))


DECODED: Mapping[str, Callable[[str], str]] = {
    "none": str,
    "base64": lambda text: base64.b64decode(text.encode("ascii"), validate=True).decode(),
    "rot13": lambda text: codecs.encode(text, "rot13"),
    "leetspeak": lambda text: text.translate(_UNLEET),
    "full-width": lambda text: unicodedata.normalize("NFKC", text),
    "spaced": lambda text: " ".join("".join(letters.split(" ")) for letters in text.split("   ")),
    "halves": _from_pieces,
    "five-pieces": _from_pieces,
}


def request_in(attack: Transformation, attacked: Prompt) -> str:
    """The request back from a prompt of the attack, whose template stands around it at the message's end."""
    template, text = attack.template, request_of(attacked)
    if REQUEST not in template:  # it is in one of the scripted turns
        assert text == template
        scripted = [said for pair in attack.turns for said in pair]
        place = next(i for i, said in enumerate(scripted) if REQUEST in said)
        template, text = scripted[place], attacked[place - len(scripted) - 1]["content"]  # type: ignore[index]
    head, tail = template.split(REQUEST)
    assert text.endswith(tail)
    begin = text.rindex(head) if attack.shots_as == "transcript" else 0
    assert text[begin:].startswith(head)
    return DECODED[attack.coding](text[begin + len(head) : len(text) - len(tail)])
