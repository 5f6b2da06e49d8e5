"""What every test is given: an edit of a model, with the prompts, the scorer and the settings that tests share."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from steer2edit.core import Editing, Intervention, WeightEdit
from steer2edit.editing import merged
from steer2edit.engines import Engine
from steer2edit.evaluation import Arm
from steer2edit.evaluation.scorers import Scorer
from steer2edit.models import LanguageModel, Prompt, Sampling
from steer2edit.settings.search import Suite
from steer2edit.stress.findings import Group, StressResult

if TYPE_CHECKING:
    from steer2edit.stress.replies import Replies

_T = TypeVar("_T")
Keep = Callable[[str, Callable[[], "Replies"]], "Replies"]
"""(name of a line, how its replies are made) → its replies, made once: a run that goes on has them from its folder."""


@dataclass(frozen=True)
class Subject:
    """What is tested: an edit of a model, with all that tests share."""

    engine: Engine  # runs the model; `engine.model` is the base
    edit: WeightEdit
    # base first, then what is compared at equal drift (steering, ROSI, directional ablation), and the edit
    arms: Sequence[Arm]
    harmful: Sequence[Prompt]  # held-out requests that should be refused
    benign: Sequence[Prompt]  # held-out requests that should be answered
    scorer: Scorer  # tells a refusal
    seed: int = 0  # of what is random
    limit: int | None = None  # at most this many prompts in a line
    sampling: Sampling = Sampling(max_new_tokens=24)  # of replies, where a test has none of its own
    suite: Suite = "quick"
    plain: "Replies | None" = None  # replies to all harmful requests as they are, if they are known
    # whether the edit makes the model refuse less, so that its gain is in requests that are answered
    lowers: bool = False
    keep: Keep = lambda name, make: make()  # what was asked in a line is asked once

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
    def strength(self) -> float:
        """That the edit is tested at."""
        return self._edit.intervention.strength if isinstance(self._edit.intervention, Editing) else 1.0

    @property
    def interventions(self) -> dict[str, Intervention]:
        """The arms by label, the base first."""
        return {arm.label: arm.intervention for arm in self.arms}

    @property
    def requests(self) -> list[Prompt]:
        """The harmful requests of a line: as many as a fall by half needs to be detected (see `verdicts`)."""
        return spread(self.harmful, self.limit or len(self.harmful))

    @property
    def _edit(self) -> Arm:
        return next(arm for arm in self.arms if arm.kind == "edit")

    def pick(self, quick: _T, full: _T) -> _T:
        """What belongs to the suite."""
        return quick if self.suite == "quick" else full

    def sample(self, items: Sequence[_T], quick: int = 20) -> list[_T]:
        """Items to use: in the quick suite at most `quick`, spread over the whole; never more than the limit."""
        return spread(items, min(self.limit or len(items), self.pick(quick, len(items))))

    def edit_merged(self, model: LanguageModel) -> AbstractContextManager[None]:
        """The edit in the weights within a context, at the strength that it is tested at."""
        return merged(model, self.edit, self.strength, allow_mismatch=True)  # it was let through before


@dataclass(frozen=True)
class StressTest:
    """A test of an edit: a row of the table."""

    name: str  # unique, lower case with dashes
    group: Group  # which part of the scorecard it belongs to
    summary: str  # one line of what it does
    citation: str  # where the attack or the measure was published, or `this project`
    # tests the subject. A `Steer2EditError` says why it cannot be run here and what would help: the scorecard then
    # lists it as not tested
    run: Callable[[Subject], StressResult]
    contract: bool = False  # whether it belongs to the contract; other tests are asked for by name


def spread(items: Sequence[_T], count: int) -> list[_T]:
    """At most so many of the items, evenly spread over the whole."""
    count = min(len(items), count)
    return [items[i * len(items) // count] for i in range(count)]
