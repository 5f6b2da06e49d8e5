"""Trials: configurations and what was measured of them, and the files that keep them."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steer2edit.artifacts import atomic_file
from steer2edit.errors import ArtifactError
from steer2edit.evaluation import Condition, Estimate, Value, estimate
from steer2edit.method import Hyperparameters
from steer2edit.search.space import Parameters

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Trial:
    """One configuration of a search.

    Args:
        generation: the batch of trials it was proposed and measured with.
        index: its place there.
        parameters: the point of the search space.
        hyperparameters: the configuration at that point.
        share: part of the validation items it was measured on; 0 if the sanity filter stopped it.
        stopped: why it was not measured on all of them; `None` if it was.
        values: what each item came to, by metric name.
        replies: generated text by set name.
        outcomes: verdicts on the replies by set name.
    """

    generation: int
    index: int
    parameters: Parameters
    hyperparameters: Hyperparameters
    share: float
    stopped: str | None
    values: Mapping[str, Sequence[Value]]
    replies: Mapping[str, list[str]]
    outcomes: Mapping[str, list[bool | None]]

    @property
    def key(self) -> str:
        """Identity within the search."""
        return f"{self.generation:04d}-{self.index:03d}"

    @property
    def complete(self) -> bool:
        """Whether it was measured on all validation items."""
        return self.stopped is None

    @property
    def metrics(self) -> dict[str, Estimate]:
        """Estimates by metric name, from the items it was measured on."""
        return {name: estimate(values) for name, values in self.values.items()}

    def condition(self) -> Condition:
        """The trial as a report shows it."""
        place = {"strength": 1.0, "trial": self.key, "share": self.share, "stopped": self.stopped}
        parameters = {**self.hyperparameters.to_json(), **place}
        label = str(self.hyperparameters)
        return Condition("edit", label, parameters, self.metrics, self.replies, self.outcomes, self.values)

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
            **{name: stored[name] for name in ("values", "replies", "outcomes")},
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Trial":
        """The trial that `to_json` described."""
        fields = {**stored, "hyperparameters": Hyperparameters(**stored["hyperparameters"])}
        return cls(**fields)


def write_generation(folder: Path, trials: Sequence[Trial], worker: str) -> None:
    """Keep a generation's trials, in whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(
        {"schema_version": SCHEMA_VERSION, "trials": [trial.to_json() for trial in trials]}, ensure_ascii=False
    )
    with atomic_file(folder / f"{worker}-{trials[0].generation:04d}.json") as scratch:
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_trials(folder: Path, worker: str | None = None) -> list[Trial]:
    """The trials that were kept, of one worker or of all, by generation and index.

    Raises:
        ArtifactError: a file there is not one of a search, or of another version.
    """
    trials = []
    name = re.compile(rf"{'.+' if worker is None else re.escape(worker)}-[0-9]+\.json")
    for path in sorted(path for path in folder.glob("*.json") if name.fullmatch(path.name)):
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["schema_version"] != SCHEMA_VERSION:
                raise ArtifactError(f"{path} has schema version {stored['schema_version']}, not {SCHEMA_VERSION}.")
            trials += [Trial.from_json(one) for one in stored["trials"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} does not hold the trials of a search: {error}. Restore it, or remove it "
                                "and run the search again.") from error  # fmt: skip
    return sorted(trials, key=lambda trial: (trial.generation, trial.index))
