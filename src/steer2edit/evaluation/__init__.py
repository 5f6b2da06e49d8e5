"""Evaluation: tasks, statistics with intervals, and the runner that compares interventions."""

from steer2edit.evaluation.behaviours import (
    Behaviour as Behaviour,
    attribute_of as attribute_of,
    behaviour as behaviour,
    behaviour_of as behaviour_of,
    unscored_reasons as unscored_reasons,
)
from steer2edit.evaluation.calibration import at_drift as at_drift, calibrate as calibrate
from steer2edit.evaluation.harness import HarnessMetric as HarnessMetric, harness_results as harness_results
from steer2edit.evaluation.likelihood_tasks import DriftTask as DriftTask
from steer2edit.evaluation.metrics import (
    COST as COST,
    Metric as Metric,
    for_card as for_card,
    metric_name as metric_name,
)
from steer2edit.evaluation.refusal_direction import (
    RefusalDirection as RefusalDirection,
    measured_direction as measured_direction,
    refusal_direction as refusal_direction,
)
from steer2edit.evaluation.registry import TASK_KINDS as TASK_KINDS, build_tasks as build_tasks
from steer2edit.evaluation.scorers import find_scorer as find_scorer
from steer2edit.evaluation.statistics import compare as compare
from steer2edit.evaluation.task import (
    BASE_ARM as BASE_ARM,
    Arm as Arm,
    Task as Task,
    TaskSettings as TaskSettings,
    edit_arm as edit_arm,
    evaluate as evaluate,
    merged_measurements as merged_measurements,
    steering_arm as steering_arm,
)
