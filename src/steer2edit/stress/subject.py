"""What a stress run is about: the subject that every test is given, and what makes a run this run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch

from steer2edit.artifacts import package_versions
from steer2edit.core import Site, SiteEdit, SteeringVectors, WeightEdit
from steer2edit.editing.runtime import require_fit
from steer2edit.engines import Engine
from steer2edit.errors import ModelError
from steer2edit.evaluation import BASE_ARM, Arm, edit_arm, find_scorer, steering_arm
from steer2edit.evaluation.judge import Judge
from steer2edit.evaluation.scorers import PhraseScorer, Scorer
from steer2edit.models import LanguageModel, recorded_chat
from steer2edit.steering import prompt_digests
from steer2edit.steering.steered import require_fit as require_vectors_fit
from steer2edit.stress.options import StressOptions, asked_prompts, require_unseen
from steer2edit.stress.stress_test import Subject

EDIT_LABEL = "edit"
SITES_FOR_COSTS, COMPONENTS_FOR_COSTS = 30, 5
"""Edited sites, and components of each, of the edit that stands for one where only costs are asked for."""


@dataclass(frozen=True)
class StressInput:
    """What is tested and with what, checked, before anything is run.

    Args:
        engine: runs the base model.
        edit: the edit.
        options: what the user decided.
        vectors: the steering vectors the edit was made from, if they are known.
        allow_mismatch: accept an edit or vectors of another model.
        judge: tells refusals, if the options ask for one.
        harmful: requests that should be refused.
        benign: requests that should be answered.
        scorer: tells a refusal.

    Raises:
        InvalidValueError: the options ask for a judge, and there is none.
        MismatchError: the edit or the vectors are of another model or shape.
        DataError: the vectors were made from some of the prompts, or the user's prompts cannot be read.
    """

    engine: Engine
    edit: WeightEdit
    options: StressOptions
    vectors: SteeringVectors | None = None
    allow_mismatch: bool = False
    judge: Judge | None = None
    harmful: tuple[str, ...] = field(init=False)
    benign: tuple[str, ...] = field(init=False)
    scorer: Scorer = field(init=False)

    def __post_init__(self) -> None:
        require_fit(self.model, self.edit, allow_mismatch=self.allow_mismatch)
        if self.vectors is not None:
            require_vectors_fit(self.model, self.vectors, allow_mismatch=self.allow_mismatch, allow_missing=True)
        harmful, benign = asked_prompts(self.options)
        require_unseen(self.edit, self.vectors, harmful, benign)
        object.__setattr__(self, "harmful", tuple(harmful))
        object.__setattr__(self, "benign", tuple(benign))
        object.__setattr__(self, "scorer", find_scorer(self.options.scorer, self.judge))

    @property
    def model(self) -> LanguageModel:
        """The base model."""
        return self.engine.model

    def identity(self) -> dict[str, Any]:
        """What makes this run this one; whatever differs in it is another run."""
        return {
            "version": package_versions()["steer2edit"],
            "model": self.model.fingerprint,
            "edit": self.edit.digest(),
            "strength": self.options.strength,
            "vectors": None if self.vectors is None else self.vectors.digest(),
            "suite": self.options.suite,
            "seed": self.options.seed,
            "limit": self.options.limit,
            "harmful": prompt_digests(self.harmful),
            "benign": prompt_digests(self.benign),
            "replies": str(self.options.sampling),
            "scorer": self.options.scorer,
            "judge": None if self.judge is None else {"model": self.judge.model, "template": self.judge.template},
            "dtype": str(self.model.dtype),
            "chat": recorded_chat(self.model.describe()),
        }

    def arms(self, strength: float | None) -> tuple[Arm, ...]:
        """Base, steering at a strength if there is one, and the edit."""
        steering = [] if self.vectors is None or strength is None else [steering_arm(self.vectors, strength)]
        return (BASE_ARM, *steering, edit_arm(self.edit, EDIT_LABEL, self.options.strength))

    def subject(self, engine: Engine, strength: float | None, folder: Path) -> Subject:
        """What a test is given.

        Args:
            engine: runs the model for it.
            strength: of steering; `None` for no steering.
            folder: that it may write into.
        """
        return Subject(
            engine=engine,
            edit=self.edit,
            arms=self.arms(strength),
            harmful=self.harmful,
            benign=self.benign,
            scorer=self.scorer,
            folder=folder,
            vectors=self.vectors,
            seed=self.options.seed,
            limit=self.options.limit,
            sampling=self.options.sampling,
        )


class _NoModel:
    """Stands for a model where only costs are asked for."""

    def __getattr__(self, name: str) -> NoReturn:
        raise ModelError(f"there is no model to ask for {name}: only the cost of tests is wanted.")


class _NoEngine:
    """Stands for an engine where only costs are asked for."""

    model: Any = _NoModel()

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise ModelError("there is no model to run: only the cost of tests is wanted.")

    generate = score = next_token = _refuse


def subject_for_costs(options: StressOptions) -> Subject:
    """A subject without a model, for what tests cost on the prompts; whoever asks it for a model gets a ModelError."""
    ones = torch.ones(COMPONENTS_FOR_COSTS)
    edit = WeightEdit({Site(i, "attn"): SiteEdit(torch.ones(1), ones, ones, ones) for i in range(SITES_FOR_COSTS)})
    harmful, benign = asked_prompts(options)
    arms: Sequence[Arm] = (BASE_ARM, Arm("steering", "steering"), edit_arm(edit, EDIT_LABEL))
    return Subject(
        _NoEngine(), edit, arms, harmful, benign, PhraseScorer(), Path(), seed=options.seed,
        limit=options.limit, sampling=options.sampling,
    )  # fmt: skip
