"""Sets of items as tasks: by the scorer that a behaviour's folder names for each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from steer2edit.errors import DataError, did_you_mean
from steer2edit.evaluation.formats import divided, plain_requests, true_and_false
from steer2edit.evaluation.scorers import Scorer
from steer2edit.evaluation.set_scorers import JudgeSettings, LocalJudge, Phrases, PythonScorer
from steer2edit.evaluation.tasks import LengthTask, PreferenceTask, RefusalTask, Task, ThinkingTask, VerdictTask
from steer2edit.models import Sampling
from steer2edit.steering import BehaviourFolder, ItemSet, built_in_names
from steer2edit.steering.contrast import assign_splits
from steer2edit.steering.rows import Row, Split, Table, read_table

BENIGN = "benign"
"""The set that drift is measured on: the behaviour's own, or the requests that come with the package."""


@dataclass(frozen=True)
class Wanted:
    """What a behaviour is built for."""

    split: Split
    limit: int | None
    max_new_tokens: int | None
    scorer: Scorer
    data: Mapping[str, str]
    seed: int

    def sampling(self, own: ItemSet, default: int) -> Sampling:
        """Greedy replies."""
        return Sampling(max_new_tokens=self.max_new_tokens or own.max_new_tokens or default)

    def rows(self, found: BehaviourFolder, name: str) -> Table:
        """The rows of a set of this split: the user's own data, its file, or the contrast's."""
        own = found.sets[name]
        if name in self.data:
            return self._limited(divided(read_table(self.data[name]), self.split, self.seed), own)
        path = found.file(own.items or name)
        if path is None and own.items:
            raise DataError(f"{found.where}: the set {name!r} has no file {own.items!r} in its folder.")
        if path is None:
            return self._limited(_contrast_rows(found, self.split, self.seed), own)
        shown = f"{found.name}/{path.name}" if found.name in built_in_names() else None
        return self._limited(divided(read_table(path, name=shown), self.split, self.seed), own)

    def _limited(self, table: Table, own: ItemSet) -> Table:
        usual = own.usual.get(self.split, len(table.rows))
        return replace(table, rows=table.rows[: max(usual, self.limit or 0)][: self.limit])

    def benign(self, found: BehaviourFolder) -> list[str]:
        """Requests that drift is measured on: the behaviour's own, or those that come with the package."""
        if BENIGN not in found.sets:
            own = ItemSet(scorer="", items=BENIGN if found.file(BENIGN) else f"safety:{BENIGN}", usual=_USUAL)
            found = found.model_copy(update={"sets": {BENIGN: own}})
        return plain_requests(self.rows(found, BENIGN))


_USUAL: dict[Split, int] = {"validation": 48, "held_out": 96}
_Make = Callable[[str, ItemSet, Table, "Wanted", Any], Task]


def _replies(kind: type[VerdictTask]) -> _Make:
    def make(name: str, own: ItemSet, table: Table, wanted: Wanted, scorer: Any) -> Task:
        judged = scorer.made() if isinstance(scorer, JudgeSettings) else scorer or wanted.scorer
        return kind(name, plain_requests(table), wanted.sampling(own, 24), judged)

    return make


def _preference(style: Literal["text", "letter"]) -> _Make:
    def make(name: str, own: ItemSet, table: Table, wanted: Wanted, _: Any) -> Task:
        called = name if own.metrics is None else own.metrics
        return PreferenceTask(true_and_false(table), called, style, name)

    return make


def _lengths(kind: type[LengthTask], tokens: int) -> _Make:
    def make(name: str, own: ItemSet, table: Table, wanted: Wanted, _: Any) -> Task:
        called = name if own.metrics is None else own.metrics
        return kind(plain_requests(table), wanted.sampling(own, tokens), called)

    return make


SET_SCORERS: dict[str, tuple[_Make, type | None]] = {
    "refusal": (_replies(RefusalTask), None),
    "phrases": (_replies(VerdictTask), Phrases),
    "preference": (_preference("text"), None),
    "choice": (_preference("letter"), None),
    "length": (_lengths(LengthTask, 96), None),
    "thinking": (_lengths(ThinkingTask, 256), None),
    "judge": (_replies(VerdictTask), JudgeSettings),
    "local_judge": (_replies(VerdictTask), LocalJudge),
    "python": (_replies(VerdictTask), PythonScorer),
}
"""What a `behaviour.toml` may name as a scorer: how a set becomes a task, and what its other keys say."""


def scorer_settings(found: BehaviourFolder, name: str) -> Any:
    """The scorer's own keys as what they say.

    Raises:
        DataError: an unknown scorer, or a key that is not one of its.
    """
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
        key = ".".join(["", *map(str, first["loc"])])
        reason = first["msg"].removeprefix("Value error, ").rstrip(".")
        raise DataError(f"{where}{key}: {reason}. See docs/behaviours.md.") from error


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
