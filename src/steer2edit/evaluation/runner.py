"""Measuring several interventions side by side, on the same items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steer2edit.core import Editing, Intervention, Steering, SteeringVectors, WeightEdit
from steer2edit.engines import Engine
from steer2edit.estimates import Condition, ConditionKind
from steer2edit.evaluation.tasks import Measurement, Task, merged_measurements
from steer2edit.progress import step


@dataclass(frozen=True)
class Arm:
    """An intervention with the name it is reported under.

    Args:
        kind: base, steering or edit.
        label: shown to people.
        intervention: what is done to the model.
        parameters: JSON-able settings of the intervention.
    """

    kind: ConditionKind
    label: str
    intervention: Intervention = field(default=None, repr=False)
    parameters: Mapping[str, Any] = field(default_factory=dict)


BASE_ARM = Arm("base", "base")


def steering_arm(vectors: SteeringVectors, strength: float) -> Arm:
    """Activation steering at one strength."""
    return Arm("steering", f"steering {strength:g}", Steering(vectors, strength), {"strength": strength})


def edit_arm(edit: WeightEdit, label: str, strength: float = 1.0) -> Arm:
    """A weight edit; its hyper-parameters become the parameters."""
    parameters = {**edit.metadata.get("hyperparameters", {}), "strength": strength}
    return Arm("edit", label, Editing(edit, strength), parameters)


def evaluate(engine: Engine, tasks: Sequence[Task], arms: Sequence[Arm]) -> list[Condition]:
    """Every task under every arm, one condition per arm."""
    interventions = [arm.intervention for arm in arms]
    by_task = []
    with step("Tasks", len(tasks)) as advance:
        for task in tasks:
            by_task.append(task.measure(engine, interventions))
            advance(1)
    conditions = []
    for index, arm in enumerate(arms):
        found = merged_measurements([measurements[index] for measurements in by_task])
        conditions.append(condition_of(arm, found))
    return conditions


def condition_of(arm: Arm, found: Measurement) -> Condition:
    """What was found under an arm, as it is reported."""
    return Condition(arm.label, found.metrics, arm.kind, arm.parameters, found.replies, found.outcomes, found.values)
