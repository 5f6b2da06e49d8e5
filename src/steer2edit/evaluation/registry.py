"""Tasks by name: `NAME` measures on a set that comes with the package, `NAME=FILE` on published data."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from steer2edit.errors import DataError, InvalidValueError, did_you_mean
from steer2edit.evaluation import formats, likelihood_tasks, reply_tasks
from steer2edit.evaluation.behaviours import BEHAVIOURS, behaviour, set_rows
from steer2edit.evaluation.formats import divided
from steer2edit.evaluation.likelihood_tasks import PreferenceTask
from steer2edit.evaluation.reply_tasks import RefusalTask
from steer2edit.evaluation.task import Task, TaskSettings
from steer2edit.steering.behaviour_folder import find_behaviour
from steer2edit.steering.data_files import SUFFIXES
from steer2edit.steering.presets import built_in_requests
from steer2edit.steering.rows import PROMPT_COLUMNS, Table, read_table


@dataclass(frozen=True)
class TaskKind:
    """A task that can be asked for by name: a row of `tasks.toml`, or a behaviour."""

    measures: str  # in a few words
    columns: str  # what its data must have; empty if it takes no data
    built_in: str  # the set it uses without data
    columns_without_header: Sequence[str] = ()  # of a CSV file that has none
    task: str = ""  # the class of the task, if all its items make one
    read: str = "requests"  # the function of `formats` that makes items of data
    own: str = ""  # the items without data: a set of `sets/`, or `BEHAVIOUR:SET`
    name: str = ""  # what those are called
    published: str = ""  # what items of data are called, if not after the file
    style: str = ""  # of a ChoiceTask

    def build(self, table: Table | None, settings: TaskSettings) -> Task:
        """The task on items of data, or of the built-in set."""
        name = self.name if table is None else self.published or table.name
        owner, _, own = self.own.rpartition(":")
        if table is None and owner:
            table = set_rows(find_behaviour(owner), own, settings)
        elif table is None:
            table = formats.built_in_table(own).split(settings.split)
        items = settings.chosen(getattr(formats, self.read)(table))
        kind = getattr(reply_tasks, self.task, None) or getattr(likelihood_tasks, self.task)
        return settings.make(kind, name, items, **({"style": self.style} if self.style else {}))


def _truthfulqa(table: Table | None, settings: TaskSettings) -> list[Task]:
    if table is None:
        task = behaviour("truthfulness", settings.split).tasks[0]
        return [replace(task, items=settings.chosen(task.items))]
    rows = [(q.question, q.best, q.false_to_best[0]) for q in formats.truthful_questions(table)]
    return [PreferenceTask("truthfulqa", settings.chosen(rows))]


def _xstest(table: Table | None, settings: TaskSettings) -> list[Task]:
    if table is None:
        sets = {"borderline": built_in_requests("borderline", settings.split, settings.limit)}
    else:
        sets = dict(zip(("xstest_safe", "xstest_unsafe"), formats.xstest(table), strict=True))
    return [settings.make(RefusalTask, name, settings.chosen(prompts)) for name, prompts in sets.items() if prompts]


_SETS = {"truthfulqa": _truthfulqa, "xstest": _xstest}
"""Tasks that are several, or of their own kind."""


def _behaviour_tasks(source: str, settings: TaskSettings) -> list[Task]:
    if settings.shuffle is not None:
        raise InvalidValueError(
            f"the behaviour {source!r} keeps its own order: leave the shuffle out, or the behaviour."
        )
    shared = {key: getattr(settings, key) for key in ("limit", "max_new_tokens", "scorer")}
    return list(behaviour(source, settings.split, **shared, seed=settings.divide or 0).tasks)


_TEXT = resources.files("steer2edit.evaluation").joinpath("tasks.toml").read_text(encoding="utf-8")
_ROWS = tomllib.loads(_TEXT.replace("{requests}", " or ".join(PROMPT_COLUMNS)))
TASK_KINDS = {name: TaskKind(**row) for name, row in _ROWS.items()}
for _name in BEHAVIOURS:
    _about = f"the behaviour {_name}, with what it costs: {find_behaviour(_name).description}"
    TASK_KINDS.setdefault(_name, TaskKind(_about, "", "its own items"))


def build_tasks(specs: Sequence[str], settings: TaskSettings | None = None) -> list[Task]:
    """The tasks that texts such as `gsm8k`, `refusal=advbench.csv` or `mmlu=hub:OWNER/NAME/FILE` name.

    A task that two of them share is measured once; two whose metrics would have the same name are a DataError.
    """
    tasks: list[Task] = []
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


def _build(spec: str, settings: TaskSettings) -> list[Task]:
    name, given, source = spec.partition("=")
    if name and not given and name not in TASK_KINDS and (Path(name).is_dir() or Path(name).suffix in SUFFIXES):
        return _behaviour_tasks(spec, settings)
    if name not in TASK_KINDS:
        raise DataError(f"there is no task {name!r}. {did_you_mean(name, TASK_KINDS)} Or give a behaviour's folder.")
    kind, table = TASK_KINDS[name], None
    if given and not kind.columns:
        raise DataError(f"the task {name!r} has its own data and takes none, got {source!r}.")
    if given and not source:
        raise DataError(f"{spec!r} names no data: give {name}=FILE, {name}=hub:OWNER/NAME/FILE, or {name} alone.")
    if given:
        table = read_table(source, kind.columns_without_header)
        divide = settings.divide
        table = table.split(settings.split) if divide is None else divided(table, settings.split, divide)
    elif name in BEHAVIOURS:
        return _behaviour_tasks(name, settings)
    if name in _SETS:
        return _SETS[name](table, settings)
    return [kind.build(table, settings)]
