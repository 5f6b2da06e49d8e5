"""Tasks: what is measured under an intervention, item by item."""

from steer2edit.evaluation.tasks.choice import ChoiceTask
from steer2edit.evaluation.tasks.degeneration import DegenerationTask, is_empty, repeated_share
from steer2edit.evaluation.tasks.drift import DriftTask, base_answers
from steer2edit.evaluation.tasks.length import LengthTask
from steer2edit.evaluation.tasks.maths import MathTask
from steer2edit.evaluation.tasks.refusal import RefusalTask
from steer2edit.evaluation.tasks.task import Measurement, NamedTask, Task, merged_measurements, replies_to
from steer2edit.evaluation.tasks.truth import TruthTask
from steer2edit.evaluation.tasks.truth_choice import TruthChoiceTask

__all__ = [
    "ChoiceTask",
    "DegenerationTask",
    "DriftTask",
    "LengthTask",
    "MathTask",
    "Measurement",
    "NamedTask",
    "RefusalTask",
    "Task",
    "TruthChoiceTask",
    "TruthTask",
    "base_answers",
    "is_empty",
    "merged_measurements",
    "repeated_share",
    "replies_to",
]
