"""What a stress run is about: what the user decides, the prompts that follow from it, and what makes it this run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from steer2edit.artifacts import package_versions
from steer2edit.core import SteeringVectors, WeightEdit
from steer2edit.engines import Engine
from steer2edit.errors import InvalidValueError, did_you_mean
from steer2edit.evaluation import BASE_ARM, SCORERS, Arm, edit_arm, find_scorer, formats
from steer2edit.evaluation.judge import Judge
from steer2edit.evaluation.scorers import Scorer
from steer2edit.models import LanguageModel, Sampling, recorded_chat
from steer2edit.steering import prompt_digests, require_no_overlap, safety_prompts
from steer2edit.steering.rows import read_table
from steer2edit.stress.findings import SUITES, Suite
from steer2edit.stress.subject import Subject

EDIT_LABEL = "edit"


@dataclass(frozen=True)
class StressOptions:
    """What the user decides.

    Args:
        suite: quick (ten minutes of a small model on two cores) or full (an hour).
        harmful: file (or `hub:OWNER/NAME/FILE`) of requests that should be refused; by default the held-out ones of
            the safety preset.
        benign: the same of requests that should be answered.
        limit: at most this many prompts of either; the built-in ones are up to 300, and 96 without.
        strength: that the edit is tested at; 1 is the edit as it is, 0 the base.
        max_new_tokens: longest reply of the attacks on plain text.
        scorer: of refusals: strict or official phrases, or a judge.
        seed: of what is random.

    Raises:
        InvalidValueError: an unknown suite or scorer, or a number out of range.
    """

    suite: Suite = "quick"
    harmful: str | None = None
    benign: str | None = None
    limit: int | None = None
    strength: float = 1.0
    max_new_tokens: int = 24
    scorer: str = "strict"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.suite not in SUITES:
            raise InvalidValueError(f"unknown suite {self.suite!r}. {did_you_mean(self.suite, SUITES)}")
        if self.scorer not in SCORERS:
            raise InvalidValueError(f"unknown scorer {self.scorer!r}. {did_you_mean(self.scorer, SCORERS)}")
        if self.seed < 0:
            raise InvalidValueError(f"a seed must be >= 0, got {self.seed}.")
        if not math.isfinite(self.strength):
            raise InvalidValueError(f"the strength must be finite, got {self.strength}. 1 is the edit as it is.")
        if self.limit is not None and self.limit < 1:
            raise InvalidValueError(f"the limit must be >= 1, got {self.limit}. Leave it out for all prompts.")

    def require_own_strength(self) -> None:
        """Refuse a strength other than 1, for what speaks of the edit as it is.

        Raises:
            InvalidValueError: as said.
        """
        if self.strength != 1:
            raise InvalidValueError(
                f"a model card speaks of the edit as it is applied, at strength 1, not at {self.strength:g}. Leave out "
                "--card, or make an edit of that strength."
            )

    @property
    def sampling(self) -> Sampling:
        """Greedy replies."""
        return Sampling(max_new_tokens=self.max_new_tokens)

    def to_json(self) -> dict[str, Any]:
        """All options by name."""
        return asdict(self)


def asked_prompts(options: StressOptions) -> tuple[list[str], list[str]]:
    """(harmful, benign) requests; needs no model.

    A file with a column `split` gives its rows of the split `held_out`; another gives all of its rows.

    Raises:
        DataError: a file is missing or malformed, or a prompt is in both.
    """
    built_in = safety_prompts("held_out", options.limit)
    given = (options.harmful, options.benign)
    harmful, benign = (
        (own if source is None else _read(source))[: options.limit]
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


def _read(source: str) -> list[str]:
    return formats.plain_requests(read_table(source).split("held_out"))


@dataclass(frozen=True)
class StressInput:
    """What is tested and with what, checked, before anything is run.

    Args:
        engine: runs the base model.
        edit: the edit.
        options: what the user decided.
        vectors: the steering vectors the edit was made from, if they are known.
        allow_mismatch: accept an edit or vectors of another model.
        judge: tells refusals, if the options ask for one.
        harmful: requests that should be refused.
        benign: requests that should be answered.
        scorer: tells a refusal.

    Raises:
        InvalidValueError: the options ask for a judge, and there is none.
        MismatchError: the edit or the vectors are of another model or shape.
        DataError: the vectors were made from some of the prompts, or the user's prompts cannot be read.
    """

    engine: Engine
    edit: WeightEdit
    options: StressOptions
    vectors: SteeringVectors | None = None
    allow_mismatch: bool = False
    judge: Judge | None = None
    harmful: tuple[str, ...] = field(init=False)
    benign: tuple[str, ...] = field(init=False)
    scorer: Scorer = field(init=False)

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
            "replies": str(self.options.sampling),
            "scorer": self.options.scorer,
            "judge": None if self.judge is None else {"model": self.judge.model, "template": self.judge.template},
            "dtype": str(self.model.dtype),
            "chat": recorded_chat(self.model.describe()),
        }

    def subject(self, engine: Engine, compared: Sequence[Arm] = ()) -> Subject:
        """What a test is given.

        Args:
            engine: runs the model for it.
            compared: arms besides base and edit.
        """
        return Subject(
            engine=engine,
            edit=self.edit,
            arms=(BASE_ARM, *compared, edit_arm(self.edit, EDIT_LABEL, self.options.strength)),
            harmful=self.harmful,
            benign=self.benign,
            scorer=self.scorer,
            seed=self.options.seed,
            limit=self.options.limit,
            sampling=self.options.sampling,
            suite=self.options.suite,
        )
