"""Asking a subject: replies to several sets of prompts under several interventions, in shared batches."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

from steer2edit.core import Editing, Intervention
from steer2edit.editing import merged
from steer2edit.evaluation import RefusalTask, Value
from steer2edit.evaluation.scorers import Scorer
from steer2edit.models import Prompt
from steer2edit.stress.stress_test import Subject, Suite

_T = TypeVar("_T")


@dataclass(frozen=True)
class Refusals:
    """What was refused.

    Args:
        refused: verdicts by set, then by arm, in the order of the prompts; `None` where there is none.
        replies: by arm, then by set.
    """

    refused: Mapping[str, Mapping[str, list[Value]]]
    replies: Mapping[str, Mapping[str, list[str]]]


def ask_refusals(
    subject: Subject,
    sets: Mapping[str, Sequence[Prompt]],
    interventions: Mapping[str, Intervention],
    scorer: Scorer | None = None,
) -> Refusals:
    """Replies of all arms to all sets in shared batches, and which of them refuse.

    Args:
        subject: whose engine, sampling and (by default) scorer are used.
        sets: prompts by name.
        interventions: by the label of the arm, the base first.
        scorer: tells a refusal.
    """
    prompts = [prompt for own in sets.values() for prompt in own]
    task = RefusalTask("asked", prompts, subject.sampling, scorer or subject.scorer)
    found = dict(zip(interventions, task.measure(subject.engine, list(interventions.values())), strict=True))
    refused: dict[str, dict[str, list[Value]]] = {}
    replies: dict[str, dict[str, list[str]]] = {label: {} for label in interventions}
    begin = 0
    for name, own in sets.items():
        items = slice(begin, begin + len(own))
        refused[name] = {label: list(one.values["asked_refused"][items]) for label, one in found.items()}
        for label, one in found.items():
            replies[label][name] = one.replies["asked"][items]
        begin += len(own)
    return Refusals(refused, replies)


def interventions_of(subject: Subject) -> dict[str, Intervention]:
    """The subject's arms by label, the base first."""
    return {arm.label: arm.intervention for arm in subject.arms}


def edit_label(subject: Subject) -> str:
    """Label of the arm with the edit."""
    arm = subject.arm("edit")
    assert arm is not None, "a subject has an arm with the edit"
    return arm.label


def edit_strength(subject: Subject) -> float:
    """The strength that the edit is tested at."""
    arm = subject.arm("edit")
    return arm.intervention.strength if arm is not None and isinstance(arm.intervention, Editing) else 1.0


def edit_in_weights(subject: Subject) -> AbstractContextManager[None]:
    """The edit merged into the model's weights for a while, at the strength that it is tested at.

    The subject's engine remembers the replies of the model as it was: ask the model itself (`marked.in_memory`).
    """
    return merged(subject.model, subject.edit, edit_strength(subject), allow_mismatch=True)  # it was let through before


def some(subject: Subject, suite: Suite, items: Sequence[_T], quick: int = 20) -> list[_T]:
    """Items to use: in the quick suite at most `quick`, spread over the whole; never more than the subject's limit."""
    return spread(items, min(subject.limit or len(items), quick if suite == "quick" else len(items)))


def spread(items: Sequence[_T], count: int) -> list[_T]:
    """At most so many of the items, evenly spread over the whole."""
    count = min(len(items), count)
    return [items[i * len(items) // count] for i in range(count)]


def finite(value: float) -> Value:
    """The value; unscored where it is not finite, as of a model that an edit has broken."""
    return value if math.isfinite(value) else None
