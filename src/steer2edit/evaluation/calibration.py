"""The strength that spends a given drift, so that two methods can be compared at the same cost."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from steer2edit.core import Editing, Intervention, WeightEdit
from steer2edit.editing import natural_strength
from steer2edit.engines import Engine, RememberingEngine
from steer2edit.errors import InvalidValueError
from steer2edit.evaluation.likelihood_tasks import DriftTask
from steer2edit.steering.presets import safety_prompts
from steer2edit.steering.secant import Calibration, Secant


def calibrate(
    engine: Engine,
    interventions: Sequence[tuple[Callable[[float], Intervention], float]],
    task: DriftTask,
    target: float,
    *,
    tolerance: float = 0.05,
    most_steps: int = 10,
) -> list[Calibration]:
    """The strength at which each of (intervention at a strength, where to begin) spends a drift on benign requests.

    They are found by `Secant` in so many steps, together, in shared batches: the base is scored once in a step.
    """
    secants = [Secant(target, first, tolerance) for _, first in interventions]
    for _ in range(most_steps):
        left = [
            (own, secant) for (own, _), secant in zip(interventions, secants, strict=True) if not secant.best.reached
        ]
        if not left:
            break
        found = task.measure(engine, [own(secant.strength) for own, secant in left])
        for (_, secant), one in zip(left, found, strict=True):
            secant.tell(one.metrics["kl"].value)
    return [secant.best for secant in secants]


def at_drift(engine: Engine, edit: WeightEdit, kl: float, *, prompts: int = 48) -> WeightEdit:
    """The edit scaled so that it spends a drift KL(base ‖ edited) > 0, in nats per token, on built-in benign requests.

    Its metadata say what was measured (`drift`), on how many validation requests (`prompts`).

    Raises:
        InvalidValueError: the edit changes nothing, or no strength comes near the drift.
    """
    task = DriftTask("", safety_prompts("validation")[1][:prompts])
    size = sum(e.row.double().square().sum().item() for e in edit.sites.values()) ** 0.5
    if size == 0:
        raise InvalidValueError("the edit is zero everywhere, so no drift can be spent.")
    edits = [(lambda strength: Editing(edit, strength), natural_strength(edit) or 1e-2 / size)]
    (found,) = calibrate(RememberingEngine(engine), edits, task, kl, most_steps=16)
    if not found.reached:
        raise InvalidValueError(
            f"no strength of the edit was found that drifts by KL {kl:g}: the nearest drifts by {found.drift:.3g}. "
            "Ask for another KL."
        )
    drift = {"kl": found.drift, "asked": kl, "requests": len(task)}
    return replace(edit.scaled(found.strength), metadata={**edit.metadata, "drift": drift})
