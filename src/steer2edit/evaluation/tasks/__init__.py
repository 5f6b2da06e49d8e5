"""Tasks: what is measured under an intervention, item by item."""

from steer2edit.evaluation.tasks.likelihood_tasks import (
    ChoiceTask,
    DriftTask,
    PreferenceTask,
    TruthChoiceTask,
    base_answers,
)
from steer2edit.evaluation.tasks.reply_tasks import (
    DegenerationTask,
    LengthTask,
    MathTask,
    RefusalTask,
    ThinkingTask,
    VerdictTask,
    is_empty,
    repeated_share,
)
from steer2edit.evaluation.tasks.task import Measurement, Task, merged_measurements, replies_to

__all__ = [
    "ChoiceTask",
    "DegenerationTask",
    "DriftTask",
    "LengthTask",
    "MathTask",
    "Measurement",
    "PreferenceTask",
    "RefusalTask",
    "Task",
    "ThinkingTask",
    "TruthChoiceTask",
    "VerdictTask",
    "base_answers",
    "is_empty",
    "merged_measurements",
    "repeated_share",
    "replies_to",
]
