"""What the names of metrics mean: `{set}_{kind}`, e.g. `advbench_refused`; some presets go without the set."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, Literal

from steer2edit.estimates import Condition, Notation

Scale = Literal["share", "difference", "amount"]
"""A share in [0, 1], written in percent; a signed difference; or an amount."""

COST = "kl"
"""What a search keeps small."""


@dataclass(frozen=True)
class Metric:
    """A metric as people read it."""

    name: str  # its key in the results
    brief: str  # a column's title in a terminal
    short: str  # a few words, for axes and cards
    description: str  # what it is, with its unit
    scale: Scale  # how its numbers are written
    against_base: bool = False  # whether it compares a model with the base, which has none of its own then

    @property
    def unit(self) -> str:
        """` %`, ` nats per token`, ` tokens`, or nothing."""
        if self.scale == "share":
            return "\u00a0%"
        named = re.search(r"\((nats per token|tokens)\)$", self.description)
        return f" {named[1]}" if named else ""

    @property
    def axis(self) -> str:
        """The title of an axis: `NLL increase (nats per token)`."""
        return self.short if self.scale == "share" or not self.unit else f"{self.short} ({self.unit.strip()})"

    @property
    def running(self) -> str:
        """The short name as it stands within a sentence; an acronym keeps its capitals."""
        return self.short if self.short[:2].isupper() else self.short[0].lower() + self.short[1:]

    @property
    def in_cells(self) -> Notation:
        """How a page's tables write it: `58.3 %`, `+0.148`, `41.2`; the title has the unit of what is no share."""
        if self.scale == "share":
            return Notation(".1f", self.unit, 100.0, typeset=True)
        digits = ".1f" if self.unit == " tokens" else ".3f"
        return Notation(digits, signed=self.scale == "difference", typeset=True)

    @property
    def in_words(self) -> Notation:
        """How a page's sentences write it: `58.3 %`, `+0.148 nats per token`."""
        return replace(self.in_cells, unit=self.unit)

    @property
    def change(self) -> Notation:
        """How a page writes a difference of two of it: `+12.5 points`, `−0.020 nats per token`."""
        unit = " points" if self.scale == "share" else self.unit
        return replace(self.in_cells, unit=unit, signed=True)

    def bound(self, value: float) -> str:
        """A limit or an axis end, with unit and without a plus sign: `8.0 %`, `0.200 nats per token`."""
        return self.in_words.value(value).removeprefix("+")


_TEXT = resources.files("steer2edit.evaluation").joinpath("metrics.toml").read_text(encoding="utf-8")
_KINDS: Mapping[str, Mapping[str, Any]] = tomllib.loads(_TEXT)
_LONGEST_FIRST = sorted(_KINDS, key=len, reverse=True)


def metric_name(name: str) -> Metric:
    """What a key of the results means; one that is not known is called by its key."""
    known = next((kind for kind in _LONGEST_FIRST if name == kind or name.endswith(f"_{kind}")), None)
    owner = name.removesuffix(known or "").removesuffix("_").replace("_", " ")
    if known is None:
        return Metric(name, owner, owner, owner, "amount")
    kind = _KINDS[known]
    brief, short, description = (kind[text] for text in ("brief", "short", "description"))
    if owner and "{set}" not in brief:
        brief, short, description = f"{{set}} {brief}", f"{short}, {{set}}", f"{{set}}: {description}"
    brief, short, description = (text.format(set=owner) for text in (brief, short, description))
    short = short[:1].upper() + short[1:]
    return Metric(name, brief, short, description, kind["scale"], kind.get("against_base", False))


def for_card(conditions: Sequence[Condition]) -> dict[str, Any]:
    """What a model card shows: conditions, and what the metrics that any of them has mean, in their order."""
    metrics = {name: metric_name(name).description for condition in conditions for name in condition.metrics}
    return {"conditions": [condition.for_card() for condition in conditions], "metrics": metrics}
