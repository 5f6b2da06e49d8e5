"""Trials of a search, the files that keep them, and the Optuna study that proposals and choices are made from."""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from steer2edit.artifacts.run_folder import damage_explained, different_keys, write_json
from steer2edit.errors import ArtifactError, MismatchError, Steer2EditError
from steer2edit.estimates import Condition, Estimate, Value
from steer2edit.evaluation.statistics import estimate
from steer2edit.method import Hyperparameters
from steer2edit.progress import step
from steer2edit.search.goal import Goal
from steer2edit.search.space import Parameters, SearchSpace
from steer2edit.settings import SearchOptions

SCHEMA_VERSION = 1
_NAME = "steer2edit"
_LOOK, _TURN = "held-out look after", "turn to make"
_POLL = 1.0  # seconds


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


def write_generation(folder: Path, trials: Sequence[Trial]) -> None:
    """Keep a generation's trials, in whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{trials[0].worker}-{trials[0].generation:04d}.json"
    write_json(folder / name, {"schema_version": SCHEMA_VERSION, "trials": [trial.to_json() for trial in trials]})


def read_trials(folder: Path) -> list[Trial]:
    """The trials that were kept, by worker, generation and index; an ArtifactError for a file that holds none."""
    trials = []
    for path in sorted(folder.glob("[!.]*-[0-9]*.json")):
        with damage_explained(path):
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["schema_version"] != SCHEMA_VERSION:
                raise ArtifactError(f"{path} has schema version {stored['schema_version']}, not {SCHEMA_VERSION}.")
            worker = path.stem.rpartition("-")[0]
            trials += [Trial.from_json(one, worker) for one in stored["trials"]]
    return sorted(trials, key=lambda trial: (trial.worker, trial.generation, trial.index))


class Study:
    """The finished trials of one search, whoever measured them: in memory, or in a storage that workers share.

    Raises MismatchError for the storage of another search, and ArtifactError for one that cannot be opened.
    """

    def __init__(self, identity: Mapping[str, Any], space: SearchSpace, goal: Goal, options: SearchOptions) -> None:
        self._space, self._goal, self._worker = space, goal, options.worker
        self._where = shown_storage(options.storage)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self._errors_explained():
            self._study = optuna.create_study(
                storage=RDBStorage(options.storage) if options.storage else InMemoryStorage(),
                study_name=options.study, directions=["maximize", "minimize"], load_if_exists=True,
            )  # fmt: skip
            found = self._study.user_attrs.get(_NAME)
            if found is not None and (differing := different_keys(found, identity)):
                raise MismatchError(
                    f"the study {options.study!r} of this storage belongs to another search: it differs in "
                    f"{'; '.join(differing)}. Give another --study name, or the model, vectors and options it was "
                    "begun with."
                )
            self._study.set_user_attr(_NAME, dict(identity))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._study.set_metric_names([goal.attribute, goal.cost])

    def add(self, trials: Sequence[Trial]) -> None:
        """Add what is not there yet; each trial is one record, so a kill leaves none half-written."""
        known = {record.user_attrs["key"] for record in self.history()}
        with self._errors_explained():
            for trial in trials:
                if trial.record not in known:
                    self._study.add_trial(self._record(trial))

    def require_own(self, trials: Sequence[Trial]) -> None:
        """A MismatchError if another process has used this worker's name: trials of it are not among the folder's."""
        own = {trial.record for trial in trials}
        mine = [t.user_attrs["key"] for t in self.history() if t.user_attrs["worker"] == self._worker]
        if foreign := set(mine) - own:
            raise MismatchError(
                f"{self._where} has {len(foreign)} trials of a worker {self._worker!r} which this run folder does not "
                "have. Give this process a --worker name of its own, or the --out that those trials were made in."
            )

    def history(self) -> list[FrozenTrial]:
        """All finished trials, of all workers, by number."""
        return self._records(TrialState.COMPLETE, TrialState.PRUNED)

    def _records(self, *states: TrialState) -> list[FrozenTrial]:
        with self._errors_explained():
            return self._study.get_trials(deepcopy=False, states=states)

    def _notes(self, name: str) -> list[FrozenTrial]:
        """Records that are no trial, for other workers, which have an attribute."""
        return [record for record in self._records(TrialState.FAIL) if name in record.user_attrs]

    def _note(self, **attributes: Any) -> None:
        with self._errors_explained():
            self._study.add_trial(create_trial(state=TrialState.FAIL, user_attrs=attributes))

    def trials(self, before: int | None = None) -> list[Trial]:
        """All finished trials (or those with a smaller number), of all workers, by number; without replies."""
        with self._errors_explained():
            return [
                Trial.from_json(
                    {**record.user_attrs["trial"], "parameters": record.params}, record.user_attrs["worker"]
                )
                for record in self.history()
                if before is None or record.number < before
            ]

    def trials_to_choose_from(self, wanted: int) -> list[Trial]:
        """The trials that the held-out look is taken on.

        Workers that ask for the same number of trials take one look: whoever first has enough says which trials it
        chooses from, by a record of its own in the study, and the others choose from the same.
        """
        looks = [note for note in self._notes(_LOOK) if note.user_attrs[_LOOK] >= wanted]
        if not looks:
            self._note(**{_LOOK: wanted})
            looks = [note for note in self._notes(_LOOK) if note.user_attrs[_LOOK] >= wanted]
        return self.trials(before=looks[0].number)

    def once(self, name: str, make: Callable[[], Any], *, alone: bool = False) -> Any:
        """The JSON value that the study has under a name, made if it has none.

        With `alone` no two workers make it, also when they ask at once: then one waits for the other.
        """
        key = hashlib.sha256(name.encode()).hexdigest()
        if alone:
            self._wait_for_turn(key)
        found = self._kept(key)
        if found is None:
            found = make()
            with self._errors_explained():
                self._study.set_user_attr(key, found)
        return found

    def conditions(
        self, name: str, measure: Callable[[], Sequence[Condition]], *, alone: bool = False
    ) -> list[Condition]:
        """As `once`, of conditions."""
        stored = self.once(name, lambda: [condition.to_json() for condition in measure()], alone=alone)
        return [Condition.from_json(one) for one in stored]

    def _wait_for_turn(self, key: str) -> None:
        """Return when the value is there, or if it is this worker's to make: whose record in the study is the first.

        A worker that was killed meanwhile has the turn still; called again, it takes it.
        """

        def claims() -> list[str]:
            return [note.user_attrs["worker"] for note in self._notes(_TURN) if note.user_attrs[_TURN] == key]

        if self._worker not in claims():
            self._note(**{_TURN: key, "worker": self._worker})
        first = claims()[0]
        if first != self._worker and self._kept(key) is None:
            with step(f"Waiting for the worker {first!r}, which measures the held-out items", 1):
                while self._kept(key) is None:
                    time.sleep(_POLL)

    def _kept(self, key: str) -> Any:
        with self._errors_explained():
            return self._study.user_attrs.get(key)

    def _record(self, trial: Trial) -> FrozenTrial:
        point = self._goal.point(trial.metrics) if trial.complete else None
        stored = {name: value for name, value in trial.to_json().items() if name not in ("replies", "outcomes")}
        excess = self._goal.budget.excess(trial.metrics) if point is not None else {"stopped": 1.0}
        return create_trial(
            state=TrialState.PRUNED if point is None else TrialState.COMPLETE,
            values=None if point is None else list(point),
            params=stored.pop("parameters"),
            distributions=self._space.distributions() if trial.parameters else {},
            user_attrs={"key": trial.record, "worker": trial.worker, "trial": stored},
            constraints={name: value for name, value in excess.items() if value == value},
        )

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        try:
            yield
        except Steer2EditError:
            raise
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, ValueError, KeyError) as error:
            if self._where is None:
                raise ArtifactError(
                    f"what this run folder holds does not fit its search: {str(error).splitlines()[0]}. Restore its "
                    "trials, or begin in a new folder."
                ) from error
            raise ArtifactError(
                f"the storage {self._where} cannot be used: {str(error).splitlines()[0]}. Give an Optuna storage URL "
                "such as sqlite:///study.db or postgresql://user@host/database, or leave --storage out."
            ) from error


def shown_storage(url: str | None) -> str | None:
    """A storage URL as it may be shown and kept: without its password."""
    if url is None:
        return None
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url.split("@")[-1]  # not a URL: whatever stands before an @ may be a password
