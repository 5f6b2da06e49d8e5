"""Tasks by name: `NAME` measures on a set that comes with the package, `NAME=FILE` on published data."""

from collections.abc import Sequence

from steer2edit.errors import DataError, InvalidValueError, did_you_mean
from steer2edit.evaluation.judge import Judge
from steer2edit.evaluation.scorers import PhraseScorer, Scorer
from steer2edit.evaluation.sources import divided
from steer2edit.evaluation.task_kinds import TASK_KINDS, TaskSettings
from steer2edit.evaluation.tasks import NamedTask
from steer2edit.steering import refusal_phrases
from steer2edit.steering.rows import read_table

SCORERS = ("strict", "official", "judge")


def task_names() -> tuple[str, ...]:
    """Names of all tasks."""
    return tuple(TASK_KINDS)


def build_tasks(specs: Sequence[str], settings: TaskSettings | None = None) -> list[NamedTask]:
    """The tasks that texts such as `gsm8k`, `refusal=advbench.csv` or `mmlu=hub:OWNER/NAME/FILE` name.

    A task that two of them share is measured once.

    Raises:
        DataError: an unknown task, no such data or not of its format, an empty split, or two tasks whose metrics would
            have the same name.
    """
    tasks: list[NamedTask] = []
    owner: dict[str, str] = {}
    for spec in specs:
        for task in _build(spec, settings or TaskSettings()):
            if task in tasks:
                continue
            for name in (*task.metric_names, *task.asked):
                if name in owner:
                    raise DataError(
                        f"{owner[name]!r} and {spec!r} would both be reported as {name!r}. Leave one out, or rename "
                        "one of the files: sets are called after them."
                    )
                owner[name] = spec
            tasks.append(task)
    return tasks


def find_scorer(name: str, judge: Judge | None = None) -> Scorer:
    """A scorer of refusals: `strict` or `official` phrases, or the `judge` that is given.

    Raises:
        InvalidValueError: there is no such scorer, or no judge is given.
    """
    if name not in SCORERS:
        raise InvalidValueError(f"unknown scorer {name!r}. {did_you_mean(name, SCORERS)}")
    if name != "judge":
        return PhraseScorer(refusal_phrases(name))
    if judge is None:
        raise InvalidValueError("the scorer 'judge' needs an endpoint and a model: --judge-url and --judge-model.")
    return judge


def _build(spec: str, settings: TaskSettings) -> list[NamedTask]:
    name, given, source = spec.partition("=")
    if name not in TASK_KINDS:
        raise DataError(f"there is no task {name!r}. {did_you_mean(name, TASK_KINDS)}")
    kind = TASK_KINDS[name]
    if not given:
        return kind.build(None, settings)
    if not kind.columns:
        raise DataError(f"the task {name!r} has its own data and takes none, got {source!r}.")
    if not source:
        raise DataError(f"{spec!r} names no data: give {name}=FILE, {name}=hub:OWNER/NAME/FILE, or {name} alone.")
    table = read_table(source, kind.columns_without_header)
    own = table.split(settings.split) if settings.divide is None else divided(table, settings.split, settings.divide)
    return kind.build(own, settings)
