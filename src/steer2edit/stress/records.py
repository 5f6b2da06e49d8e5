"""Lines and tests of a scorecard, as its JSON has them."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from steer2edit.artifacts.manifest import Record
from steer2edit.estimates import ConditionKind, Estimate
from steer2edit.evaluation import Arm
from steer2edit.evaluation.statistics import paired
from steer2edit.stress.findings import Finding, Outcome


class ArmRecord(Record):
    """One of the models that were compared."""

    kind: ConditionKind
    label: str
    parameters: dict[str, Any]


class Line(Record):
    """One line: a metric under every arm, on the same items. Differences are paired, to the first arm.

    Where the line is about other arms than the edit, such as a part of it, `judged` has their differences to the first.
    `shares` are what is left of each arm's plain gain; `decides` says whether the contract rests on the line.
    """

    name: str
    metric: str
    share: bool
    arms: dict[str, Estimate]
    differences: dict[str, Estimate]
    edit_minus_steering: Estimate | None = None
    judged: dict[str, Estimate] = Field(default_factory=dict)
    shares: dict[str, Estimate] = Field(default_factory=dict)
    needed: int | None = None
    decides: bool = False
    seconds: float | None = None
    outcome: Outcome
    sentence: str
    note: str = ""
    higher_is_better: bool | None = True

    @staticmethod
    def of(finding: Finding, arms: Sequence[Arm]) -> "Line":
        """A finding as it is reported."""
        values, labels = finding.values, {arm.kind: arm.label for arm in arms}
        edit, steering = values.get(labels.get("edit", "")), values.get(labels.get("steering", ""))
        scored = [value for own in values.values() for value in own if value is not None]
        first = next(iter(values))
        return Line(
            name=finding.name,
            metric=finding.metric,
            share=finding.metric == "refused" or all(isinstance(value, bool) for value in scored),
            arms=finding.estimates,
            differences=finding.differences,
            edit_minus_steering=None if edit is None or steering is None else paired(edit, steering),
            judged={arm: paired(values[arm], values[first]) for arm in finding.judged},
            shares=dict(finding.shares),
            needed=finding.needed,
            decides=finding.decides,
            seconds=finding.seconds,
            outcome=finding.outcome,
            sentence=finding.sentence,
            note=finding.note,
            higher_is_better=finding.higher_is_better,
        )


class Entry(Record):
    """One test: what it is, and what it found, or why it was not run."""

    name: str
    group: str
    summary: str
    citation: str
    tested: bool = True
    message: str = ""
    seconds: float | None = None
    lines: list[Line] = Field(default_factory=list)
    facts: dict[str, Any] = Field(default_factory=dict)
