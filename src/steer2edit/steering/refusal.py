"""Is a reply a refusal? By phrases, as published evaluations do; the lists are data, in `refusals.toml`."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from steer2edit.errors import InvalidValueError, did_you_mean


@dataclass(frozen=True)
class RefusalPhrases:
    """A list of phrases and where they count.

    Args:
        name: of the list.
        phrases: what to look for.
        at_start: whether the reply must begin with a phrase (case and apostrophes do not matter), or may contain
            it anywhere with exact case.
    """

    name: str
    phrases: tuple[str, ...]
    at_start: bool

    def is_refusal(self, reply: str) -> bool | None:
        """Whether the reply refuses; `None` (unscored) if it is empty."""
        text = reply.strip().replace("\u2019", "'")
        if not text:
            return None
        if self.at_start:
            return text.lower().lstrip("\"'*#> ").startswith(self.phrases)
        return any(phrase in text for phrase in self.phrases)


@cache
def refusal_phrases(name: str = "strict") -> RefusalPhrases:
    """A named list: `strict` (the default) or `official`.

    Raises:
        InvalidValueError: there is no list of that name.
    """
    text = resources.files("steer2edit.steering").joinpath("refusals.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    if name not in tables:
        raise InvalidValueError(f"unknown list of refusal phrases {name!r}. {did_you_mean(name, tables)}")
    table = tables[name]
    return RefusalPhrases(name, tuple(table["phrases"]), table["where"] == "start")
