"""What a stress run is given: an edit of a model, its vectors, and requests that it has not seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steer2edit.artifacts import load_vectors, package_versions
from steer2edit.core import SteeringVectors, WeightEdit
from steer2edit.engines import Engine
from steer2edit.errors import MismatchError, Steer2EditError
from steer2edit.evaluation import BASE_ARM, Arm, edit_arm, find_scorer, formats
from steer2edit.evaluation.judge import Judge
from steer2edit.evaluation.scorers import Scorer
from steer2edit.models import LanguageModel, Sampling, recorded_chat
from steer2edit.settings import StressOptions
from steer2edit.steering import prompt_digests, require_no_overlap, safety_prompts
from steer2edit.steering.rows import read_table
from steer2edit.stress.subject import Subject

EDIT_LABEL = "edit"
VECTORS_FILE = "vectors.safetensors"


def asked_prompts(options: StressOptions) -> tuple[list[str], list[str]]:
    """(harmful, benign) requests; needs no model.

    A file with a column `split` gives its rows of the split `held_out`; another gives all of its rows.

    Raises:
        DataError: a file is missing or malformed, or a prompt is in both.
    """
    given = zip((options.harmful, options.benign), safety_prompts("held_out", options.limit), strict=True)
    harmful, benign = (
        (own if source is None else formats.plain_requests(read_table(source).split("held_out")))[: options.limit]
        for source, own in given
    )
    require_no_overlap({"harmful": prompt_digests(harmful), "benign": prompt_digests(benign)})
    return harmful, benign


def require_unseen(
    edit: WeightEdit, vectors: SteeringVectors | None, harmful: Sequence[str], benign: Sequence[str]
) -> None:
    """Refuse prompts that the vectors were made from, as far as edit or vectors tell, by a DataError."""
    seen = [*_recorded(edit).get("prompts", ()), *(vectors.metadata.get("prompts", ()) if vectors is not None else ())]
    require_no_overlap({"vector": seen, "stress": prompt_digests([*harmful, *benign])})


def given_vectors(path: Path, edit: WeightEdit, *, allow_mismatch: bool = False) -> SteeringVectors:
    """The vectors that the user says the edit was made from.

    Raises:
        MismatchError: the edit says that it was made from others.
        ArtifactError: they cannot be read.
    """
    vectors, expected = load_vectors(path), _recorded(edit).get("sha256")
    if isinstance(expected, str) and vectors.digest() != expected and not allow_mismatch:
        raise MismatchError(
            f"{path} holds other vectors (SHA-256 {vectors.digest()[:12]}...) than those the edit was made from "
            f"({expected[:12]}...). Give those, or pass --allow-mismatch to steer with these."
        )
    return vectors


def vectors_beside(directory: Path, edit: WeightEdit) -> SteeringVectors | None:
    """The vectors the edit was made from, if they lie in its directory or in one of the two above it."""
    place = directory.resolve()
    for path in (folder / VECTORS_FILE for folder in (place, place.parent, place.parent.parent)):
        try:
            if path.is_file() and (vectors := load_vectors(path)).digest() == _recorded(edit).get("sha256"):
                return vectors
        except Steer2EditError:  # nobody said that this file is ours
            continue
    return None


def _recorded(edit: WeightEdit) -> Mapping[str, Any]:
    """What the edit says of its vectors."""
    recorded = edit.metadata.get("vectors")
    return recorded if isinstance(recorded, Mapping) else {}


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
        scorer = find_scorer(self.options.scorer, self.judge)
        for name, value in (("harmful", tuple(harmful)), ("benign", tuple(benign)), ("scorer", scorer)):
            object.__setattr__(self, name, value)

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
        options = self.options
        return {
            "version": package_versions()["steer2edit"],
            "model": self.model.fingerprint,
            "edit": self.edit.digest(),
            "vectors": None if self.vectors is None else self.vectors.digest(),
            **{name: getattr(options, name) for name in ("strength", "suite", "seed", "limit", "scorer")},
            "harmful": prompt_digests(self.harmful),
            "benign": prompt_digests(self.benign),
            "replies": str(self.sampling),
            "judge": None if self.judge is None else {"model": self.judge.model, "template": self.judge.question},
            "dtype": str(self.model.dtype),
            "chat": recorded_chat(self.model.describe()),
        }

    def subject(self, engine: Engine, compared: Sequence[Arm] = ()) -> Subject:
        """What a test is given, with what is compared besides base and edit."""
        options = self.options
        return Subject(
            engine, self.edit, (BASE_ARM, *compared, edit_arm(self.edit, EDIT_LABEL, options.strength)), self.harmful,
            self.benign, self.scorer, options.seed, options.limit, self.sampling, options.suite,
        )  # fmt: skip
