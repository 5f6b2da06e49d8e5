"""What the edit is compared with at the same cost: steering, ROSI and directional ablation at its drift."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from steer2edit.core import Editing, Intervention, Steering, SteeringVectors, WeightEdit
from steer2edit.editing import ablation, rosi
from steer2edit.engines import Engine
from steer2edit.errors import InvalidValueError
from steer2edit.evaluation import Arm, DriftTask, calibrate_together, steering_arm
from steer2edit.method import output_direction
from steer2edit.models import LanguageModel, Sampling
from steer2edit.stress.subject import spread

STEERING, ROSI, ABLATION = "steering", "ROSI", "ablation"
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


def equal_drift(
    engine: Engine,
    edit: WeightEdit,
    vectors: SteeringVectors | None,
    benign: Sequence[str],
    sampling: Sampling = Sampling(max_new_tokens=24),
    *,
    strength: float = 1.0,
    lowers: bool = False,
) -> EqualDrift:
    """The strength at which each method drifts from the base as much as the edit does.

        KL(base ‖ method(s)) = KL(base ‖ edited), within 10 %

    Drift is measured on the base's own answers to 24 of the benign requests. Without vectors there is no steering, and
    ROSI writes along the edit's own directions. With an edit that `lowers` the behaviour, directional ablation is
    compared as well.
    """
    task = DriftTask("", spread(benign, DRIFT_PROMPTS), sampling)
    (own,) = task.measure(engine, [Editing(edit, strength)])
    target = own.metrics["kl"].value
    if target is None or own.metrics["kl"].unscored:
        return EqualDrift(note="Nothing is compared with the edit: its drift is not finite, so it cannot be met.")
    if target < _LEAST_DRIFT:
        return EqualDrift(edit_drift=target, note="The edit does not drift, so there is nothing to match.")
    methods = methods_of(engine.model, edit, vectors, strength, lowers=lowers)
    try:
        found = calibrate_together(engine, list(methods.values()), task, target, tolerance=_TOLERANCE)
    except InvalidValueError as error:
        return EqualDrift(edit_drift=target, note=f"Nothing is compared with the edit: {error}")
    reached = {name: one for name, one in zip(methods, found, strict=True) if one.reached}
    words = ", ".join(f"{name} {one.strength:.3g}" for name, one in reached.items()) or "nothing"
    note = [f"Drift as much as the edit (KL {target:.3g} nats per token, on {len(task)} benign requests): {words}."]
    note += [f"No strength of {name} was found that does." for name in methods if name not in reached]
    note += [] if vectors else ["No steering: the vectors are not known. Give them with --vectors."]
    strengths, drifts = ({name: getattr(one, of) for name, one in reached.items()} for of in ("strength", "drift"))
    return EqualDrift(strengths, target, drifts, " ".join(note))


def methods_of(
    model: LanguageModel, edit: WeightEdit, vectors: SteeringVectors | None, strength: float, *, lowers: bool = False
) -> dict[str, tuple[Callable[[float], Intervention], float]]:
    """By name, the intervention at a strength > 0 in the direction of the edit's, and one that drifts a little.

    ROSI and ablation write along the directions of the vectors, or without them along the edit's own.
    """
    sign = math.copysign(1.0, strength)
    methods: dict[str, tuple[Callable[[float], Intervention], float]] = {}
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


def arms_of(
    model: LanguageModel, edit: WeightEdit, vectors: SteeringVectors | None, found: EqualDrift, strength: float,
    *, lowers: bool = False,
) -> list[Arm]:  # fmt: skip
    """The arms besides base and edit, at the strengths of equal drift."""
    methods, arms = methods_of(model, edit, vectors, strength, lowers=lowers) if found.strengths else {}, []
    for name, size in found.strengths.items():
        own = methods[name][0](size)
        arms.append(
            steering_arm(own.vectors, float(f"{own.strength:.3g}"))
            if isinstance(own, Steering)
            else Arm("baseline", f"{name} {size:.3g}", own, {"strength": size})
        )
    return arms
