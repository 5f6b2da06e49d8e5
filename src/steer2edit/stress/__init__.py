"""Stress tests of an edit: the contract of what holds in which condition, side effects, and the causal check."""

from steer2edit.settings import StressOptions as StressOptions
from steer2edit.stress.findings import (
    GROUPS as GROUPS,
    Finding as Finding,
    Group as Group,
    StressResult as StressResult,
)
from steer2edit.stress.given import (
    StressInput as StressInput,
    asked_prompts as asked_prompts,
    given_vectors as given_vectors,
    require_unseen as require_unseen,
    vectors_beside as vectors_beside,
)
from steer2edit.stress.registry import (
    StressTest as StressTest,
    all_tests as all_tests,
    choose_tests as choose_tests,
    file_test as file_test,
)
from steer2edit.stress.run import run_stress as run_stress
from steer2edit.stress.scorecard import Contract as Contract, Scorecard as Scorecard, read_scorecard as read_scorecard
from steer2edit.stress.subject import Subject as Subject
