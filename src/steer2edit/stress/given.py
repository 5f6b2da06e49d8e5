"""What a stress run is given (an edit, its vectors, unseen requests), and what it is compared with at equal drift."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steer2edit.artifacts import load_vectors, package_versions
from steer2edit.core import Editing, Intervention, Steering, SteeringVectors, WeightEdit
from steer2edit.editing import ablation, rosi
from steer2edit.engines import Engine
from steer2edit.errors import InvalidValueError, MismatchError, Steer2EditError
from steer2edit.evaluation import (
    BASE_ARM,
    Arm,
    DriftTask,
    calibrate,
    edit_arm,
    find_scorer,
    formats,
    steering_arm,
)
from steer2edit.evaluation.judge import Judge
from steer2edit.evaluation.scorers import Scorer
from steer2edit.method.rule import output_direction
from steer2edit.models import LanguageModel, Sampling
from steer2edit.settings import StressOptions
from steer2edit.steering.examples import prompt_digests, require_no_overlap, spread
from steer2edit.steering.presets import safety_prompts
from steer2edit.steering.rows import read_table
from steer2edit.stress.subject import Subject

EDIT_LABEL = "edit"
VECTORS_FILE = "vectors.safetensors"


def asked_prompts(options: StressOptions) -> tuple[list[str], list[str]]:
    """(harmful, benign) requests, without a model; of a file with a column `split` the rows of `held_out`.

    A DataError where a file is missing or malformed, or a prompt is in both.
    """
    given = zip((options.harmful, options.benign), safety_prompts("held_out", options.limit), strict=True)
    harmful, benign = (
        (own if source is None else formats.plain_requests(read_table(source).split("held_out")))[: options.limit]
        for source, own in given
    )
    require_no_overlap({"harmful": prompt_digests(harmful), "benign": prompt_digests(benign)})
    return harmful, benign


def require_unseen(edit: WeightEdit, vectors: SteeringVectors | None, prompts: Sequence[str]) -> None:
    """Refuse prompts that the vectors were made from, as far as edit or vectors tell, by a DataError."""
    seen = [*_recorded(edit).get("prompts", ()), *(vectors.metadata.get("prompts", ()) if vectors is not None else ())]
    require_no_overlap({"vector": seen, "stress": prompt_digests(prompts)})


def given_vectors(path: Path, edit: WeightEdit, *, allow_mismatch: bool = False) -> SteeringVectors:
    """The vectors that the user says the edit was made from; a MismatchError where it says otherwise."""
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
    """What is tested and with what, checked, before anything is run."""

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
        require_unseen(self.edit, self.vectors, [*harmful, *benign])
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
            **self.model.identity(),
            "edit": self.edit.digest(),
            "vectors": None if self.vectors is None else self.vectors.digest(),
            **{name: getattr(options, name) for name in ("strength", "suite", "seed", "limit", "scorer")},
            "harmful": prompt_digests(self.harmful),
            "benign": prompt_digests(self.benign),
            "replies": str(self.sampling),
            "judge": None if self.judge is None else {"model": self.judge.model, "template": self.judge.question},
        }

    def subject(self, engine: Engine, compared: Sequence[Arm] = ()) -> Subject:
        """What a test is given, with what is compared besides base and edit."""
        options = self.options
        return Subject(
            engine, self.edit, (BASE_ARM, *compared, edit_arm(self.edit, EDIT_LABEL, options.strength)), self.harmful,
            self.benign, self.scorer, options.seed, options.limit, self.sampling, options.suite,
        )  # fmt: skip


STEERING, ROSI, ABLATION = "steering", "ROSI", "ablation"
Methods = dict[str, tuple[Callable[[float], Intervention], float]]
"""By name, an intervention at a strength > 0, and a strength at which it drifts a little."""
_TOLERANCE = 0.1  # relative, of the drift
DRIFT_PROMPTS = 24
"""Benign requests that drift is measured on, spread over the whole."""
_LEAST_DRIFT = 1e-6


@dataclass(frozen=True)
class EqualDrift:
    """What the calibration came to."""

    # by method, that drifts as much as the edit; what could not be matched is left out
    strengths: dict[str, float] = field(default_factory=dict)
    edit_drift: float | None = None  # KL(base ‖ edited), in nats per token; `None` where it is not finite
    drifts: dict[str, float] = field(default_factory=dict)  # KL(base ‖ it) at the strengths
    note: str = ""  # for people: what was found, or why there is no steering


def methods_of(
    model: LanguageModel, edit: WeightEdit, vectors: SteeringVectors | None, strength: float, *, lowers: bool = False
) -> Methods:
    """What an edit is compared with, each in its direction; ablation only where it `lowers` the behaviour.

    ROSI and ablation write along the directions of the vectors, or without them along the edit's own.
    """
    sign = math.copysign(1.0, strength)
    methods: Methods = {}
    if vectors is None:
        directions = {site: own.output_direction for site, own in edit.sites.items()}
    else:
        directions = {site: output_direction(means.steering_vector) for site, means in vectors.sites.items()}
        methods[STEERING] = (lambda s: Steering(vectors, sign * s), 0.1)
    injected, towards = rosi(model, directions), -sign if lowers and vectors is None else sign
    size = sum(e.row.double().square().sum().item() for e in injected.sites.values()) ** 0.5
    methods[ROSI] = (lambda s: Editing(injected, towards * s), 1 / size if size else 0.1)
    if lowers:
        ablated = ablation(model, directions)
        methods[ABLATION] = (lambda s: Editing(ablated, s), 0.1)
    return methods


def equal_drift(
    engine: Engine,
    edit: Editing,
    methods: Methods,
    benign: Sequence[str],
    sampling: Sampling = Sampling(max_new_tokens=24),
) -> EqualDrift:
    """The strength at which each method drifts from the base as much as the edit does, KL(base ‖ it), within 10 %.

    Drift is measured on the base's own answers to 24 of the benign requests.
    """
    task = DriftTask("", spread(benign, DRIFT_PROMPTS), sampling)
    (own,) = task.measure(engine, [edit])
    target = own.metrics["kl"].value
    if target is None or own.metrics["kl"].unscored:
        return EqualDrift(note="Nothing is compared with the edit: its drift is not finite, so it cannot be met.")
    if target < _LEAST_DRIFT:
        return EqualDrift(edit_drift=target, note="The edit does not drift, so there is nothing to match.")
    try:
        found = calibrate(engine, list(methods.values()), task, target, tolerance=_TOLERANCE)
    except InvalidValueError as error:
        return EqualDrift(edit_drift=target, note=f"Nothing is compared with the edit: {error}")
    reached = {name: one for name, one in zip(methods, found, strict=True) if one.reached}
    words = ", ".join(f"{name} {one.strength:.3g}" for name, one in reached.items()) or "nothing"
    note = [f"Drift as much as the edit (KL {target:.3g} nats per token, on {len(task)} benign requests): {words}."]
    note += [f"No strength of {name} was found that does." for name in methods if name not in reached]
    note += [] if STEERING in methods else ["No steering: the vectors are not known. Give them with --vectors."]
    strengths, drifts = ({name: getattr(one, of) for name, one in reached.items()} for of in ("strength", "drift"))
    return EqualDrift(strengths, target, drifts, " ".join(note))


def arm_of(name: str, own: Intervention, size: float) -> Arm:
    """A method at its strength of equal drift, as one of the arms besides base and edit."""
    if isinstance(own, Steering):
        return steering_arm(own.vectors, float(f"{own.strength:.3g}"))
    return Arm("baseline", f"{name} {size:.3g}", own, {"strength": size})
