"""Stress tests of an edit: the contract of what holds in which condition, side effects, and the causal check."""

from steer2edit.settings import StressOptions
from steer2edit.stress.arms import EqualDrift, equal_drift, given_vectors, vectors_beside
from steer2edit.stress.conditions import file_test
from steer2edit.stress.contract import Condition, Contract
from steer2edit.stress.findings import GROUPS, Finding, Group, Outcome, StressResult
from steer2edit.stress.folder import StressFolder
from steer2edit.stress.options import StressInput, asked_prompts, require_unseen
from steer2edit.stress.registry import all_tests, choose_tests
from steer2edit.stress.run import SCORECARD_FILE, run_stress
from steer2edit.stress.scorecard import Scorecard, read_scorecard
from steer2edit.stress.subject import StressTest, Subject

__all__ = [
    "GROUPS",
    "SCORECARD_FILE",
    "Condition",
    "Contract",
    "EqualDrift",
    "Finding",
    "Group",
    "Outcome",
    "Scorecard",
    "StressFolder",
    "StressInput",
    "StressOptions",
    "StressResult",
    "StressTest",
    "Subject",
    "all_tests",
    "asked_prompts",
    "choose_tests",
    "equal_drift",
    "file_test",
    "given_vectors",
    "read_scorecard",
    "require_unseen",
    "run_stress",
    "vectors_beside",
]
