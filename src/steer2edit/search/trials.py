"""Trials of a search, and the files that keep them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from steer2edit.artifacts.run_folder import damage_explained, write_json
from steer2edit.errors import ArtifactError
from steer2edit.estimates import Condition, Estimate, Value
from steer2edit.evaluation.statistics import estimate
from steer2edit.method import Hyperparameters
from steer2edit.search.space import Parameters

SCHEMA_VERSION = 1
MAIN = "main"


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
    worker: str = MAIN  # who measured it
    scale: float = 1.0  # what the edit of effects is multiplied by

    @property
    def key(self) -> str:
        """Identity within the search."""
        return self.record.removeprefix(f"{MAIN}-") if self.worker == MAIN else self.record

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


def stopped_counts(trials: Sequence[Trial]) -> Mapping[str, int]:
    """How many trials were completed, and how many stopped, by reason."""
    counts: dict[str, int] = {}
    for trial in trials:
        reason = "complete" if trial.stopped is None else trial.stopped.split(":")[0].split(" after")[0]
        counts[reason] = counts.get(reason, 0) + 1
    return counts
