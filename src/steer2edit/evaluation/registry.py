"""Tasks by name: `NAME` measures on a set that comes with the package, `NAME=FILE` on published data."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from steer2edit.errors import DataError, InvalidValueError, did_you_mean
from steer2edit.evaluation import formats
from steer2edit.evaluation.behaviours import BEHAVIOURS, behaviour
from steer2edit.evaluation.formats import MMLU_COLUMNS, ChoiceQuestion, MathProblem, TruthQuestion, divided
from steer2edit.evaluation.scorers import PhraseScorer, Scorer
from steer2edit.evaluation.tasks import (
    ChoiceTask,
    DegenerationTask,
    DriftTask,
    LengthTask,
    MathTask,
    PreferenceTask,
    RefusalTask,
    Task,
    ThinkingTask,
    TruthChoiceTask,
)
from steer2edit.models import Prompt, Sampling
from steer2edit.steering import borderline_prompts, find_behaviour, safety_prompts
from steer2edit.steering.data_files import SUFFIXES
from steer2edit.steering.rows import PROMPT_COLUMNS, Split, Table, read_table

_T = TypeVar("_T")


@dataclass(frozen=True)
class TaskSettings:
    """What all tasks of an evaluation share.

    Args:
        split: validation for choosing, held_out for final figures; data without a column `split` is used whole.
        limit: use at most this many items of every set.
        max_new_tokens: longest reply; each task has a default of its own.
        scorer: tells refusals.
        divide: seed by which data without a column `split` is divided into validation and held-out parts; `None`
            uses it whole.
        shuffle: seed of a random order of the items; `None` keeps that of the data.

    Raises:
        InvalidValueError: the limit is below 1.
    """

    split: Split = "validation"
    limit: int | None = None
    max_new_tokens: int | None = None
    scorer: Scorer = field(default_factory=PhraseScorer)
    shuffle: int | None = None
    divide: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InvalidValueError(f"limit must be >= 1, got {self.limit}.")

    def chosen(self, items: Sequence[_T]) -> list[_T]:
        """The items to use."""
        found = list(items)
        if self.shuffle is not None:
            random.Random(self.shuffle).shuffle(found)
        return found[: self.limit]

    def sampling(self, default: int) -> Sampling:
        """Greedy replies of at most `max_new_tokens`."""
        return Sampling(max_new_tokens=self.max_new_tokens or default)


Build = Callable[[Table | None, TaskSettings], list[Task]]
"""(data, or `None` for the built-in set; settings) → tasks."""


@dataclass(frozen=True)
class TaskKind:
    """A task that can be asked for by name.

    Args:
        measures: in a few words.
        columns: what its data must have; empty if it takes no data.
        built_in: the set it uses without data.
        build: makes the tasks.
        columns_without_header: of a CSV file that has none.
    """

    measures: str
    columns: str
    built_in: str
    build: Build
    columns_without_header: tuple[str, ...] = ()


def _on(
    make: Callable[[str, Any, TaskSettings], Task],
    own: str,
    own_items: Callable[[TaskSettings], Sequence[Any]],
    read: Callable[[Table], Sequence[Any]] = formats.requests,
    published: str | None = None,
) -> Build:
    """A task on items: of data, called as published or after the file; else of the built-in set, called `own`."""

    def build(table: Table | None, settings: TaskSettings) -> list[Task]:
        name, items = (own, own_items(settings)) if table is None else (published or table.name, read(table))
        return [make(name, settings.chosen(items), settings)]

    return build


def _built_in(name: str, read: Callable[[Table], Sequence[Any]], make: Callable[..., Task], published: str) -> Build:
    """A task on a set that comes with the package in the published format."""
    return _on(make, name, lambda s: read(formats.built_in_table(name).split(s.split)), read, published)


def _harmful(settings: TaskSettings) -> Sequence[Prompt]:
    return safety_prompts(settings.split, settings.limit)[0]


def _benign(settings: TaskSettings) -> Sequence[Prompt]:
    return safety_prompts(settings.split, settings.limit)[1]


def _refused(name: str, items: Sequence[Prompt], settings: TaskSettings) -> Task:
    return RefusalTask(name, items, settings.sampling(24), settings.scorer)


def _solved(name: str, items: Sequence[MathProblem], settings: TaskSettings) -> Task:
    return MathTask(name, items, settings.sampling(512))


def _chosen(name: str, items: Sequence[ChoiceQuestion], _: TaskSettings) -> Task:
    return ChoiceTask(name, items)


def _lettered(name: str, items: Sequence[ChoiceQuestion], _: TaskSettings) -> Task:
    return ChoiceTask(f"{name}_letters", items, "letter")


def _questions(settings: TaskSettings) -> list[TruthQuestion]:
    rows = behaviour("truthfulness", settings.split).tasks[0].items
    return [TruthQuestion(str(q), true, (false,), (true,), (false,)) for q, true, false in rows]


def _preferred(name: str, items: Sequence[TruthQuestion], _: TaskSettings) -> Task:
    asked_as = "questions" if name == "truth" else ""
    return PreferenceTask([(q.question, q.best, q.false_to_best[0]) for q in items], name, asked_as=asked_as)


def _over_refusal(table: Table | None, settings: TaskSettings) -> list[Task]:
    if table is None:
        return _behaviour_tasks("over-refusal", settings)
    return _on(_refused, "", _benign)(table, settings)


def _xstest(table: Table | None, settings: TaskSettings) -> list[Task]:
    if table is None:
        sets = {"borderline": borderline_prompts(settings.split, settings.limit)}
    else:
        sets = dict(zip(("xstest_safe", "xstest_unsafe"), formats.xstest(table), strict=True))
    return [_refused(name, settings.chosen(prompts), settings) for name, prompts in sets.items() if prompts]


def _behaviour_tasks(source: str, settings: TaskSettings) -> list[Task]:
    if settings.shuffle is not None:
        raise InvalidValueError(
            f"the behaviour {source!r} keeps its own order: leave the shuffle out, or the behaviour."
        )
    shared = {key: getattr(settings, key) for key in ("limit", "max_new_tokens", "scorer")}
    return list(behaviour(source, settings.split, **shared, seed=settings.divide or 0).tasks)


def _behaviour_kind(name: str) -> TaskKind:
    return TaskKind(
        f"the behaviour {name}, with what it costs: {find_behaviour(name).description}", "", "its own items",
        lambda _, settings: _behaviour_tasks(name, settings),
    )  # fmt: skip


_REQUESTS = " or ".join(PROMPT_COLUMNS)
_TRUTH = "question, best_answer, correct_answers, incorrect_answers; or question, mc1_targets, mc2_targets"
_CHOICES = "question, choices, answer; or question, A, B, C, D, answer"
_KNOWLEDGE = "questions of general knowledge"
TASK_KINDS: dict[str, TaskKind] = {
    "refusal": TaskKind(
        "refusal of harmful requests", _REQUESTS, "harmful requests of safety", _on(_refused, "harmful", _harmful)
    ),
    "over-refusal": TaskKind(
        "refusal of requests that should be met; without data, the behaviour over-refusal with what it costs",
        _REQUESTS,
        "harmless requests that sound harmful, and benign and harmful ones",
        _over_refusal,
    ),
    "xstest": TaskKind(
        "refusal of safe and of unsafe prompts", "prompt, type", "harmless requests that sound harmful", _xstest
    ),
    "truthfulqa": TaskKind(
        "preference of the true answer over a false one",
        _TRUTH,
        "questions of truthfulness",
        _on(_preferred, "truth", _questions, formats.truthful_questions, "truthfulqa"),
    ),
    "truthfulqa-mc": TaskKind(
        "MC1 and MC2 by log-likelihood",
        _TRUTH,
        "questions of truthfulness",
        _on(lambda n, i, _: TruthChoiceTask(i, n), "truth", _questions, formats.truthful_questions, "truthfulqa"),
    ),
    "gsm8k": TaskKind(
        "exact match of word problems",
        "question, answer",
        "word problems of arithmetic",
        _built_in("arithmetic", formats.gsm8k_problems, _solved, "gsm8k"),
    ),
    "math": TaskKind(
        "exact match of mathematics",
        "problem, solution",
        "school mathematics",
        _built_in("school_maths", formats.math_problems, _solved, "math"),
    ),
    "commonsenseqa": TaskKind(
        "multiple choice by log-likelihood",
        "question, choices, answerKey",
        "questions of common sense",
        _built_in("common_sense", formats.commonsense_questions, _chosen, "commonsenseqa"),
    ),
    "mmlu": TaskKind(
        "multiple choice by log-likelihood of the answers",
        _CHOICES,
        _KNOWLEDGE,
        _built_in("general_knowledge", formats.mmlu_questions, _chosen, "mmlu"),
        MMLU_COLUMNS,
    ),
    "mmlu-letters": TaskKind(
        "multiple choice by log-likelihood of the letters",
        _CHOICES,
        _KNOWLEDGE,
        _built_in("general_knowledge", formats.mmlu_questions, _lettered, "mmlu"),
        MMLU_COLUMNS,
    ),
    "length": TaskKind(
        "length of replies, and how many end",
        _REQUESTS,
        "requests of conciseness",
        _on(
            lambda name, items, s: LengthTask(items, s.sampling(96), name),
            "",
            lambda s: behaviour("conciseness", s.split).prompts["requests"],
        ),
    ),
    "thinking": TaskKind(
        "length of thoughts and of answers, apart",
        _REQUESTS,
        "requests of conciseness",
        _on(
            lambda name, items, s: ThinkingTask(items, s.sampling(256), name),
            "",
            lambda s: behaviour("conciseness", s.split).prompts["requests"],
        ),
    ),
    "drift": TaskKind(
        "distance to the base on its own answers",
        _REQUESTS,
        "benign requests of safety",
        _on(lambda name, items, s: DriftTask(items, s.sampling(24), name), "", _benign),
    ),
    "degeneration": TaskKind(
        "replies that repeat themselves, are empty or do not end",
        _REQUESTS,
        "benign requests of safety",
        _on(lambda name, items, s: DegenerationTask(items, s.sampling(96), name), "", _benign),
    ),
}
TASK_KINDS.update({name: _behaviour_kind(name) for name in BEHAVIOURS if name not in TASK_KINDS})


def build_tasks(specs: Sequence[str], settings: TaskSettings | None = None) -> list[Task]:
    """The tasks that texts such as `gsm8k`, `refusal=advbench.csv` or `mmlu=hub:OWNER/NAME/FILE` name.

    A task that two of them share is measured once.

    Raises:
        DataError: an unknown task, no such data or not of its format, an empty split, or two tasks whose metrics would
            have the same name.
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
