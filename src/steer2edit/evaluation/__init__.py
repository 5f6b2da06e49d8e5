"""Evaluation: tasks, statistics with intervals, and the runner that compares interventions."""

from steer2edit.evaluation.behaviours import BEHAVIOURS, Behaviour, behaviour
from steer2edit.evaluation.results import METRICS, SCHEMA_VERSION, Condition
from steer2edit.evaluation.runner import BASE_ARM, Arm, edit_arm, evaluate, steering_arm
from steer2edit.evaluation.statistics import Estimate, mean, paired_difference, rate
from steer2edit.evaluation.tasks import DriftTask, LengthTask, Measurement, RefusalTask, Task, TruthTask, base_answers

__all__ = [
    "BASE_ARM",
    "BEHAVIOURS",
    "METRICS",
    "SCHEMA_VERSION",
    "Arm",
    "Behaviour",
    "Condition",
    "DriftTask",
    "Estimate",
    "LengthTask",
    "Measurement",
    "RefusalTask",
    "Task",
    "TruthTask",
    "base_answers",
    "behaviour",
    "edit_arm",
    "evaluate",
    "mean",
    "paired_difference",
    "rate",
    "steering_arm",
]
