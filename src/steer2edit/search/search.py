"""What a search works with: engine, vectors, factors, items, budget, space and settings."""

from dataclasses import asdict, dataclass
from typing import Any

from steer2edit.core import SteeringVectors
from steer2edit.editing import Factors
from steer2edit.engines import Engine
from steer2edit.evaluation import Behaviour
from steer2edit.models import LanguageModel, recorded_chat
from steer2edit.search.goal import Budget, Goal
from steer2edit.search.proposals import Strategy, check_strategy
from steer2edit.search.space import SearchSpace
from steer2edit.search.study import STUDY_NAME


@dataclass(frozen=True)
class SearchSettings:
    """How a search goes about it.

    Args:
        strategy: where proposals come from.
        trials: how many configurations to try in all, those the sanity filter stops included; ask for more later to
            go on.
        generation: how many are proposed and measured together.
        strengths: of the steering sweep; by default those that spend 10, 25, 50, 75 and 100 % of the drift budget.
        target_kl: also compare the recommended edit and steering at the strengths that spend this drift.
        seed: of the sampler and the bootstrap.
        worker: name of this process, where several share a storage.
        storage: Optuna storage URL; by default a journal in the run folder.
        study: name of the study in the storage.
    """

    strategy: Strategy = "tpe"
    trials: int = 96
    generation: int = 16
    strengths: tuple[float, ...] = ()
    target_kl: float | None = None
    seed: int = 0
    worker: str = "main"
    storage: str | None = None
    study: str = STUDY_NAME


@dataclass(frozen=True)
class Search:
    """Everything a search works with.

    Args:
        engine: runs the model.
        vectors: steered with, and what the factors were made from.
        factors: one set, from which all configurations follow.
        validation: the behaviour on validation items.
        held_out: the behaviour on held-out items.
        budget: what an edit may cost.
        space: the configurations.
        settings: how to go about it.
    """

    engine: Engine
    vectors: SteeringVectors
    factors: Factors
    validation: Behaviour
    held_out: Behaviour
    budget: Budget
    space: SearchSpace
    settings: SearchSettings = SearchSettings()

    def __post_init__(self) -> None:
        check_strategy(self.settings.strategy, self.space)

    @property
    def goal(self) -> Goal:
        """Objectives and budget."""
        return Goal.of(self.validation, self.budget)

    @property
    def largest_cost(self) -> float:
        """Where trade-offs are compared up to: the drift budget."""
        return self.goal.largest_cost

    @property
    def sane_drifts(self) -> tuple[float, float]:
        """Drift on the sanity requests below which an edit does nothing, and above which it is degenerate."""
        return 0.002 * self.largest_cost, max(1.0, 4 * self.largest_cost)

    def identity(self, model: LanguageModel) -> dict[str, Any]:
        """What makes this search this one; whatever differs in it is another search."""
        settings = {k: v for k, v in asdict(self.settings).items() if k in ("strategy", "generation", "seed")}
        return {
            "model": model.fingerprint,
            "vectors": self.vectors.digest(),
            "behaviour": self.validation.name,
            "items": {"validation": self.validation.digest(), "held_out": self.held_out.digest()},
            "rules": self.factors.metadata.get("rules"),
            "benign": self.factors.metadata.get("benign"),
            "space": self.space.to_json(),
            "budget": self.budget.to_json(),
            "dtype": str(model.dtype),
            "chat": recorded_chat(model.describe()),
            "replies": [str(task.sampling) for task in self.validation.tasks if hasattr(task, "sampling")],
            **settings,
        }
