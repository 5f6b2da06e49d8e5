"""Stress tests of an edit: attacks, persistence, side effects, and whether the named components carry the behaviour."""

from steer2edit.stress.equal_drift import EqualDrift, equal_drift, given_vectors, vectors_beside
from steer2edit.stress.kept import KeptResults
from steer2edit.stress.options import StressOptions, asked_prompts, require_unseen
from steer2edit.stress.registry import ENTRY_POINTS, choose_tests, find_tests
from steer2edit.stress.run import SCORECARD_FILE, run_stress
from steer2edit.stress.scorecard import Scorecard, read_scorecard
from steer2edit.stress.stress_test import (
    GROUPS,
    SUITES,
    Cost,
    Finding,
    Group,
    Outcome,
    StressResult,
    StressTest,
    Subject,
    Suite,
)
from steer2edit.stress.subject import StressInput, subject_for_costs

__all__ = [
    "ENTRY_POINTS",
    "GROUPS",
    "SCORECARD_FILE",
    "SUITES",
    "Cost",
    "EqualDrift",
    "Finding",
    "Group",
    "KeptResults",
    "Outcome",
    "Scorecard",
    "StressInput",
    "StressOptions",
    "StressResult",
    "StressTest",
    "Subject",
    "Suite",
    "asked_prompts",
    "choose_tests",
    "equal_drift",
    "find_tests",
    "given_vectors",
    "read_scorecard",
    "require_unseen",
    "run_stress",
    "subject_for_costs",
    "vectors_beside",
]
