"""Stress tests of an edit: the contract of what holds in which condition, side effects, and the causal check."""

from steer2edit.settings import StressOptions
from steer2edit.stress.findings import GROUPS, Finding, Group, StressResult
from steer2edit.stress.given import StressInput, asked_prompts, given_vectors, require_unseen, vectors_beside
from steer2edit.stress.registry import StressTest, all_tests, choose_tests, file_test
from steer2edit.stress.run import run_stress
from steer2edit.stress.scorecard import Contract, Scorecard, read_scorecard
from steer2edit.stress.subject import Subject
