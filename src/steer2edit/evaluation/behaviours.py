"""Behaviours measured: their sets of items as tasks that tell how much of an attribute there is, and what it costs."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from steer2edit.core import SteeringVectors
from steer2edit.errors import DataError, did_you_mean
from steer2edit.evaluation.formats import divided, plain_requests, true_and_false
from steer2edit.evaluation.judge import Judge
from steer2edit.evaluation.likelihood_tasks import DriftTask, PreferenceTask
from steer2edit.evaluation.reply_tasks import LengthTask, RefusalTask, ThinkingTask, VerdictTask
from steer2edit.evaluation.scorers import LocalJudge, Phrases, PythonScorer, Scorer
from steer2edit.evaluation.task import Task, TaskSettings
from steer2edit.steering.behaviour_folder import BehaviourFolder, ItemSet, built_in_names, find_behaviour
from steer2edit.steering.contrast import assign_splits
from steer2edit.steering.examples import prompt_digests, prompt_key
from steer2edit.steering.refusal import refusal_phrases
from steer2edit.steering.rows import Row, Split, Table, read_table

BENIGN = "benign"
"""The set that drift is measured on: the behaviour's own, or the requests that come with the package."""
_USUAL: dict[Split, int] = {"validation": 48, "held_out": 96}


def set_rows(found: BehaviourFolder, name: str, wanted: TaskSettings) -> Table:
    """The rows of a set of this split: the user's own data, its file, or the contrast's.

    There are the usual ones at least, and more where the limit is higher.
    """
    own, seed = found.sets[name], wanted.divide or 0
    if name in wanted.data:
        table = divided(read_table(wanted.data[name]), wanted.split, seed)
    elif path := found.file(own.items or name):
        shown = f"{found.name}/{path.name}" if found.name in built_in_names() else None
        table = divided(read_table(path, name=shown), wanted.split, seed)
    elif own.items:
        raise DataError(f"{found.where}: the set {name!r} has no file {own.items!r} in its folder.")
    else:
        table = _contrast_rows(found, wanted.split, seed)
    usual = own.usual.get(wanted.split, len(table.rows))
    return replace(table, rows=table.rows[: max(usual, wanted.limit or 0)])


def _task(found: BehaviourFolder, name: str, wanted: TaskSettings, scorer: Any) -> Task:
    """A set as the task that its scorer makes of it."""
    own, table = found.sets[name], set_rows(found, name, wanted)
    kind, called = SET_SCORERS[own.scorer][0], name if own.metrics is None else own.metrics
    if issubclass(kind, PreferenceTask):
        return kind(called, wanted.chosen(true_and_false(table)), "letter" if own.scorer == "choice" else "text", name)
    wanted = replace(wanted, max_new_tokens=wanted.max_new_tokens or own.max_new_tokens)
    if issubclass(kind, VerdictTask):
        return wanted.make(kind, name, wanted.chosen(plain_requests(table)), scorer=scorer or wanted.scorer)
    return wanted.make(kind, called, wanted.chosen(plain_requests(table)))


SET_SCORERS: dict[str, tuple[type[Task], type | None]] = {
    "refusal": (RefusalTask, None),
    "phrases": (VerdictTask, Phrases),
    "preference": (PreferenceTask, None),
    "choice": (PreferenceTask, None),
    "length": (LengthTask, None),
    "thinking": (ThinkingTask, None),
    "judge": (VerdictTask, Judge),
    "local_judge": (VerdictTask, LocalJudge),
    "python": (VerdictTask, PythonScorer),
}
"""What a `behaviour.toml` may name as a scorer: the task that a set becomes, and what its other keys say."""


def scorer_settings(found: BehaviourFolder, name: str) -> Any:
    """The scorer's own keys as what they say; a DataError of an unknown scorer, or a key that is not one of its."""
    own, where = found.sets[name], f"{found.where}: sets.{name}"
    if own.scorer not in SET_SCORERS:
        raise DataError(f"{where}: there is no scorer {own.scorer!r}. {did_you_mean(own.scorer, SET_SCORERS)}")
    kind, given = SET_SCORERS[own.scorer][1], dict(own.model_extra or {})
    if kind is None:
        if given:
            raise DataError(f"{where}: the scorer {own.scorer!r} has no key {min(given)!r}. See docs/behaviours.md.")
        return None
    if "folder" in getattr(kind, "__dataclass_fields__", {}):
        given["folder"] = found.folder
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        key, reason = ".".join(["", *map(str, first["loc"])]), first["msg"].removeprefix("Value error, ")
        raise DataError(f"{where}{key}: {reason.rstrip('.')}. See docs/behaviours.md.") from error


def _contrast_rows(found: BehaviourFolder, split: Split, seed: int) -> Table:
    """The contrast's prompts of a split, with both answers where it has them; see `assign_splits`."""
    rows: dict[str, dict[str, Any]] = {}
    for example in assign_splits(found.examples(), seed):
        if example.split == split:
            row = rows.setdefault(example.key, {"prompt": example.prompt})
            row.setdefault(example.label or "", example.response)
    if not rows:
        raise DataError(
            f"the behaviour {found.name!r} has no {split.replace('_', '-')} items: give rows of the contrast "
            f'`"split": "{split}"`, more rows, or files of items (docs/behaviours.md).'
        )
    where = f"the contrast of {found.name}"
    return Table(found.name, where, tuple(Row(f"{where}, {key[:40]!r}", cells) for key, cells in rows.items()))


@dataclass(frozen=True)
class Behaviour:
    """What a behaviour measures on one split."""

    name: str  # of the behaviour
    attribute: str  # the metric that the edit is to move
    direction: int  # +1 if more of it is wanted, −1 if less
    tasks: tuple[Task, ...]  # the measurements
    prompts: dict[str, list[str]]  # the requests by set name, aligned with the replies
    guide: str | None = None  # a finer metric of the attribute, for telling apart what is equal in it
    # metrics whose rise or fall is a cost, beside drift
    costs: Mapping[str, Literal["rise", "fall"]] = field(default_factory=dict)
    reach: float | None = None  # a level of the attribute whose drift comparisons report

    @property
    def drift(self) -> DriftTask:
        """The task that measures drift on benign requests."""
        return next(task for task in self.tasks if isinstance(task, DriftTask))

    def part(self, begin: float, end: float) -> "Behaviour":
        """The tasks on the items between two shares, e.g. 0.25 and 0.5; consecutive parts make the whole."""
        parts = (task.part(slice(round(begin * len(task)), round(end * len(task)))) for task in self.tasks)
        return replace(self, tasks=tuple(parts))

    def digest(self) -> str:
        """SHA-256 over the prompts and what is asked of them: which items a search was made on."""
        asked = [[type(task).__name__, len(task)] for task in self.tasks]
        answers = [task.items if isinstance(task, PreferenceTask) else None for task in self.tasks]
        scorers = [repr(task.scorer) for task in self.tasks if type(task) is VerdictTask]
        items = [self.name, asked, self.prompts, answers, list(map(str, self.drift.items)), scorers]
        return hashlib.sha256(json.dumps(items, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def digests(self) -> list[str]:
        """Of all its prompts: by these it is told whether prompts have two uses."""
        return prompt_digests(prompt for prompts in self.prompts.values() for prompt in prompts)

    @property
    def unscored(self) -> dict[str, dict[str, int]]:
        """By set, why scorers could not tell replies, and how many of all so far."""
        return unscored_reasons(self.tasks)


def unscored_reasons(tasks: Sequence[Task]) -> dict[str, dict[str, int]]:
    """By set, why the scorers of these tasks could not tell replies, and how many of all so far."""
    judged = [task for task in tasks if isinstance(task, VerdictTask) and getattr(task.scorer, "unscored", None)]
    return {task.name: dict(task.scorer.unscored) for task in judged}  # type: ignore[attr-defined]


def attribute_of(name: str) -> tuple[str, int]:
    """(metric that an edit for a behaviour is to move, +1 if more of it is wanted or −1 if less)."""
    found = behaviour(name, "validation", limit=1)
    return found.attribute, found.direction


def behaviour(
    source: str,
    split: Split,
    *,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    scorer: Scorer | None = None,
    data: Mapping[str, str] | None = None,
    seed: int = 0,
    borderline: bool = False,
) -> Behaviour:
    """The evaluation of a behaviour on one split; a DataError where there is no such behaviour or set, or it is wrong.

    Args:
        source: a behaviour that comes with the package, a behaviour's folder, or a contrast file.
        split: validation for choosing, held_out for final figures.
        limit: use at most this many prompts of every set; safety has up to 300 held-out ones, and uses 96 without.
        max_new_tokens: longest reply; each behaviour has a default of its own.
        scorer: tells refusals; by default the strict phrases.
        data: the user's own data by set, a file or `hub:OWNER/NAME/FILE`; what is not given is the behaviour's.
        seed: of the division of data without a column `split`.
        borderline: measure optional sets too (safe requests that sound alarming, of safety); so it is with data.
    """
    found, data = _measured(source), data or {}
    known = {*found.sets, BENIGN}
    if unknown := [own for own in data if own not in known]:
        raise DataError(f"{found.name} has no set {unknown[0]!r} to give data for. {did_you_mean(unknown[0], known)}")
    wanted = TaskSettings(split, limit, max_new_tokens, scorer or refusal_phrases(), divide=seed, data=data)
    scorers = {name: scorer_settings(found, name) for name in found.sets}
    asked = [name for name, own in found.sets.items() if borderline or name in data or not own.optional]
    tasks = [_task(found, name, wanted, scorers[name]) for name in asked]
    names = [name for task in tasks for name in task.metric_names]
    prompts = {name: list(map(prompt_key, own)) for task in tasks for name, own in task.asked.items()}
    attribute = found.attribute or names[0]
    if attribute not in names:
        raise DataError(f"{found.where}: attribute: no set reports {attribute!r}. {did_you_mean(attribute, names)}")
    margin = attribute.replace("_preferred", "_margin")
    guide = found.guide or (margin if margin != attribute else None)
    costs = {metric: way for metric, way in found.costs.items() if metric in names}
    direction = 1 if found.direction == "higher" else -1
    return Behaviour(
        found.name, attribute, direction, (*tasks, _drift_task(found, wanted)), prompts, guide, costs, found.reach
    )


def _drift_task(found: BehaviourFolder, wanted: TaskSettings) -> Task:
    """Drift on the behaviour's own benign requests, or on those that come with the package."""
    if BENIGN not in found.sets:
        set_of_file = ItemSet(scorer="", items=BENIGN if found.file(BENIGN) else f"safety:{BENIGN}", usual=_USUAL)
        found = found.model_copy(update={"sets": {BENIGN: set_of_file}})
    return wanted.make(DriftTask, "", wanted.chosen(plain_requests(set_rows(found, BENIGN, wanted))))


def _measured(name: str) -> BehaviourFolder:
    """The behaviour whose sets measure this one."""
    found = find_behaviour(name)
    if found.measured_as is not None:
        return find_behaviour(found.measured_as)
    if not found.sets:
        raise DataError(f"{found.where} has no sets, which say what is measured. See docs/behaviours.md.")
    return found


BEHAVIOURS = tuple(name for name in built_in_names() if find_behaviour(name).sets)
"""The behaviours that come with the package, without those that are measured as another."""


def behaviour_of(vectors: SteeringVectors, option: str = "behaviour") -> str:
    """The behaviour of the package that vectors were made from, or a DataError; `option` is how a user says it then."""
    contrast = vectors.metadata.get("contrast")
    name = contrast.get("name") if isinstance(contrast, dict) else None
    if isinstance(name, str) and name in built_in_names():
        return _measured(name).name
    source = "do not say what they were made from" if name is None else f"were made from {name!r}"
    raise DataError(
        f"these vectors {source}, which tells no behaviour. Say what to measure: {option} {' | '.join(BEHAVIOURS)}, or "
        "your own: a behaviour's folder, or the contrast file."
    )
