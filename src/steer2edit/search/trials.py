"""Trials: configurations and what was measured of them, and the files that keep them with all replies."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from steer2edit.artifacts.run_folder import write_json
from steer2edit.errors import ArtifactError
from steer2edit.evaluation import Condition, Estimate, Value, estimate
from steer2edit.method import Hyperparameters
from steer2edit.search.space import Configuration, Parameters

SCHEMA_VERSION = 1
MAIN = "main"


@dataclass(frozen=True)
class Trial:
    """One configuration of a search."""

    generation: int  # the batch of trials it was proposed and measured with
    index: int  # its place there
    parameters: Parameters  # the point of the search space
    hyperparameters: Hyperparameters  # the configuration at that point
    share: float  # part of the validation items it was measured on; 0 if the sanity filter stopped it
    stopped: str | None  # why it was not measured on all of them; `None` if it was
    values: Mapping[str, Sequence[Value]]  # what each item came to, by metric name
    # generated text by set name; in the file of its generation only
    replies: Mapping[str, list[str]] = field(default_factory=dict)
    # verdicts on the replies by set name; in the file of its generation only
    outcomes: Mapping[str, list[bool | None]] = field(default_factory=dict)
    worker: str = MAIN  # who measured it
    scale: float = 1.0  # what the edit is multiplied by: of the edit of effects, which has no point of the space

    @property
    def key(self) -> str:
        """Identity within the search."""
        own = f"{self.generation:04d}-{self.index:03d}"
        return own if self.worker == MAIN else f"{self.worker}-{own}"

    @property
    def configuration(self) -> Configuration:
        """What its edit is made from."""
        return self.parameters, self.hyperparameters, self.scale

    @property
    def label(self) -> str:
        """The configuration in words; one that is no point of the space is made of the measured effects."""
        return str(self.hyperparameters) if self.parameters else f"effects {self.hyperparameters} × {self.scale:.3g}"

    @property
    def complete(self) -> bool:
        """Whether it was measured on all validation items."""
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
        stored = self.condition().to_json()
        return {
            "generation": self.generation,
            "index": self.index,
            "parameters": dict(self.parameters),
            "hyperparameters": self.hyperparameters.to_json(),
            "share": self.share,
            "stopped": self.stopped,
            "scale": self.scale,
            **{name: stored[name] for name in ("values", "replies", "outcomes")},
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], worker: str) -> "Trial":
        """The trial that `to_json` described."""
        return cls(**{**stored, "hyperparameters": Hyperparameters(**stored["hyperparameters"])}, worker=worker)


def write_generation(folder: Path, trials: Sequence[Trial]) -> None:
    """Keep a generation's trials, in whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{trials[0].worker}-{trials[0].generation:04d}.json"
    write_json(folder / name, {"schema_version": SCHEMA_VERSION, "trials": [trial.to_json() for trial in trials]})


def read_trials(folder: Path) -> list[Trial]:
    """The trials that were kept, by worker, generation and index.

    Raises:
        ArtifactError: a file there is not one of a search, or of another version.
    """
    trials = []
    for path in sorted(folder.glob("[!.]*-[0-9]*.json")):
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["schema_version"] != SCHEMA_VERSION:
                raise ArtifactError(f"{path} has schema version {stored['schema_version']}, not {SCHEMA_VERSION}.")
            worker = path.stem.rpartition("-")[0]
            trials += [Trial.from_json(one, worker) for one in stored["trials"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} does not hold the trials of a search: {error}. Restore it, or remove it "
                                "and run the search again.") from error  # fmt: skip
    return sorted(trials, key=lambda trial: (trial.worker, trial.generation, trial.index))
