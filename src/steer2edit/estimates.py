"""What is measured: estimates with 95 % intervals, under conditions; and the one way to write them for people."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = 1
"""Of the JSON that holds conditions."""
NOT_SCORED = "not scored"
NO_INTERVAL = "no interval"

ConditionKind = Literal["base", "steering", "edit", "baseline"]
Value = bool | float | None
"""What one item came to: a verdict, a number, or `None` where it could not be scored."""


@dataclass(frozen=True)
class Estimate:
    """A mean, a rate, a difference or a ratio."""

    value: float | None  # `None` if nothing could be scored
    low: float | None  # lower end of the 95 % interval; `None` where it has none
    high: float | None
    n: int  # how many items it rests on
    unscored: int = 0  # how many items could not be scored

    @property
    def has_interval(self) -> bool:
        """Whether an end of the interval is known."""
        return self.value is not None and not (self.low is None and self.high is None)

    def above(self, bound: float) -> bool:
        """Whether the whole interval lies above a bound; not where its end is not known."""
        return self.low is not None and self.low > bound

    def below(self, bound: float) -> bool:
        """Whether the whole interval lies below a bound; not where its end is not known."""
        return self.high is not None and self.high < bound

    @property
    def counts(self) -> str:
        """What it rests on: `n = 48`, `n = 45, 3 not scored`."""
        return f"n = {self.n}" + (f", {self.unscored} {NOT_SCORED}" if self.unscored else "")

    def to_json(self) -> dict[str, Any]:
        """The five fields by name."""
        return asdict(self)


@dataclass(frozen=True)
class Condition:
    """One intervention and what was measured under it."""

    label: str  # shown to people, e.g. `steering 0.2` or `ρ_attn=0.2 ρ_mlp=0.9 α=0.5`
    metrics: Mapping[str, Estimate] = field(default_factory=dict)  # by metric name (see `evaluation.metric_name`)
    kind: ConditionKind = "edit"
    parameters: Mapping[str, Any] = field(default_factory=dict)  # JSON-able settings of the intervention
    # by set name, in the order of the prompts; whether each shows the behaviour
    replies: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)
    outcomes: Mapping[str, Sequence[bool | None]] = field(default_factory=dict, repr=False)
    values: Mapping[str, Sequence[Value]] = field(default_factory=dict, repr=False)  # of each item, by metric name

    def value(self, name: str) -> float | None:
        """A metric's estimate; `None` if it was not measured or not scored."""
        return self.metrics[name].value if name in self.metrics else None

    def scored(self, *names: str) -> bool:
        """Whether each of these metrics has a value."""
        return all(self.value(name) is not None for name in names)

    @property
    def is_complete(self) -> bool:
        """Whether it was measured on all items; a trial that a search stopped was not."""
        return self.parameters.get("stopped") is None

    def to_json(self) -> dict[str, Any]:
        """All fields; estimates as objects, and `None` for what JSON cannot hold and an estimate does not count."""
        values = {
            name: [value if value is not None and math.isfinite(value) else None for value in values]
            for name, values in self.values.items()
        }
        return {**asdict(self), "values": values}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Condition":
        """The condition that `to_json` described."""
        return cls(**{**stored, "metrics": {name: Estimate(**one) for name, one in stored["metrics"].items()}})

    def for_card(self) -> dict[str, Any]:
        """What a model card shows: label and metrics."""
        return {"label": self.label, "metrics": {name: one.to_json() for name, one in self.metrics.items()}}


@dataclass(frozen=True)
class Notation:
    """How the numbers of a quantity are written."""

    digits: str = ".3g"  # Python's format of a number
    unit: str = ""  # behind it, with its space
    scale: float = 1.0  # what a number is multiplied by: 100 for percent
    signed: bool = False  # whether a plus is written: of differences
    typeset: bool = False  # with a true minus sign, for pages

    def number(self, value: float | None) -> str:
        """The bare number: `58`, `+0.148`; or that there is no bound."""
        if value is None:
            return "no bound"
        text = f"{self.scale * value:{'+' if self.signed else ''}z{self.digits}}"
        return text.replace("-", "−") if self.typeset else text

    def value(self, found: Estimate | float | None) -> str:
        """The number with its unit, `58 %`, or `not scored`."""
        value = found.value if isinstance(found, Estimate) else found
        return NOT_SCORED if value is None else self.number(value) + self.unit

    def text(self, found: Estimate, *, n: bool = False) -> str:
        """An estimate in a line: `58 % [48, 67]`; with its counts, `58 % [48, 67] (n = 45, 3 not scored)`."""
        if found.value is None:
            return NOT_SCORED
        counts = f" ({found.counts})" if n else f" ({found.unscored} {NOT_SCORED})" if found.unscored else ""
        ends = f"{self.number(found.low)}, {self.number(found.high)}" if found.has_interval else NO_INTERVAL
        return f"{self.value(found)} [{ends}]{counts}"

    def interval(self, found: Estimate) -> str:
        """The interval alone, `44.3 to 71.2 %`, or that there is none; of percent and points with the unit."""
        if not found.has_interval:
            return "" if found.value is None else NO_INTERVAL
        return f"{self.number(found.low)} to {self.number(found.high)}{'' if self.scale == 1 else self.unit}"

    def sentence(self, found: Estimate) -> str:
        """For running text of a page: `58.3 % (44.3 to 71.2 %, n = 48)`."""
        counts = found.counts.replace(" = ", "\u00a0=\u00a0")
        return f"{self.value(found)} ({', '.join(filter(None, (self.interval(found), counts)))})"


PERCENT, POINTS = Notation(".0f", " %", 100.0), Notation(".0f", " points", 100.0, signed=True)
NUMBER, CHANGE = Notation(), Notation(signed=True)
_TABLE, _TABLE_CHANGE = Notation(".3f"), Notation(".3f", signed=True)


def column(share: bool, change: bool = False) -> Notation:
    """How a column of a terminal writes rates (`share`) or means, or changes of them: `58 % [48, 67]`, `+12 points`."""
    return (POINTS if change else PERCENT) if share else (_TABLE_CHANGE if change else _TABLE)
