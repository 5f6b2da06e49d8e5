"""Tasks by name: `NAME` measures on a set that comes with the package, `NAME=FILE` on published data."""

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from steer2edit.errors import DataError, InvalidValueError, did_you_mean
from steer2edit.evaluation import formats
from steer2edit.evaluation.behaviours import BEHAVIOURS, behaviour
from steer2edit.evaluation.formats import TruthQuestion, divided
from steer2edit.evaluation.likelihood_tasks import ChoiceTask, DriftTask, PreferenceTask, TruthChoiceTask
from steer2edit.evaluation.reply_tasks import DegenerationTask, LengthTask, MathTask, RefusalTask, ThinkingTask
from steer2edit.evaluation.task import Task, TaskSettings
from steer2edit.models import Prompt
from steer2edit.steering import borderline_prompts, find_behaviour, safety_prompts
from steer2edit.steering.data_files import SUFFIXES
from steer2edit.steering.rows import PROMPT_COLUMNS, Table, read_table

Build = Callable[[Table | None, TaskSettings], list[Task]]
"""(data, or `None` for the built-in set; settings) → tasks."""


@dataclass(frozen=True)
class TaskKind:
    """A task that can be asked for by name."""

    measures: str  # in a few words
    columns: str  # what its data must have; empty if it takes no data
    built_in: str  # the set it uses without data
    build: Build  # makes the tasks
    columns_without_header: Sequence[str] = ()  # of a CSV file that has none


def _on(
    kind: Any,
    own: str,
    own_items: Callable[[TaskSettings], Sequence[Any]],
    read: Callable[[Table], Sequence[Any]] = formats.requests,
    published: str | None = None,
    **of_kind: Any,
) -> Build:
    """A task on items: of data, called as published or after the file; else of the built-in set, called `own`."""

    def build(table: Table | None, settings: TaskSettings) -> list[Task]:
        name, items = (own, own_items(settings)) if table is None else (published or table.name, read(table))
        return [settings.make(kind, name, settings.chosen(items), **of_kind)]

    return build


def _built_in(
    kind: Any, name: str, read: Callable[[Table], Sequence[Any]], published: str, suffix: str = "", **of_kind: Any
) -> Build:
    """A task on a set that comes with the package in the published format."""

    def items(settings: TaskSettings) -> Sequence[Any]:
        return read(formats.built_in_table(name).split(settings.split))

    return _on(kind, name + suffix, items, read, published + suffix, **of_kind)


def _benign(settings: TaskSettings) -> Sequence[Prompt]:
    return safety_prompts(settings.split, settings.limit)[1]


def _concise(settings: TaskSettings) -> Sequence[Prompt]:
    return behaviour("conciseness", settings.split).prompts["requests"]


def _questions(settings: TaskSettings) -> list[TruthQuestion]:
    rows = behaviour("truthfulness", settings.split).tasks[0].items
    return [TruthQuestion(str(q), true, (false,), (true,), (false,)) for q, true, false in rows]


def _truthfulqa(table: Table | None, settings: TaskSettings) -> list[Task]:
    if table is None:
        task = behaviour("truthfulness", settings.split).tasks[0]
        return [replace(task, items=settings.chosen(task.items))]
    rows = [(q.question, q.best, q.false_to_best[0]) for q in formats.truthful_questions(table)]
    return [PreferenceTask("truthfulqa", settings.chosen(rows))]


def _over_refusal(table: Table | None, settings: TaskSettings) -> list[Task]:
    if table is None:
        return _behaviour_tasks("over-refusal", None, settings)
    return _on(RefusalTask, "", _benign)(table, settings)


def _xstest(table: Table | None, settings: TaskSettings) -> list[Task]:
    if table is None:
        sets = {"borderline": borderline_prompts(settings.split, settings.limit)}
    else:
        sets = dict(zip(("xstest_safe", "xstest_unsafe"), formats.xstest(table), strict=True))
    return [settings.make(RefusalTask, name, settings.chosen(prompts)) for name, prompts in sets.items() if prompts]


def _behaviour_tasks(source: str, _: Table | None, settings: TaskSettings) -> list[Task]:
    if settings.shuffle is not None:
        raise InvalidValueError(
            f"the behaviour {source!r} keeps its own order: leave the shuffle out, or the behaviour."
        )
    shared = {key: getattr(settings, key) for key in ("limit", "max_new_tokens", "scorer")}
    return list(behaviour(source, settings.split, **shared, seed=settings.divide or 0).tasks)


_BUILD: dict[str, Build] = {
    "refusal": _on(RefusalTask, "harmful", lambda s: safety_prompts(s.split, s.limit)[0]),
    "over-refusal": _over_refusal,
    "xstest": _xstest,
    "truthfulqa": _truthfulqa,
    "truthfulqa-mc": _on(TruthChoiceTask, "truth", _questions, formats.truthful_questions, "truthfulqa"),
    "gsm8k": _built_in(MathTask, "arithmetic", formats.gsm8k_problems, "gsm8k"),
    "math": _built_in(MathTask, "school_maths", formats.math_problems, "math"),
    "commonsenseqa": _built_in(ChoiceTask, "common_sense", formats.commonsense_questions, "commonsenseqa"),
    "mmlu": _built_in(ChoiceTask, "general_knowledge", formats.mmlu_questions, "mmlu"),
    "mmlu-letters": _built_in(
        ChoiceTask, "general_knowledge", formats.mmlu_questions, "mmlu", "_letters", style="letter"
    ),
    "length": _on(LengthTask, "", _concise),
    "thinking": _on(ThinkingTask, "", _concise),
    "drift": _on(DriftTask, "", _benign),
    "degeneration": _on(DegenerationTask, "", _benign),
}
_TEXT = resources.files("steer2edit.evaluation").joinpath("tasks.toml").read_text(encoding="utf-8")
TASK_KINDS: dict[str, TaskKind] = {
    name: TaskKind(**said, build=_BUILD[name])
    for name, said in tomllib.loads(_TEXT.replace("{requests}", " or ".join(PROMPT_COLUMNS))).items()
}
for _name in BEHAVIOURS:
    if _name not in TASK_KINDS:
        _about = f"the behaviour {_name}, with what it costs: {find_behaviour(_name).description}"
        TASK_KINDS[_name] = TaskKind(_about, "", "its own items", partial(_behaviour_tasks, _name))


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
        return _behaviour_tasks(spec, None, settings)
    if name not in TASK_KINDS:
        raise DataError(f"there is no task {name!r}. {did_you_mean(name, TASK_KINDS)} Or give a behaviour's folder.")
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
