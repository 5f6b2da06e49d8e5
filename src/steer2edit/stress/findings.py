"""What a stress test finds: lines of the scorecard with the value of every item."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

from steer2edit.errors import InvalidValueError
from steer2edit.estimates import Estimate, Value
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
    """One line of the scorecard: one metric under every arm, on the same items.

    Args:
        name: of the line within its test, e.g. `persona/novelist`; `plain` for the prompts as they are.
        metric: what was measured, e.g. `refused`.
        values: by arm label, the value of every item: a bool (a rate), a number (a mean), or `None` (unscored). The
            first arm is the one that the others are compared with.
        outcome: the verdict.
        sentence: the finding in plain words.
        note: what a reader must know: a budget, what was left out.
        higher_is_better: whether more of the metric is wanted; `None` where that is not a question.
        judged: labels of the arms that the line is about, where that is not the edit, such as a part of the edit.
        shares: by arm, what is left of its own plain gain.
        needed: requests that would tell, where the line is open for want of them.
        decides: whether the condition of the contract rests on the line.
        seconds: that it took to ask.
    """

    name: str
    metric: str
    values: Mapping[str, Sequence[Value]]
    outcome: Outcome
    sentence: str
    note: str = ""
    higher_is_better: bool | None = True
    judged: Sequence[str] = ()
    shares: Mapping[str, Estimate] = field(default_factory=dict)
    needed: int | None = None
    decides: bool = False
    seconds: float | None = None

    def __post_init__(self) -> None:
        if not self.values or len({len(values) for values in self.values.values()}) != 1:
            raise InvalidValueError(f"{self.name}: every arm of a finding has a value for the same items.")
        if unknown := set(self.judged) - self.values.keys():
            raise InvalidValueError(f"{self.name}: no values for {', '.join(sorted(unknown))}, which it is about.")

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Estimate with its 95 % interval by arm."""
        return {arm: estimate(values) for arm, values in self.values.items()}

    @property
    def differences(self) -> dict[str, Estimate]:
        """Paired difference to the first arm, by arm."""
        first, *others = self.values
        return {arm: paired(self.values[arm], self.values[first]) for arm in others}


Texts = Mapping[str, Mapping[str, Sequence[str]]]
"""What the models said, by arm and line."""


@dataclass(frozen=True)
class StressResult:
    """What a test found.

    Args:
        findings: lines of the scorecard.
        replies: what the model said, by arm and line: kept in the run folder, shown shortened.
        facts: JSON-able: budgets, suffixes found, thresholds.
    """

    findings: Sequence[Finding]
    replies: Texts = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

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
