"""Trials of a search, and the folder that keeps them with all that was measured: the run's, or one of all workers."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState, create_trial

from steer2edit.artifacts.run_folder import RunFolder, RunKind, damage_explained, write_json
from steer2edit.errors import ArtifactError, InvalidValueError, MismatchError
from steer2edit.estimates import Condition, Estimate, Value
from steer2edit.evaluation.statistics import estimate
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.progress import step
from steer2edit.search.goal import Goal
from steer2edit.search.space import Parameters, SearchSpace
from steer2edit.settings import SearchOptions

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Trial:
    """One configuration of a search."""

    generation: int  # the batch of trials it was proposed and measured with
    index: int  # its place there
    parameters: Parameters  # the point of the search space; none for the edit of effects
    hyperparameters: Hyperparameters  # the configuration at that point
    share: float  # part of the validation items it was measured on; 0 if the sanity filter stopped it
    stopped: str | None  # why it was not measured on all of them; `None` if it was
    values: Mapping[str, Sequence[Value]]  # what each item came to, by metric name
    # generated text by set name; in the file of its generation only
    replies: Mapping[str, list[str]] = field(default_factory=dict)
    # verdicts on the replies by set name; in the file of its generation only
    outcomes: Mapping[str, list[bool | None]] = field(default_factory=dict)
    worker: str = "main"  # who measured it
    scale: float = 1.0  # what the edit of effects is multiplied by

    @property
    def key(self) -> str:
        """Identity within the search."""
        return self.record.removeprefix("main-") if self.worker == "main" else self.record

    @property
    def record(self) -> str:
        """Identity within a storage that other workers share."""
        return f"{self.worker}-{self.generation:04d}-{self.index:03d}"

    @property
    def label(self) -> str:
        """The configuration in words; one that is no point of the space is made of the measured effects."""
        return str(self.hyperparameters) if self.parameters else f"effects {self.hyperparameters} × {self.scale:.3g}"

    @property
    def complete(self) -> bool:
        """Whether it was measured on all validation items; while its generation is, that it was not stopped yet."""
        return self.stopped is None

    @cached_property
    def metrics(self) -> dict[str, Estimate]:
        """Estimates by metric name, from the items it was measured on."""
        return {name: estimate(values) for name, values in self.values.items()}

    def condition(self) -> Condition:
        """The trial as a report shows it."""
        place = {"strength": 1.0, "trial": self.key, "share": self.share, "stopped": self.stopped}
        made_of = {} if self.parameters else {"rule": "effects", "scale": self.scale}
        parameters = {**self.hyperparameters.to_json(), **place, **made_of}
        return Condition(self.label, self.metrics, "edit", parameters, self.replies, self.outcomes, self.values)

    def to_json(self) -> dict[str, Any]:
        """All fields; values that JSON cannot hold become null."""
        own = {name: getattr(self, name) for name in ("generation", "index", "share", "stopped", "scale")}
        stored = {name: self.condition().to_json()[name] for name in ("values", "replies", "outcomes")}
        made_of = {"parameters": dict(self.parameters), "hyperparameters": self.hyperparameters.to_json()}
        return {**own, **made_of, **stored}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], worker: str) -> "Trial":
        """The trial that `to_json` described."""
        return cls(**{**stored, "hyperparameters": Hyperparameters.from_json(stored["hyperparameters"])}, worker=worker)


def read_trials(folder: Path) -> list[Trial]:
    """The trials that were kept, by generation, worker and index; an ArtifactError for a file that holds none."""
    trials = []
    for path in sorted(folder.glob("[!.]*-[0-9]*.json")):
        with damage_explained(path):
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["schema_version"] != SCHEMA_VERSION:
                raise ArtifactError(f"{path} has schema version {stored['schema_version']}, not {SCHEMA_VERSION}.")
            worker = path.stem.rpartition("-")[0]
            trials += [Trial.from_json(one, worker) for one in stored["trials"]]
    return sorted(trials, key=lambda trial: (trial.generation, trial.worker, trial.index))


class Study(RunFolder):
    """What a search has found so far, in the files of its run folder."""

    def add(self, trials: Sequence[Trial]) -> None:
        """Keep the trials of a generation, in whole or not at all."""
        path = self.path / "trials" / f"{trials[0].worker}-{trials[0].generation:04d}.json"
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"schema_version": SCHEMA_VERSION, "trials": [trial.to_json() for trial in trials]})

    def trials(self) -> list[Trial]:
        """All finished trials, of all workers, without replies."""
        return [replace(trial, replies={}, outcomes={}) for trial in read_trials(self.path / "trials")]

    def trials_to_choose_from(self, wanted: int) -> list[Trial]:
        """The trials that the held-out look is taken on."""
        return self.trials()


class SharedStudy(Study):
    """The study of a folder that workers share: of those that ask for the same at once one makes it, others wait."""

    def trials_to_choose_from(self, wanted: int) -> list[Trial]:
        """Those of all workers: whoever first has enough says which, others take the same."""
        chosen = self.once("looks", lambda: [trial.record for trial in self.trials()], key=str(wanted))
        return [trial for trial in self.trials() if trial.record in chosen]

    def once(self, name: str, make: Callable[[], Any], *, key: str | None = None) -> Any:
        """The JSON value that `NAME.json` has under a key, made by one worker if it is not there."""
        lock = FileLock(self.path / f".{name}.json.lock")  # the system gives it back when the process dies
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            with step("Waiting for another worker, which measures the same", 1):
                held = lock.acquire()
        with held:
            return super().once(name, make, key=key)


@contextmanager
def opened_study(out: Path, kind: RunKind, identity: Mapping[str, Any], options: SearchOptions) -> Iterator[Study]:
    """The study in the run folder `out`, or in the one that workers share, each by a name that no other has."""
    with Study(out, kind).opened(identity) as own:
        if options.storage is None:
            yield own
            return
        shared = SharedStudy(Path(options.storage), kind)
        if shared.path.resolve() == out.resolve():
            raise InvalidValueError(f"--out is a folder of each worker, and --storage of all; both are {out}.")
        shared.path.mkdir(parents=True, exist_ok=True)
        with FileLock(shared.path / ".manifest.lock"):
            shared.settle(identity)
        try:
            held = FileLock(shared.path / f".{options.worker}.lock").acquire(timeout=0)
        except Timeout as error:
            raise MismatchError(
                f"another process is the worker {options.worker!r} of {shared.path}: give this one a --worker name of "
                "its own."
            ) from error
        with held:
            yield shared


def optuna_record(trial: Trial, space: SearchSpace, goal: Goal) -> FrozenTrial:
    """The trial as Optuna's samplers learn from it: gain and cost, and by how much it breaks the budget."""
    point = goal.point(trial.metrics) if trial.complete else None
    excess = goal.budget.excess(trial.metrics) if point is not None else {"stopped": 1.0}
    return create_trial(
        state=TrialState.PRUNED if point is None else TrialState.COMPLETE,
        values=None if point is None else list(point),
        params=dict(trial.parameters),
        distributions=space.distributions(),
        constraints={name: value for name, value in excess.items() if value == value},
    )
