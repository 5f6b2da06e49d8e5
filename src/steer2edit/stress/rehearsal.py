"""Rehearsals: tests run on a subject with an engine that only counts, so that their cost is known beforehand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from steer2edit.core import Site, SiteEdit, SteeringVectors, WeightEdit
from steer2edit.engines import Asked, RememberingEngine
from steer2edit.evaluation import BASE_ARM, edit_arm, steering_arm
from steer2edit.models import Prompt, Reply
from steer2edit.models.stand_in import stand_in_model
from steer2edit.stress.counting import Cost, CountingEngine
from steer2edit.stress.findings import Suite
from steer2edit.stress.options import EDIT_LABEL, StressOptions, asked_prompts
from steer2edit.stress.plain_prompts import measure_plain
from steer2edit.stress.subject import Subject

SITES, COMPONENTS = 30, 5
"""Edited sites, and components of each, of the edit that stands for one where there is none."""


class _Unscored:
    def score(self, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> list[bool | None]:
        return [None for _ in replies]


class Rehearsal:
    """Tests run on a subject without its model being run.

    Args:
        subject: what is to be tested.
        replies: that its engine remembers.
    """

    def __init__(self, subject: Subject, replies: Mapping[Asked, Reply] | None = None) -> None:
        self._counter = CountingEngine(subject.model, subject.sampling.max_new_tokens)
        self._engine = RememberingEngine(self._counter, [arm.intervention for arm in subject.arms])
        self._engine.remember(replies or {})
        self._subject = replace(subject, counter=self._counter, scorer=_Unscored())

    def cost(self, run: Callable[[Subject], object], *, remember: bool = False) -> Cost:
        """How much a test runs.

        Args:
            run: the test.
            remember: its replies to plain prompts, for the tests that follow.

        Raises:
            Steer2EditError: it cannot be run here.
        """
        replies, passes = self._counter.replies, self._counter.passes
        engine = self._engine if remember else self._engine.branch()
        with TemporaryDirectory() as folder, torch.random.fork_rng([]):
            run(replace(self._subject, engine=engine, folder=Path(folder)))
        return Cost(self._counter.replies - replies, self._counter.passes - passes)


def stand_in(options: StressOptions, suite: Suite) -> Rehearsal:
    """A rehearsal without a model, on the prompts that the options ask for."""
    model = stand_in_model()
    ones = torch.ones(COMPONENTS)
    edit = WeightEdit({Site(i, "attn"): SiteEdit(torch.ones(1), ones, ones, ones) for i in range(SITES)})
    vectors = SteeringVectors.from_mapping({"L0.attn": torch.ones(1)})
    harmful, benign = asked_prompts(options)
    arms = (BASE_ARM, steering_arm(vectors, 1.0), edit_arm(edit, EDIT_LABEL))
    engine = CountingEngine(model, options.max_new_tokens)
    rehearsal = Rehearsal(
        Subject(
            engine, edit, arms, harmful, benign, _Unscored(), Path(), seed=options.seed, limit=options.limit,
            sampling=options.sampling, suite=suite,
        )
    )  # fmt: skip
    rehearsal.cost(measure_plain, remember=True)
    return rehearsal
