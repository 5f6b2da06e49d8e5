"""Evaluation: tasks, statistics with intervals, and the runner that compares interventions."""

from steer2edit.evaluation.behaviours import Behaviour, attribute_of, behaviour, behaviour_of, unscored_reasons
from steer2edit.evaluation.calibration import at_drift, calibrate, calibrate_together
from steer2edit.evaluation.harness import HarnessMetric, harness_results
from steer2edit.evaluation.likelihood_tasks import DriftTask
from steer2edit.evaluation.metrics import COST, Metric, for_card, metric_name
from steer2edit.evaluation.refusal_direction import RefusalDirection, measured_direction, refusal_direction
from steer2edit.evaluation.registry import TASK_KINDS, build_tasks
from steer2edit.evaluation.scorers import find_scorer
from steer2edit.evaluation.statistics import compare
from steer2edit.evaluation.task import (
    BASE_ARM,
    Arm,
    Task,
    TaskSettings,
    edit_arm,
    evaluate,
    merged_measurements,
    steering_arm,
)
