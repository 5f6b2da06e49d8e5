"""What a stress test finds: lines with the value of every item, and with their estimates as the scorecard has them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from pydantic import Field, TypeAdapter

from steer2edit.artifacts.manifest import Record
from steer2edit.estimates import ConditionKind, Estimate, Value
from steer2edit.evaluation import Arm
from steer2edit.evaluation.statistics import estimate, paired

Group = Literal[
    "attacks", "decoding", "stored", "tuned", "settings", "usefulness", "static", "adaptive", "weights",
    "side-effects", "causal",
]  # fmt: skip
GROUPS: Mapping[Group, str] = {
    "attacks": "Held-out attack families",
    "decoding": "Prefilled and sampled",
    "stored": "Stored in 8 and 4 bits",
    "tuned": "After a benign fine-tune",
    "settings": "Other system prompts and languages",
    "usefulness": "Are answers still answers?",
    "static": "Static attacks, family by family",
    "adaptive": "Attacks made for this very model",
    "weights": "Other changes of the weights",
    "side-effects": "Side effects",
    "causal": "Do the named components carry the behaviour?",
}
"""Groups of tests with their titles, in the order of the scorecard; the first five are conditions of the contract."""
Outcome = Literal["held", "weakened", "failed", "cost", "no-cost", "control", "open"]
"""held, weakened, failed: what became of the attribute; cost, no-cost: of a side effect; control: behaves as a control
must; open: the intervals do not tell, or it could not be scored."""


@dataclass(frozen=True)
class Finding:
    """One line of the scorecard: one metric under every arm, on the same items."""

    name: str  # of the line within its test, e.g. `persona/novelist`; `plain` for the prompts as they are
    metric: str  # what was measured, e.g. `refused`
    # by arm label, the value of every item: a bool (a rate), a number (a mean), or `None` (unscored). The first arm is
    # the one that the others are compared with
    values: Mapping[str, Sequence[Value]]
    outcome: Outcome  # the verdict
    sentence: str  # the finding in plain words
    note: str = ""  # what a reader must know: a budget, what was left out
    higher_is_better: bool | None = True  # whether more of the metric is wanted; `None` where that is not a question
    # labels of the arms that the line is about, where that is not the edit, such as a part of the edit
    judged: Sequence[str] = ()
    shares: Mapping[str, Estimate] = field(default_factory=dict)  # by arm, what is left of its own plain gain
    needed: int | None = None  # requests that would tell, where the line is open for want of them
    decides: bool = False  # whether the condition of the contract rests on the line
    seconds: float | None = None  # that it took to ask

    @property
    def differences(self) -> dict[str, Estimate]:
        """Paired difference to the first arm, by arm."""
        first, *others = self.values
        return {arm: paired(self.values[arm], self.values[first]) for arm in others}


Texts = Mapping[str, Mapping[str, Sequence[str]]]
"""What the models said, by arm and line."""


@dataclass(frozen=True)
class StressResult:
    """What a test found."""

    findings: Sequence[Finding]  # lines of the scorecard
    # what the model said, by arm and line: kept in the run folder, shown shortened
    replies: Texts = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)  # JSON-able: budgets, suffixes found, thresholds

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON holds it: numbers of other libraries as Python's, what is not finite as `None`.

        Raises:
            PydanticSerializationError: something in the facts is not JSON.
        """
        text = _RESULT.dump_json(self, warnings=False, fallback=lambda scalar: scalar.item())
        return dict(json.loads(text))

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "StressResult":
        """A result from what `to_json` gave."""
        return _RESULT.validate_python(content)


_RESULT = TypeAdapter(StressResult)


class ArmRecord(Record):
    """One of the models that were compared."""

    kind: ConditionKind
    label: str
    parameters: dict[str, Any]


class Line(Record):
    """A `Finding` as it is reported: every arm's estimate on the same items, and paired differences to the first arm.

    `share` says whether the metric is a rate; where the line is about other arms than the edit, such as a part of it,
    `judged` has their differences to the first.
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
        first = next(iter(values.values()))
        told = {one.name: getattr(finding, one.name) for one in fields(finding) if one.name in Line.model_fields}
        return Line(**told | {
            "share": finding.metric == "refused"
            or all(isinstance(one, bool) for own in values.values() for one in own if one is not None),
            "arms": {arm: estimate(own) for arm, own in values.items()},
            "differences": finding.differences,
            "edit_minus_steering": None if edit is None or steering is None else paired(edit, steering),
            "judged": {arm: paired(values[arm], first) for arm in finding.judged},
        })  # fmt: skip


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
