"""What was measured: a table with intervals, differences to the base, and the trade-off as a plot."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from steer2edit.api import showing
from steer2edit.api.edit import CombinedEdit, Edit
from steer2edit.api.keywords import public
from steer2edit.api.showing import LESS_BASE, condition_rows, difference_rows
from steer2edit.core import Combined, Steering, SteeringVectors, WeightEdit
from steer2edit.engines import RememberingEngine, TransformersEngine
from steer2edit.errors import InvalidValueError
from steer2edit.estimates import Condition
from steer2edit.evaluation import evaluate as run_evaluation
from steer2edit.evaluation.behaviours import BEHAVIOURS, attribute_of
from steer2edit.evaluation.metrics import COST
from steer2edit.evaluation.registry import TASK_KINDS, build_tasks
from steer2edit.evaluation.scorers import find_scorer
from steer2edit.evaluation.statistics import compare
from steer2edit.evaluation.task import BASE_ARM, Arm, TaskSettings, edit_arm
from steer2edit.models import LanguageModel
from steer2edit.steering.examples import PAIR, examples_in_memory
from steer2edit.tables import frame, text_table

if TYPE_CHECKING:
    import pandas

_WIDTH = 80
Compared = Arm | WeightEdit | CombinedEdit
"""`vectors @ 0.2`, an edit, `edit @ 0.5`."""


@dataclass(frozen=True, repr=False)
class Results:
    """What `evaluate`, `search` or `refit` found; the base comes first.

    Args:
        conditions: each with its estimates, replies and values by item.
        title: what was measured.
        prompts: what was asked by set, in the order of the replies.
        goal: of a behaviour, the metric that is to move, and +1 if upwards or −1.
        edit: that a search recommends, or that was made anew.
        summary: what a search found, in sentences.
    """

    conditions: tuple[Condition, ...]
    title: str
    prompts: Mapping[str, Sequence[Any]]
    goal: tuple[str, int] | None = None
    edit: Edit | None = None
    summary: tuple[str, ...] = ()

    @property
    def differences(self) -> list[dict[str, Any]]:
        """Of every condition to the base, on the same items: `label`, `to` and `differences` by metric."""
        return compare(self.conditions)

    def to_pandas(self) -> "pandas.DataFrame":
        """A row for each condition and metric: estimate, 95 % interval, n, how many were not scored; needs pandas."""
        return frame(
            [
                {"condition": condition.label, "kind": condition.kind, "metric": name, **estimate.to_json()}
                for condition in self.conditions
                for name, estimate in condition.metrics.items()
            ]
        )

    def __repr__(self) -> str:
        lines = text_table(*condition_rows(self.conditions), _WIDTH)
        if any(one["differences"] for one in self.differences):
            lines += ["", LESS_BASE, *text_table(*difference_rows(self.differences), _WIDTH)]
        said = [*self.summary, ""] if self.summary else []
        return "\n".join([*said, "95 % intervals", *lines])

    def _repr_html_(self) -> str:
        tables = [showing.table(*condition_rows(self.conditions), "95 % intervals in brackets")]
        if any(one["differences"] for one in self.differences):
            tables.append(showing.table(*difference_rows(self.differences), LESS_BASE))
        if self.goal is not None:  # the plot of a behaviour's attribute against its cost
            from steer2edit.report import themes
            from steer2edit.report.tradeoff import Marks, Plane, plane_figure

            plane = Plane(COST, *self.goal)
            colours = {"base": themes.BASE, "steering": themes.STEERING, "edit": themes.EDIT}
            shown = plane.drawable(self.conditions)  # those of which both were measured
            marks = [Marks(c.label, [c], {"color": colours[c.kind], "size": 11}, bars=True) for c in shown]
            tables += [showing.plot(plane_figure(plane, marks))] if marks else []
        said = "".join(f"<p>{showing.escaped(line)}</p>" for line in self.summary)
        return said + showing.page(f"Measured: {self.title}", *tables)


@public
def evaluate(
    model: LanguageModel,
    compared: Compared | Sequence[Compared] | Mapping[str, Compared],
    task: str | Path | Sequence[Any],
    *,
    split: Literal["validation", "held_out"] = "validation",
    limit: int | None = None,
    max_new_tokens: int | None = None,
    scorer: str = "strict",
) -> Results:
    """Measure a model, and edits and steering of it, side by side on the same items.

    Args:
        model: the base model.
        compared: `[vectors @ 0.2, edit, edit @ 0.5]`; as a mapping, by the name that each is to have.
        task: a behaviour, its folder, or a contrast file; pairs as `extract` takes them; or one or several tasks: NAME,
            NAME=FILE or NAME=hub:OWNER/NAME/FILE, as `steer2edit evaluate --list` shows them.
        split: validation to choose on, held_out for final figures.
        limit: at most this many items of every set.
        max_new_tokens: longest reply; each task has a default of its own.
        scorer: what tells refusals: strict or official.

    Raises:
        DataError: there is no such task or file.
        InvalidValueError: something is neither an edit nor vectors at a strength.
        MismatchError: an artifact is for another model.
    """
    settings = TaskSettings(split, limit, max_new_tokens, find_scorer(scorer, None))
    with _named(task) as specs:
        tasks, (first, *others) = build_tasks(specs, settings), specs
        is_task = others or "=" in first or (first in TASK_KINDS and first not in BEHAVIOURS)
        goal = None if is_task else attribute_of(first)
    if isinstance(compared, Mapping):
        arms = [replace(_arm(model, one), label=name) for name, one in compared.items()]
    else:
        arms = []
        for arm in (_arm(model, one) for one in (compared if isinstance(compared, list | tuple) else [compared])):
            same = sum(other.label.split(" #")[0] == arm.label for other in arms)
            arms.append(replace(arm, label=f"{arm.label} #{same + 1}") if same else arm)
    arms = [BASE_ARM, *arms]
    conditions = run_evaluation(RememberingEngine(TransformersEngine(model)), tasks, arms)
    prompts = {name: asked for own in tasks for name, asked in own.asked.items()}
    return Results(tuple(conditions), ", ".join(Path(spec).name for spec in specs), prompts, goal)


@contextmanager
def _named(task: str | Path | Sequence[Any]) -> Iterator[list[str]]:
    """The tasks by name; pairs in memory as a contrast file, which is gone afterwards."""
    given = [task] if isinstance(task, str | Path) else list(task)
    if given and all(isinstance(one, str | Path) for one in given):
        yield list(map(str, given))
        return
    examples_in_memory(given)  # names the pair that is at fault
    rows = [dict(zip(PAIR, one, strict=True)) if isinstance(one, tuple | list) else one for one in given]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "pairs.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        yield [str(path)]


def _arm(model: LanguageModel, one: Any) -> Arm:
    if isinstance(one, SteeringVectors):
        raise InvalidValueError("vectors are compared at a strength: vectors @ 0.2.")
    if isinstance(one, WeightEdit):
        one = edit_arm(one, "edit")
    elif isinstance(one, CombinedEdit):
        one = one @ 1.0
    if not isinstance(one, Arm):
        raise InvalidValueError(f"what is compared is an edit, edit @ 0.5, or vectors @ 0.2; got {one!r:.100}.")
    given = one.intervention
    for part in given.parts if isinstance(given, Combined) else (given,):
        if part is not None:
            model.require_fit(part.vectors if isinstance(part, Steering) else part.edit)
    return one
