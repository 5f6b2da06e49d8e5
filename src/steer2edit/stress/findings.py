"""What a stress test finds: lines with the value of every item, what the models said, and facts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

from steer2edit.estimates import Estimate, Value

Group = Literal[
    "attacks", "decoding", "stored", "tuned", "settings", "usefulness", "static", "adaptive", "side-effects", "causal",
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
    "side-effects": "Side effects",
    "causal": "Do the named components carry the behaviour?",
}
"""Groups of tests with their titles, in the order of the scorecard; the first five are conditions of the contract."""
Outcome = Literal["held", "weakened", "failed", "cost", "no-cost", "control", "open"]
"""held, weakened, failed: what became of the attribute; cost, no-cost: of a side effect; control: behaves as a control
must; open: the intervals do not tell, or it could not be scored."""
Texts = Mapping[str, Mapping[str, Sequence[str]]]
"""What the models said, by arm and line."""


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


@dataclass(frozen=True)
class StressResult:
    """What a test found."""

    findings: Sequence[Finding] = ()  # lines of the scorecard
    # what the model said, by arm and line: kept in the run folder, shown shortened
    replies: Texts = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)  # JSON-able: budgets, suffixes found, thresholds
    seconds: float = 0.0  # that it took

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON holds it: numbers of other libraries as Python's, what is not finite as `None`."""
        text = RESULT.dump_json(self, warnings=False, fallback=lambda scalar: scalar.item())
        return dict(json.loads(text))


RESULT = TypeAdapter(StressResult)
"""Reads what `to_json` gave."""
