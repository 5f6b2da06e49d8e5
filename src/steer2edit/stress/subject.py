"""What every test is given: an edit of a model, with the prompts, the scorer and the settings that tests share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from steer2edit.core import Editing, Intervention, SteeringVectors, WeightEdit
from steer2edit.editing import merged
from steer2edit.engines import Engine, TransformersEngine
from steer2edit.errors import InvalidValueError
from steer2edit.evaluation import Arm
from steer2edit.evaluation.scorers import Scorer
from steer2edit.models import LanguageModel, Prompt, Sampling
from steer2edit.stress.counting import CountingEngine
from steer2edit.stress.findings import SUITES, Group, StressResult, Suite

_T = TypeVar("_T")
Change = Callable[[LanguageModel], AbstractContextManager[object]]
"""Something that is done to a model's weights within a context."""


@dataclass(frozen=True)
class Subject:
    """What is tested: an edit of a model, with all that tests share.

    Args:
        engine: runs the model; `engine.model` is the base.
        edit: the edit.
        arms: base first, steering where vectors are known and a strength of equal drift was found, and edit.
        harmful: held-out requests that should be refused.
        benign: held-out requests that should be answered.
        scorer: tells a refusal.
        folder: of the run, for what a test must write (checkpoints, adapters); removed afterwards.
        vectors: the steering vectors the edit was made from, if they are there.
        seed: of what is random.
        limit: at most this many prompts of a set.
        sampling: of replies, where a test has none of its own.
        suite: quick or full.
        counter: counts instead of running, in a rehearsal (see `counting`).

    Raises:
        InvalidValueError: the first arm is not the base, or there is no edit among them.
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
    suite: Suite = "quick"
    counter: CountingEngine | None = None

    def __post_init__(self) -> None:
        kinds = [arm.kind for arm in self.arms]
        if kinds[:1] != ["base"] or "edit" not in kinds:
            raise InvalidValueError(f"a stress test compares base and edit, in that order, got {kinds}.")

    @property
    def model(self) -> LanguageModel:
        """The base model."""
        return self.engine.model

    @property
    def base(self) -> str:
        """Label of the base."""
        return self.arms[0].label

    @property
    def edited(self) -> str:
        """Label of the arm with the edit."""
        return self._edit.label

    @property
    def steered(self) -> str | None:
        """Label of the arm with steering, if there is one."""
        return next((arm.label for arm in self.arms if arm.kind == "steering"), None)

    @property
    def strength(self) -> float:
        """That the edit is tested at."""
        return self._edit.intervention.strength if isinstance(self._edit.intervention, Editing) else 1.0

    @property
    def interventions(self) -> dict[str, Intervention]:
        """The arms by label, the base first."""
        return {arm.label: arm.intervention for arm in self.arms}

    @property
    def _edit(self) -> Arm:
        return next(arm for arm in self.arms if arm.kind == "edit")

    def pick(self, quick: _T, full: _T) -> _T:
        """What belongs to the suite."""
        return quick if self.suite == "quick" else full

    def some(self, items: Sequence[_T], quick: int = 20) -> list[_T]:
        """Items to use: in the quick suite at most `quick`, spread over the whole; never more than the limit."""
        return spread(items, min(self.limit or len(items), self.pick(quick, len(items))))

    def edit_merged(self, model: LanguageModel) -> AbstractContextManager[None]:
        """A `Change`: the edit in the weights, at the strength that it is tested at."""
        return merged(model, self.edit, self.strength, allow_mismatch=True)  # it was let through before

    @contextmanager
    def changed(self, *changes: Change, model: LanguageModel | None = None) -> Iterator["Subject"]:
        """The subject while its model's weights are changed: it replies as the model is now, and remembers nothing.

        Args:
            changes: one within the other.
            model: that replies, where it is not the subject's own.
        """
        if self.counter is not None:
            yield replace(self, engine=self.counter)
            return
        with ExitStack() as stack:
            for change in changes:
                stack.enter_context(change(self.model))
            yield replace(self, engine=TransformersEngine(model or self.model))

    def compute(self, make: Callable[[LanguageModel], _T], instead: _T, *, replies: int = 0, passes: int = 0) -> _T:
        """What is made with the model itself, besides asking its engine.

        Args:
            make: does it.
            instead: stands for it in a rehearsal.
            replies: that it takes.
            passes: the same.
        """
        if self.counter is None:
            return make(self.model)
        self.counter.replies += replies
        self.counter.passes += passes
        return instead


@dataclass(frozen=True)
class StressTest:
    """A test of an edit: a row of the table.

    Args:
        name: unique, lower case with dashes.
        group: which part of the scorecard it belongs to.
        summary: one line of what it does.
        citation: where the attack or the measure was published, or `this project`.
        run: tests the subject. A `Steer2EditError` says why it cannot be run here and what would help: the scorecard
            then lists it as not tested.
        suites: that it is in.
        pooled: names of its lines that count among the static attacks together.
    """

    name: str
    group: Group
    summary: str
    citation: str
    run: Callable[[Subject], StressResult]
    suites: Sequence[Suite] = SUITES
    pooled: Sequence[str] = ()


def spread(items: Sequence[_T], count: int) -> list[_T]:
    """At most so many of the items, evenly spread over the whole."""
    count = min(len(items), count)
    return [items[i * len(items) // count] for i in range(count)]
