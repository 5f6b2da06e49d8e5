"""Evaluation: tasks, statistics with intervals, and the runner that compares interventions."""

from steer2edit.estimates import SCHEMA_VERSION, Condition, Estimate, Value
from steer2edit.evaluation.behaviours import (
    BEHAVIOUR_SETS,
    BEHAVIOURS,
    Behaviour,
    attribute_of,
    behaviour,
    behaviour_of,
)
from steer2edit.evaluation.calibration import Calibration, Secant, at_drift, calibrate, calibrate_together
from steer2edit.evaluation.gains import difference_of, mean_of, share_of_gain
from steer2edit.evaluation.judge import Judge
from steer2edit.evaluation.metrics import COST, METRICS, Metric, metric_name
from steer2edit.evaluation.registry import TASK_KINDS, TaskKind, TaskSettings, build_tasks, task_names
from steer2edit.evaluation.runner import BASE_ARM, Arm, condition_of, edit_arm, evaluate, steering_arm
from steer2edit.evaluation.scorers import SCORERS, find_scorer
from steer2edit.evaluation.statistics import (
    compare,
    estimate,
    mean,
    paired,
    paired_difference,
    paired_rate_difference,
    rate,
)
from steer2edit.evaluation.tasks import (
    ChoiceTask,
    DegenerationTask,
    DriftTask,
    LengthTask,
    MathTask,
    Measurement,
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
    "COST",
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
    "Metric",
    "RefusalTask",
    "Secant",
    "Task",
    "TaskKind",
    "TaskSettings",
    "TruthChoiceTask",
    "TruthTask",
    "Value",
    "at_drift",
    "attribute_of",
    "base_answers",
    "behaviour",
    "behaviour_of",
    "build_tasks",
    "calibrate",
    "calibrate_together",
    "compare",
    "condition_of",
    "difference_of",
    "edit_arm",
    "estimate",
    "evaluate",
    "find_scorer",
    "mean",
    "mean_of",
    "merged_measurements",
    "metric_name",
    "paired",
    "paired_difference",
    "paired_rate_difference",
    "rate",
    "share_of_gain",
    "steering_arm",
    "task_names",
]
