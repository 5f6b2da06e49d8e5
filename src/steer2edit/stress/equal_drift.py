"""Activation steering that drifts as much as the edit: what the edit is compared with at the same cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steer2edit.artifacts import load_vectors
from steer2edit.core import Editing, Steering, SteeringVectors, WeightEdit
from steer2edit.engines import Engine
from steer2edit.errors import InvalidValueError, MismatchError, Steer2EditError
from steer2edit.evaluation import DriftTask, calibrate
from steer2edit.models import Sampling
from steer2edit.stress.subject import spread

VECTORS_FILE = "vectors.safetensors"
_TOLERANCE = 0.1  # relative, of the drift
DRIFT_PROMPTS = 24
"""Benign requests that drift is measured on, spread over the whole."""
_LEAST_DRIFT = 1e-6


@dataclass(frozen=True)
class EqualDrift:
    """What the calibration of steering came to.

    Args:
        strength: of steering; `None` where there is none.
        edit_drift: KL(base ‖ edited), in nats per token; `None` where it is not finite.
        drift: KL(base ‖ steered) at the strength.
        note: for people: what was found, or why there is no steering.
    """

    strength: float | None
    edit_drift: float | None
    drift: float | None
    note: str


def equal_drift(
    engine: Engine,
    edit: WeightEdit,
    vectors: SteeringVectors | None,
    benign: Sequence[str],
    sampling: Sampling = Sampling(max_new_tokens=24),
    *,
    strength: float = 1.0,
) -> EqualDrift:
    """The strength at which steering drifts from the base as much as the edit does.

        KL(base ‖ steered(s)) = KL(base ‖ edited), within 10 %

    Args:
        engine: runs the model.
        edit: whose drift is to be met.
        vectors: that steer; without them there is no steering.
        benign: requests, of which 24 are used.
        sampling: of the base's own answers, on which drift is measured.
        strength: of the edit; steering gets its sign.
    """
    task = DriftTask(spread(benign, DRIFT_PROMPTS), sampling)
    target = task.measure(engine, [Editing(edit, strength)])[0].metrics["kl"].value
    if vectors is None:
        return EqualDrift(None, target, None, "No steering: the vectors are not known. Give them with --vectors.")
    if target is None:
        return EqualDrift(None, target, None, "No steering: the edit's drift is not finite, so it cannot be met.")
    if target < _LEAST_DRIFT:
        return EqualDrift(None, target, None, "No steering: the edit does not drift, so there is nothing to match.")
    try:
        found = calibrate(
            engine,
            lambda s: Steering(vectors, math.copysign(s, strength)),
            task,
            target,
            first=0.1,
            tolerance=_TOLERANCE,
        )
    except InvalidValueError as error:
        return EqualDrift(None, target, None, f"No steering: {error}")
    if not found.reached:
        note = f"No steering: no strength was found that drifts as much as the edit (KL {target:.3g} nats per token)."
        return EqualDrift(None, target, None, note)
    against = math.copysign(found.strength, strength)
    note = (
        f"Steering at strength {against:.3g} drifts as much as the edit: KL {found.drift:.3g} and {target:.3g} "
        f"nats per token, on {len(task)} benign requests."
    )
    return EqualDrift(against, target, found.drift, note)


def given_vectors(path: Path, edit: WeightEdit, *, allow_mismatch: bool = False) -> SteeringVectors:
    """The vectors that the user says the edit was made from.

    Raises:
        MismatchError: the edit says that it was made from others.
        ArtifactError: they cannot be read.
    """
    vectors = load_vectors(path)
    expected = _recorded(edit)
    if expected is not None and vectors.digest() != expected and not allow_mismatch:
        raise MismatchError(
            f"{path} holds other vectors (SHA-256 {vectors.digest()[:12]}...) than those the edit was made from "
            f"({expected[:12]}...). Give those, or pass --allow-mismatch to steer with these."
        )
    return vectors


def vectors_beside(directory: Path, edit: WeightEdit) -> SteeringVectors | None:
    """The vectors the edit was made from, if they lie in its directory or in one of the two above it."""
    expected = _recorded(edit)
    place = directory.resolve()
    for folder in (place, place.parent, place.parent.parent):
        if expected is None or not (folder / VECTORS_FILE).is_file():
            continue
        try:
            vectors = load_vectors(folder / VECTORS_FILE)
        except Steer2EditError:  # nobody said that this file is ours
            continue
        if vectors.digest() == expected:
            return vectors
    return None


def _recorded(edit: WeightEdit) -> str | None:
    recorded = edit.metadata.get("vectors")
    digest = recorded.get("sha256") if isinstance(recorded, dict) else None
    return digest if isinstance(digest, str) else None
