"""Is a reply a refusal? By phrases, as published evaluations do; the lists are data, in `refusals.toml`."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from steer2edit.errors import InvalidValueError, did_you_mean


@dataclass(frozen=True)
class RefusalPhrases:
    """Which phrases mark a refusal, and where they count.

    Args:
        name: of the list.
        openers: a reply that begins with one is a refusal; lower case.
        apologies: a reply that begins with one is a refusal if it also contains an inability; lower case.
        inabilities: lower case.
        anywhere: a reply that contains one with exact case is a refusal.
    """

    name: str
    openers: tuple[str, ...] = ()
    apologies: tuple[str, ...] = ()
    inabilities: tuple[str, ...] = ()
    anywhere: tuple[str, ...] = ()

    def is_refusal(self, reply: str) -> bool | None:
        """Whether the reply refuses; `None` (unscored) if it is empty."""
        text = reply.strip().replace("\u2019", "'")
        if not text:
            return None
        if any(phrase in text for phrase in self.anywhere):
            return True
        lowered = text.lower().lstrip("\"'*#> ")
        if lowered.startswith(self.openers):
            return True
        return lowered.startswith(self.apologies) and any(phrase in lowered for phrase in self.inabilities)


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
    return RefusalPhrases(name, **{key: tuple(phrases) for key, phrases in tables[name].items()})
