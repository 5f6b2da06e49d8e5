"""What a stress test is, what it is given, and what it finds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from steer2edit.core import SteeringVectors, WeightEdit
from steer2edit.engines import Engine
from steer2edit.errors import InvalidValueError
from steer2edit.evaluation import Arm, Estimate, Value, estimate, paired
from steer2edit.evaluation.scorers import Scorer
from steer2edit.models import LanguageModel, Prompt, Sampling

Group = Literal["static", "adaptive", "weight-space", "persistence", "side-effects", "causal"]
GROUPS: tuple[Group, ...] = get_args(Group)
Suite = Literal["quick", "full"]
SUITES: tuple[Suite, ...] = get_args(Suite)
Outcome = Literal["held", "weakened", "failed", "cost", "no-cost", "control", "open"]
"""held, weakened, failed: what became of the attribute; cost, no-cost: of a side effect; control: behaves as a control
must; open: the intervals do not tell, or it could not be scored."""


@dataclass(frozen=True)
class Cost:
    """Rough size of a test, from which its time is estimated.

    Args:
        replies: generated.
        passes: forward passes (or gradient steps) over a prompt or a reply.
    """

    replies: int = 0
    passes: int = 0


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
        judged: labels of the arms that the line is about, where that is not the edit, such as the edit in 4 bits.
        against: label of the arm that those are compared with, where that is not the first.
    """

    name: str
    metric: str
    values: Mapping[str, Sequence[Value]]
    outcome: Outcome
    sentence: str
    note: str = ""
    higher_is_better: bool | None = True
    judged: Sequence[str] = ()
    against: str = ""

    def __post_init__(self) -> None:
        if not self.values or len({len(values) for values in self.values.values()}) != 1:
            raise InvalidValueError(f"{self.name}: every arm of a finding has a value for the same items.")
        if unknown := {*self.judged, self.against or next(iter(self.values))} - self.values.keys():
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

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            **{key: value for key, value in asdict(self).items() if key != "values"},
            "values": {arm: list(values) for arm, values in self.values.items()},
            "estimates": {arm: one.to_json() for arm, one in self.estimates.items()},
            "differences": {arm: one.to_json() for arm, one in self.differences.items()},
        }


@dataclass(frozen=True)
class StressResult:
    """What one test found.

    Args:
        findings: lines of the scorecard.
        replies: what the model said, by arm and line: kept in the run folder, shown shortened.
        facts: JSON-able: budgets, suffixes found, thresholds.
    """

    findings: Sequence[Finding]
    replies: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """What is tested: an edit of a model, with all that tests share.

    Args:
        engine: runs the model; `engine.model` is the base.
        edit: the edit.
        arms: base, edit, and steering where vectors are known and a strength of equal drift was found, in that order.
        harmful: held-out requests that should be refused.
        benign: held-out requests that should be answered.
        scorer: tells a refusal.
        vectors: the steering vectors the edit was made from, if they are there.
        folder: of the run, for what a test must write (checkpoints, adapters); removed afterwards.
        seed: of what is random.
        limit: at most this many prompts of a set.
    """

    engine: Engine
    edit: WeightEdit
    arms: Sequence[Arm]
    harmful: Sequence[Prompt]
    benign: Sequence[Prompt]
    scorer: Scorer
    folder: Path
    vectors: SteeringVectors | None = None
    seed: int = 0
    limit: int | None = None
    sampling: Sampling = Sampling(max_new_tokens=24)

    @property
    def model(self) -> LanguageModel:
        """The base model."""
        return self.engine.model

    def arm(self, kind: str) -> Arm | None:
        """The arm of a kind: base, edit or steering."""
        return next((arm for arm in self.arms if arm.kind == kind), None)


@runtime_checkable
class StressTest(Protocol):
    """A test of an edit. A package of yours adds one by an entry point of the group `steer2edit.stress`."""

    @property
    def name(self) -> str:
        """Unique, lower case with dashes."""

    @property
    def group(self) -> Group:
        """Which part of the scorecard it belongs to."""

    @property
    def summary(self) -> str:
        """One line of what it does."""

    @property
    def citation(self) -> str:
        """Where the attack or the measure was published, or `this project`."""

    @property
    def suites(self) -> frozenset[Suite]:
        """The suites it is in."""

    def cost(self, subject: Subject, suite: Suite) -> Cost:
        """How much it will run."""

    def run(self, subject: Subject, suite: Suite) -> StressResult:
        """Test the edit.

        Raises:
            Steer2EditError: it cannot be run here; the message says why and what would help. The scorecard then lists
                it as not tested.
        """
