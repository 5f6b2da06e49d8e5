"""Evaluation: tasks, statistics with intervals, and the runner that compares interventions."""

from steer2edit.evaluation.behaviours import BEHAVIOUR_SETS, BEHAVIOURS, Behaviour, behaviour, behaviour_of
from steer2edit.evaluation.calibration import Calibration, Secant, at_drift, calibrate, calibrate_together
from steer2edit.evaluation.comparison import compare, paired, paired_rate_difference
from steer2edit.evaluation.judge import Judge
from steer2edit.evaluation.metrics import METRICS, MetricName, metric_name
from steer2edit.evaluation.registry import SCORERS, build_tasks, find_scorer, task_names
from steer2edit.evaluation.results import SCHEMA_VERSION, Condition
from steer2edit.evaluation.runner import BASE_ARM, Arm, condition_of, edit_arm, evaluate, steering_arm
from steer2edit.evaluation.statistics import Estimate, Value, estimate, mean, paired_difference, rate
from steer2edit.evaluation.task_kinds import TASK_KINDS, TaskKind, TaskSettings
from steer2edit.evaluation.tasks import (
    ChoiceTask,
    DegenerationTask,
    DriftTask,
    LengthTask,
    MathTask,
    Measurement,
    NamedTask,
    RefusalTask,
    Task,
    TruthChoiceTask,
    TruthTask,
    base_answers,
    merged_measurements,
)

__all__ = [
    "BASE_ARM",
    "BEHAVIOURS",
    "BEHAVIOUR_SETS",
    "METRICS",
    "SCHEMA_VERSION",
    "SCORERS",
    "TASK_KINDS",
    "Arm",
    "Behaviour",
    "Calibration",
    "ChoiceTask",
    "Condition",
    "DegenerationTask",
    "DriftTask",
    "Estimate",
    "Judge",
    "LengthTask",
    "MathTask",
    "Measurement",
    "MetricName",
    "NamedTask",
    "RefusalTask",
    "Secant",
    "Task",
    "TaskKind",
    "TaskSettings",
    "TruthChoiceTask",
    "TruthTask",
    "Value",
    "at_drift",
    "base_answers",
    "behaviour",
    "behaviour_of",
    "build_tasks",
    "calibrate",
    "calibrate_together",
    "compare",
    "condition_of",
    "edit_arm",
    "estimate",
    "evaluate",
    "find_scorer",
    "mean",
    "merged_measurements",
    "metric_name",
    "paired",
    "paired_difference",
    "paired_rate_difference",
    "rate",
    "steering_arm",
    "task_names",
]
