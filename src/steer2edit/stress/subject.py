"""What a stress run is about, and what makes it this run; and what every test is given of it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from steer2edit.artifacts import package_versions
from steer2edit.core import Editing, Intervention, SteeringVectors, WeightEdit
from steer2edit.editing import merged
from steer2edit.engines import Engine
from steer2edit.evaluation import BASE_ARM, Arm, edit_arm, find_scorer, formats
from steer2edit.evaluation.judge import Judge
from steer2edit.evaluation.scorers import Scorer
from steer2edit.models import LanguageModel, Prompt, Sampling, recorded_chat
from steer2edit.settings import StressOptions
from steer2edit.settings.search import Suite
from steer2edit.steering import prompt_digests, require_no_overlap, safety_prompts
from steer2edit.steering.rows import read_table
from steer2edit.stress.findings import Group, StressResult

if TYPE_CHECKING:
    from steer2edit.stress.replies import Replies

EDIT_LABEL = "edit"
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


def asked_prompts(options: StressOptions) -> tuple[list[str], list[str]]:
    """(harmful, benign) requests; needs no model.

    A file with a column `split` gives its rows of the split `held_out`; another gives all of its rows.

    Raises:
        DataError: a file is missing or malformed, or a prompt is in both.
    """
    built_in = safety_prompts("held_out", options.limit)
    given = (options.harmful, options.benign)
    harmful, benign = (
        (own if source is None else formats.plain_requests(read_table(source).split("held_out")))[: options.limit]
        for source, own in zip(given, built_in, strict=True)
    )  # fmt: skip
    require_no_overlap({"harmful": prompt_digests(harmful), "benign": prompt_digests(benign)})
    return harmful, benign


def require_unseen(
    edit: WeightEdit, vectors: SteeringVectors | None, harmful: Sequence[str], benign: Sequence[str]
) -> None:
    """Refuse prompts that the vectors were made from, as far as the edit or the vectors tell.

    Raises:
        DataError: as said.
    """
    recorded = edit.metadata.get("vectors")
    seen = [*(recorded.get("prompts", ()) if isinstance(recorded, Mapping) else ())]
    seen += vectors.metadata.get("prompts", ()) if vectors is not None else ()
    require_no_overlap({"vector": seen, "stress": prompt_digests([*harmful, *benign])})


@dataclass(frozen=True)
class StressInput:
    """What is tested and with what, checked, before anything is run.

    Raises:
        InvalidValueError: the options ask for a judge, and there is none.
        MismatchError: the edit or the vectors are of another model or shape.
        DataError: the vectors were made from some of the prompts, or the user's prompts cannot be read.
    """

    engine: Engine  # runs the base model
    edit: WeightEdit
    options: StressOptions  # what the user decided
    vectors: SteeringVectors | None = None  # the steering vectors the edit was made from, if they are known
    allow_mismatch: bool = False  # accept an edit or vectors of another model
    judge: Judge | None = None  # tells refusals, if the options ask for one
    harmful: tuple[str, ...] = field(init=False)  # requests that should be refused
    benign: tuple[str, ...] = field(init=False)  # requests that should be answered
    scorer: Scorer = field(init=False)  # tells a refusal

    def __post_init__(self) -> None:
        self.model.require_fit(self.edit, allow_mismatch=self.allow_mismatch)
        if self.vectors is not None:
            self.model.require_fit(self.vectors, allow_mismatch=self.allow_mismatch)
        harmful, benign = asked_prompts(self.options)
        require_unseen(self.edit, self.vectors, harmful, benign)
        object.__setattr__(self, "harmful", tuple(harmful))
        object.__setattr__(self, "benign", tuple(benign))
        object.__setattr__(self, "scorer", find_scorer(self.options.scorer, self.judge))

    @property
    def model(self) -> LanguageModel:
        """The base model."""
        return self.engine.model

    @property
    def sampling(self) -> Sampling:
        """Greedy replies."""
        return Sampling(max_new_tokens=self.options.max_new_tokens)

    def identity(self) -> dict[str, Any]:
        """What makes this run this one; whatever differs in it is another run."""
        return {
            "version": package_versions()["steer2edit"],
            "model": self.model.fingerprint,
            "edit": self.edit.digest(),
            "strength": self.options.strength,
            "vectors": None if self.vectors is None else self.vectors.digest(),
            "suite": self.options.suite,
            "seed": self.options.seed,
            "limit": self.options.limit,
            "harmful": prompt_digests(self.harmful),
            "benign": prompt_digests(self.benign),
            "replies": str(self.sampling),
            "scorer": self.options.scorer,
            "judge": None if self.judge is None else {"model": self.judge.model, "template": self.judge.template},
            "dtype": str(self.model.dtype),
            "chat": recorded_chat(self.model.describe()),
        }

    def subject(self, engine: Engine, compared: Sequence[Arm] = ()) -> Subject:
        """What a test is given, with what is compared besides base and edit."""
        return Subject(
            engine=engine,
            edit=self.edit,
            arms=(BASE_ARM, *compared, edit_arm(self.edit, EDIT_LABEL, self.options.strength)),
            harmful=self.harmful,
            benign=self.benign,
            scorer=self.scorer,
            seed=self.options.seed,
            limit=self.options.limit,
            sampling=self.sampling,
            suite=self.options.suite,
        )
