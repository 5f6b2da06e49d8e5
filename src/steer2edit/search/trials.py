"""Trials: a generation of configurations measured by successive halving, and the files that keep them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from steer2edit.artifacts.run_folder import damage_explained, write_json
from steer2edit.core import TUNED_BLOCKS, Editing, WeightEdit
from steer2edit.editing import natural_strength
from steer2edit.errors import ArtifactError
from steer2edit.estimates import Condition, Estimate, Value
from steer2edit.evaluation import Behaviour, DriftTask, Secant, merged_measurements
from steer2edit.evaluation.statistics import estimate
from steer2edit.method import Hyperparameters
from steer2edit.models import Sampling
from steer2edit.search.goal import Goal, ranked
from steer2edit.search.search import Search
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
        return self.record.removeprefix(f"{MAIN}-") if self.worker == MAIN else self.record

    @property
    def record(self) -> str:
        """Identity within a storage that other workers share."""
        return f"{self.worker}-{self.generation:04d}-{self.index:03d}"

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
        return cls(**{**stored, "hyperparameters": Hyperparameters(**stored["hyperparameters"])}, worker=worker)


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


RUNGS = (0.25, 0.5, 1.0)
"""Shares of the validation items after which the less promising half of a generation is stopped."""

_SPENT_WITHIN = 0.1  # relative error of a strength found on the few sanity requests
_JUST_WITHIN = 0.05  # how near the whole drift budget the edit of effects is brought, from below
_MOST_STEPS = 8
_FEWEST = 4  # trials that survive a rung, if there are as many
NO_EDIT = "edits next to nothing"
DEGENERATE = "degenerate"
SANITY_METRIC = "sanity_kl"


def measure_generation(
    search: Search, proposals: Sequence[Parameters], generation: int, *, drifts: tuple[float, float] | None = None
) -> list[Trial]:
    """Trials of the proposals, in their order; an empty one stands for the edit of effects in closed form.

    0. In `drift` coordinates, every configuration gets the strength that spends its share of the drift budget on a few
    short benign requests. 1. Sanity filter: KL on a few short benign requests; what drifts less than `drifts[0]`,
    further than `drifts[1]` or not finitely, is stopped before it generates a single token. 2. Rungs: what is left is
    measured on a quarter of the validation items; the better half (see `goal.ranked`) on the next quarter; the better
    half of those on the rest. Items are never measured twice, and the edit of effects goes through all rungs.

    All configurations of a rung run in shared batches, each row under its own edit.
    """
    goal, sanity = search.goal, sanity_task(search.validation)
    attn, mlp = (1.0 if block in search.space.blocks else None for block in TUNED_BLOCKS)
    by_effect = Hyperparameters(attn, mlp, 0.0)
    chosen = [search.space.hyperparameters(p) if p else by_effect for p in proposals]
    scales = [1.0 if p else effect_scale(search, by_effect) for p in proposals]
    if shares := {i: s for i, p in enumerate(proposals) if p and (s := search.space.drift_share(p))}:
        targets = [share * goal.largest_cost for share in shares.values()]
        spent = spend(search, [chosen[i] for i in shares], targets, sanity)
        chosen = [dict(zip(shares, spent, strict=True)).get(i, own) for i, own in enumerate(chosen)]
    configurations = list(zip(proposals, chosen, scales, strict=True))
    edits = search.edits(configurations)
    trials = [
        Trial(generation, index, point, chosen, 0.0, None, {}, worker=search.options.worker, scale=scale)
        for index, (point, chosen, scale) in enumerate(configurations)
    ]
    _filter(search, trials, edits, sanity, drifts or search.sane_drifts)
    for begin, end in pairwise((0.0, *RUNGS)):
        _measure(search, trials, edits, begin, end)
        if end < 1:
            _halve(trials, goal, end)
    return trials


def effect_scale(search: Search, shape: Hyperparameters) -> float:
    """How strong the edit of effects may be: as the drift budget allows with the whole interval of what it spends."""
    (edit,) = search.edits([({}, shape, 1.0)])
    secant = Secant((1 - _JUST_WITHIN) * search.goal.largest_cost, natural_strength(edit) or 1.0, _JUST_WITHIN)
    while not edit.is_empty and not secant.done and secant.steps < _MOST_STEPS:
        drift = search.validation.drift.measure(search.engine, [Editing(edit, secant.strength)])[0].metrics["kl"]
        secant.tell(drift.value if drift.high is None else drift.high)
    return secant.best.strength or 1.0


def spend(
    search: Search, shapes: Sequence[Hyperparameters], targets: Sequence[float], task: DriftTask
) -> list[Hyperparameters]:
    """Every configuration at the strength that spends its target KL, all together in a few secant steps.

    One that does not drift at all stays as it is.
    """
    edits = search.factors.edits(shapes)
    secants = [Secant(target, tolerance=_SPENT_WITHIN) for target in targets]
    left = [i for i, edit in enumerate(edits) if not edit.is_empty]
    for _ in range(_MOST_STEPS):
        found = task.measure(search.engine, [Editing(edits[i], secants[i].strength) for i in left])
        for i, measured in zip(left, found, strict=True):
            drift = measured.metrics["kl"].value
            if drift is None or drift > 0:
                secants[i].tell(drift)
        left = [i for i in left if not secants[i].done]
        if not left:
            break
    return [h.scaled(s.best.strength) if s.best.steps else h for h, s in zip(shapes, secants, strict=True)]


def _filter(
    search: Search, trials: list[Trial], edits: Sequence[WeightEdit], sanity: DriftTask, drifts: tuple[float, float]
) -> None:
    """Stop what does nothing, or too much, on the sanity requests."""
    trials[:] = [replace(t, stopped=NO_EDIT if edit.is_empty else None) for t, edit in zip(trials, edits, strict=True)]
    alive = _alive(trials)
    measured = sanity.measure(search.engine, [Editing(edits[trial.index]) for trial in alive])
    for trial, found in zip(alive, measured, strict=True):
        values, drift, on = found.values["kl"], found.metrics["kl"].value, f"on {len(sanity)} short benign requests"
        # a request that the base answers with nothing is `None`: it says nothing about the edit
        stopped = None
        if drift is None or any(value is not None and not math.isfinite(value) for value in values):
            stopped = f"{DEGENERATE}: KL not finite {on}"
        elif drift > drifts[1]:
            stopped = f"{DEGENERATE}: KL {drift:.2f} {on}"
        elif drift < drifts[0]:
            stopped = f"{NO_EDIT}: KL {drift:.4f} {on}"
        trials[trial.index] = replace(trial, values={SANITY_METRIC: values}, stopped=stopped)


def _alive(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.complete]


def _measure(search: Search, trials: list[Trial], edits: Sequence[WeightEdit], begin: float, end: float) -> None:
    """Measure what was not stopped on the items between two shares."""
    if not (alive := _alive(trials)):
        return
    part, own = search.validation.part(begin, end), [Editing(edits[trial.index]) for trial in alive]
    by_task = [task.measure(search.engine, own) for task in part.tasks if len(task)]
    for trial, *found in zip(alive, *by_task, strict=True):
        trials[trial.index] = replace(trial, share=end, **vars(merged_measurements([trial, *found])))


def _halve(trials: list[Trial], goal: Goal, share: float) -> None:
    """Stop the less promising half of what was not stopped."""
    alive = _alive(trials)
    if all(goal.point(t.metrics) is None for t in alive):
        return  # so few items that none came up yet: nothing tells them apart
    kept = ranked([t.metrics for t in alive], goal)[: max(_FEWEST, -(-len(alive) // 2))]
    for place, trial in enumerate(alive):
        if place not in kept and trial.parameters:
            why = f"less promising than half of its generation after {share:.0%} of the items"
            trials[trial.index] = replace(trial, stopped=why)


def sanity_task(behaviour: Behaviour, count: int = 8, max_new_tokens: int = 12) -> DriftTask:
    """Drift on the shortest benign requests of a behaviour, with short answers."""
    drift = behaviour.drift
    shortest = sorted(drift.items, key=lambda prompt: len(str(prompt)))[:count]
    return DriftTask("", shortest, Sampling(max_new_tokens=max_new_tokens))


def stopped_counts(trials: Sequence[Trial]) -> Mapping[str, int]:
    """How many trials were completed, and how many stopped, by reason."""
    counts: dict[str, int] = {}
    for trial in trials:
        reason = "complete" if trial.stopped is None else trial.stopped.split(":")[0].split(" after")[0]
        counts[reason] = counts.get(reason, 0) + 1
    return counts
