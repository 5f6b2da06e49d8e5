"""The Optuna study that holds the trials of a search: opened again after a kill, shared between machines."""

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from steer2edit.artifacts.run_folder import different_keys
from steer2edit.errors import ArtifactError, MismatchError, Steer2EditError
from steer2edit.estimates import Condition
from steer2edit.progress import step
from steer2edit.search.goal import Goal
from steer2edit.search.space import SearchSpace
from steer2edit.search.trials import Trial
from steer2edit.settings import SearchOptions

JOURNAL_FILE = "study.journal"
_IDENTITY = "steer2edit"
_LOOK, _TURN = "held-out look after", "turn to make"
_POLL = 1.0  # seconds


class Study:
    """The finished trials of one search, whoever measured them: in the journal of the run folder, or in a storage.

    Raises MismatchError for the storage of another search, and ArtifactError for one that cannot be opened.
    """

    def __init__(
        self, run: Path, identity: Mapping[str, Any], space: SearchSpace, goal: Goal, options: SearchOptions
    ) -> None:
        self._space, self._goal, self._worker = space, goal, options.worker
        self._shared = options.storage is not None
        self._where = shown_storage(options.storage) or str(run / JOURNAL_FILE)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self._errors_explained():
            backend = RDBStorage(options.storage) if options.storage else _journal(run / JOURNAL_FILE)
            _require_same(backend, options.study, identity)
            self._study = optuna.create_study(
                storage=backend, study_name=options.study, directions=["maximize", "minimize"], load_if_exists=True
            )
            if _IDENTITY not in self._study.user_attrs:
                self._study.set_user_attr(_IDENTITY, dict(identity))
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

    def _note(self, **attributes: Any) -> None:
        """A record that is no trial, for other workers."""
        with self._errors_explained():
            self._study.add_trial(create_trial(state=TrialState.FAIL, user_attrs=attributes))

    def trials(self, before: int | None = None) -> list[Trial]:
        """All finished trials (or those with a smaller number), of all workers, by number; without replies."""
        with self._errors_explained():
            return [
                Trial.from_json(
                    {**{name: own[name] for name in _STORED if name in own}, "parameters": record.params}, own["worker"]
                )
                for record in self.history()
                if (before is None or record.number < before) and (own := record.user_attrs)
            ]

    def trials_to_choose_from(self, wanted: int) -> list[Trial]:
        """The trials that the held-out look is taken on.

        Workers that ask for the same number of trials take one look: whoever first has enough says which trials it
        chooses from, by a record of its own in the study, and the others choose from the same.
        """
        if not self._shared:
            return self.trials()
        if not self._looks(wanted):
            self._note(**{_LOOK: wanted})
        return self.trials(before=self._looks(wanted)[0])

    def _looks(self, wanted: int) -> list[int]:
        return [one.number for one in self._records(TrialState.FAIL) if one.user_attrs.get(_LOOK, 0) >= wanted]

    def once(self, name: str, make: Callable[[], Any], *, alone: bool = False) -> Any:
        """The JSON value that a shared storage has under a name, made if it has none; a journal keeps none.

        With `alone` no two workers make it, also when they ask at once: then one waits for the other.
        """
        if not self._shared:
            return make()
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
        if self._worker not in self._claims(key):
            self._note(**{_TURN: key, "worker": self._worker})
        first = self._claims(key)[0]
        if first != self._worker and self._kept(key) is None:
            with step(f"Waiting for the worker {first!r}, which measures the held-out items", 1):
                while self._kept(key) is None:
                    time.sleep(_POLL)

    def _claims(self, key: str) -> list[str]:
        """The workers that asked to make a value, in the order in which they did."""
        records = self._records(TrialState.FAIL)
        return [record.user_attrs["worker"] for record in records if record.user_attrs.get(_TURN) == key]

    def _kept(self, key: str) -> Any:
        with self._errors_explained():
            return self._study.user_attrs.get(key)

    def _record(self, trial: Trial) -> FrozenTrial:
        metrics = trial.metrics
        point = self._goal.point(metrics) if trial.complete else None
        stored = trial.to_json()
        attributes = {
            "key": trial.record,
            "worker": trial.worker,
            "label": trial.label,
            **{name: stored[name] for name in _STORED},
            "metrics": {name: found.to_json() for name, found in metrics.items()},
        }
        excess = self._goal.budget.excess(metrics) if point is not None else {"stopped": 1.0}
        return create_trial(
            state=TrialState.PRUNED if point is None else TrialState.COMPLETE,
            values=None if point is None else list(point),
            params=dict(trial.parameters),
            distributions=self._space.distributions() if trial.parameters else {},
            user_attrs=attributes,
            constraints={name: value for name, value in excess.items() if value == value},
        )

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        try:
            yield
        except Steer2EditError:
            raise
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, ValueError, KeyError) as error:
            raise ArtifactError(
                f"the storage {self._where} cannot be used: {str(error).splitlines()[0]}. Give an Optuna storage URL "
                "such as sqlite:///study.db or postgresql://user@host/database, or leave --storage out for a journal "
                "in the run folder."
            ) from error


_STORED = ("generation", "index", "hyperparameters", "share", "stopped", "values", "scale")


def shown_storage(url: str | None) -> str | None:
    """A storage URL as it may be shown and kept: without its password."""
    if url is None:
        return None
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url.split("@")[-1]  # not a URL: whatever stands before an @ may be a password


def _journal(path: Path) -> BaseStorage:
    """The journal in the run folder, of which this process is the only writer (it holds the folder's lock).

    A killed process may leave a half-written last line, which Optuna cannot append to, and its lock, which it would
    wait for; both are cleared.
    """
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    if path.exists():
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) != len(content):
            with path.open("r+b") as file:
                file.truncate(len(whole))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return JournalStorage(JournalFileBackend(str(path)))


def _require_same(backend: BaseStorage, name: str, identity: Mapping[str, Any]) -> None:
    """Refuse a study that was begun with another model, other vectors or options."""
    for study in backend.get_all_studies():
        found = backend.get_study_user_attrs(study._study_id).get(_IDENTITY)
        if study.study_name == name and found is not None and (differing := different_keys(found, identity)):
            raise MismatchError(
                f"the study {name!r} of this storage belongs to another search: it differs in {'; '.join(differing)}. "
                "Give another --study name or --out, or the model, vectors and options it was begun with."
            )
