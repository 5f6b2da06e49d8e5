"""Measuring several interventions side by side, on the same items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steer2edit.core import Editing, Intervention, Steering, SteeringVectors, WeightEdit
from steer2edit.engines import Engine
from steer2edit.evaluation.results import Condition, ConditionKind
from steer2edit.evaluation.tasks import Task


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
    intervention: Intervention = None
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
    by_task = [task.measure(engine, interventions) for task in tasks]
    conditions = []
    for index, arm in enumerate(arms):
        own = [measurements[index] for measurements in by_task]
        metrics = {name: estimate for m in own for name, estimate in m.metrics.items()}
        replies = {name: texts for m in own for name, texts in m.replies.items()}
        outcomes = {name: values for m in own for name, values in m.outcomes.items()}
        conditions.append(Condition(arm.kind, arm.label, arm.parameters, metrics, replies, outcomes))
    return conditions
