"""What an edit leaves out, read from its metadata, in plain words: experts with too few tokens, and whole modules.

And what it does not: sites whose vectors are noise.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from steer2edit.artifacts.facts import Record
from steer2edit.core import Site
from steer2edit.steering.diagnosis import listed

_Tokens = Annotated[int, Field(ge=0)]
_MixtureName = Annotated[str, Field(pattern=r"^L[0-9]{1,6}\.mlp$")]
_ExpertName = Annotated[str, Field(pattern=r"^(E[0-9]{1,6}|shared)$")]


class LeftOutExperts(Record):
    """Experts that were given fewer tokens than an edit needs."""

    min_tokens: _Tokens  # how many it needs
    sites: dict[_MixtureName, dict[_ExpertName, _Tokens]]  # by mixture and expert, the tokens that the expert was given


class LeftOut(Record):
    """What an edit leaves out."""

    experts: LeftOutExperts | None = Field(default=None, alias="experts_left_out")  # `None` if there is none
    # names of modules that write to the residual stream but have neither heads nor neurons
    modules: list[str] = Field(default=[], alias="left_out")
    # sites that were edited although the diagnosis calls their vectors noise
    noisy: list[str] = Field(default=[], alias="noisy_sites")

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> "LeftOut":
        """What an edit's (or vectors') metadata says; an ArtifactError where it does so in another form."""
        known = {name: value for name, value in metadata.items() if value is not None}
        return cls.read(known, "the metadata does not say in a known form what was left out", "Make it again.")

    @property
    def tokens(self) -> dict[tuple[Site, str], int]:
        """Tokens of every expert that is left out, by mixture and expert; in order of the layers."""
        if self.experts is None:
            return {}
        by_site = sorted((Site.parse(name), found) for name, found in self.experts.sites.items())
        return {(site, name): tokens for site, found in by_site for name, tokens in found.items()}

    def experts_of(self, site: Site, most: int | None = None) -> str:
        """`E3 (7 tokens), E9 (1 token)`: the experts of one mixture; empty if it has them all."""
        found = [f"{name} ({counted(n, 'token')})" for (own, name), n in self.tokens.items() if own == site]
        more = 0 if most is None else len(found) - most
        return ", ".join(found[:most]) + (f", and {more} more" if more > 0 else "")

    @property
    def sentences(self) -> list[str]:
        """One sentence each on experts, modules and noise, as far as there are any."""
        found = []
        if self.experts is not None and (tokens := self.tokens):
            experts, layers = counted(len(tokens), "expert"), counted(len({site for site, _ in tokens}), "layer")
            few = f"they were given fewer than {self.experts.min_tokens} tokens"
            found.append(f"Left out, because {few}: {experts} of {layers}.")
        if self.modules:
            names = listed(self.modules)
            found.append(f"Left out, because they have no heads or neurons that an adapter could edit: {names}.")
        if self.noisy:
            found.append(
                f"Edited, although the diagnosis calls their vectors noise: {listed(self.noisy)} "
                f"({counted(len(self.noisy), 'site')})."
            )
        return found


def counted(count: int, noun: str) -> str:
    """`1 token`, `7 tokens`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
