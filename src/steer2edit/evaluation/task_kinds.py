"""The kinds of task: what each measures, which data it reads, and which set it uses without any."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar, cast

from steer2edit.errors import InvalidValueError
from steer2edit.evaluation import formats
from steer2edit.evaluation.behaviours import BEHAVIOURS, behaviour
from steer2edit.evaluation.questions import ChoiceQuestion, MathProblem, TruthQuestion
from steer2edit.evaluation.scorers import PhraseScorer, Scorer
from steer2edit.evaluation.sources import built_in_table
from steer2edit.evaluation.tasks import (
    ChoiceTask,
    DegenerationTask,
    DriftTask,
    LengthTask,
    MathTask,
    NamedTask,
    RefusalTask,
    TruthChoiceTask,
    TruthTask,
)
from steer2edit.models import Prompt, Sampling
from steer2edit.steering import borderline_prompts, safety_prompts
from steer2edit.steering.rows import PROMPT_COLUMNS, Split, Table

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

    @property
    def safety(self) -> tuple[list[str], list[str]]:
        """(harmful, benign) requests of the safety preset to choose from; more than the usual ones up to the limit."""
        return safety_prompts(self.split, self.limit)

    def some(self, items: Sequence[_T]) -> list[_T]:
        """The items to use."""
        chosen = list(items)
        if self.shuffle is not None:
            random.Random(self.shuffle).shuffle(chosen)
        return chosen[: self.limit]

    def sampling(self, default: int) -> Sampling:
        """Greedy replies of at most `max_new_tokens`."""
        return Sampling(max_new_tokens=self.max_new_tokens or default)


@dataclass(frozen=True)
class TaskKind:
    """A task that can be asked for by name.

    Args:
        measures: in a few words.
        columns: what its data must have; empty if it takes no data.
        built_in: the set it uses without data.
        build: (data or `None`, settings) → tasks.
    """

    measures: str
    columns: str
    built_in: str
    build: Callable[[Table | None, TaskSettings], list[NamedTask]]
    columns_without_header: tuple[str, ...] = ()


def _built_in(name: str, settings: TaskSettings) -> Table:
    return built_in_table(name).split(settings.split)


def _refusal(table: Table | None, settings: TaskSettings) -> list[NamedTask]:
    if table is None:
        return [_refused("harmful", settings.safety[0], settings)]
    return [_refused(table.name, formats.requests(table), settings)]


def _over_refusal(table: Table | None, settings: TaskSettings) -> list[NamedTask]:
    if table is not None:
        return [_refused(table.name, formats.requests(table), settings)]
    return [_refused("benign", settings.safety[1], settings), *_xstest(None, settings)]


def _xstest(table: Table | None, settings: TaskSettings) -> list[NamedTask]:
    if table is None:
        return [_refused("borderline", borderline_prompts(settings.split, settings.limit), settings)]
    safe, unsafe = formats.xstest(table)
    sets = {"xstest_safe": safe, "xstest_unsafe": unsafe}
    return [_refused(name, prompts, settings) for name, prompts in sets.items() if prompts]


def _refused(name: str, prompts: Sequence[Prompt], settings: TaskSettings) -> RefusalTask:
    return RefusalTask(name, settings.some(prompts), settings.sampling(24), settings.scorer)


def _truthfulqa(table: Table | None, settings: TaskSettings) -> list[NamedTask]:
    name, questions = _truthful(table, settings)
    return [TruthTask([(q.question, q.best, q.false_to_best[0]) for q in questions], name)]


def _truthfulqa_mc(table: Table | None, settings: TaskSettings) -> list[NamedTask]:
    name, questions = _truthful(table, settings)
    return [TruthChoiceTask(questions, name)]


def _truthful(table: Table | None, settings: TaskSettings) -> tuple[str, list[TruthQuestion]]:
    if table is not None:
        return "truthfulqa", settings.some(formats.truthful_questions(table))
    (preset,) = (task for task in behaviour("truthfulness", settings.split).tasks if isinstance(task, TruthTask))
    questions = [TruthQuestion(str(q), true, (false,), (true,), (false,)) for q, true, false in preset.questions]
    return "truth", settings.some(questions)


def _maths(
    name: str, built_in: str, read: Callable[[Table], list[MathProblem]]
) -> Callable[[Table | None, TaskSettings], list[NamedTask]]:
    def build(table: Table | None, settings: TaskSettings) -> list[NamedTask]:
        problems = settings.some(read(table or _built_in(built_in, settings)))
        return [MathTask(built_in if table is None else name, problems, settings.sampling(512))]

    return build


def _choice(
    name: str, built_in: str, read: Callable[[Table], list[ChoiceQuestion]], style: Literal["text", "letter"] = "text"
) -> Callable[[Table | None, TaskSettings], list[NamedTask]]:
    def build(table: Table | None, settings: TaskSettings) -> list[NamedTask]:
        questions = settings.some(read(table or _built_in(built_in, settings)))
        own = built_in if table is None else name
        return [ChoiceTask(f"{own}_letters" if style == "letter" else own, questions, style)]

    return build


def _length(table: Table | None, settings: TaskSettings) -> list[NamedTask]:
    if table is None:
        prompts = behaviour("conciseness", settings.split).prompts["requests"]
        return [LengthTask(settings.some(prompts), settings.sampling(96))]
    return [LengthTask(settings.some(formats.requests(table)), settings.sampling(96), table.name)]


def _drift(table: Table | None, settings: TaskSettings) -> list[NamedTask]:
    if table is None:
        return [DriftTask(settings.some(settings.safety[1]), settings.sampling(24))]
    return [DriftTask(settings.some(formats.requests(table)), settings.sampling(24), table.name)]


def _degeneration(table: Table | None, settings: TaskSettings) -> list[NamedTask]:
    if table is None:
        return [DegenerationTask(settings.some(settings.safety[1]), settings.sampling(96))]
    return [DegenerationTask(settings.some(formats.requests(table)), settings.sampling(96), table.name)]


def _preset(name: str) -> TaskKind:
    def build(table: Table | None, settings: TaskSettings) -> list[NamedTask]:
        if settings.shuffle is not None:
            raise InvalidValueError(
                f"the behaviour {name!r} keeps its own order: leave the shuffle out, or the behaviour."
            )
        found = behaviour(
            name,
            settings.split,
            limit=settings.limit,
            max_new_tokens=settings.max_new_tokens,
            scorer=settings.scorer,
        )
        return [cast(NamedTask, task) for task in found.tasks]

    return TaskKind(f"the behaviour {name}, with what it costs", "", f"the preset {name}", build)


_REQUESTS = " or ".join(PROMPT_COLUMNS)
_TRUTH = "question, best_answer, correct_answers, incorrect_answers; or question, mc1_targets, mc2_targets"
TASK_KINDS: dict[str, TaskKind] = {
    "refusal": TaskKind("refusal of harmful requests", _REQUESTS, "harmful requests of the safety preset", _refusal),
    "over-refusal": TaskKind(
        "refusal of requests that should be met",
        _REQUESTS,
        "benign requests of the safety preset, and harmless ones that sound harmful",
        _over_refusal,
    ),
    "xstest": TaskKind(
        "refusal of safe and of unsafe prompts", "prompt, type", "harmless requests that sound harmful", _xstest
    ),
    "truthfulqa": TaskKind(
        "preference of the true answer over a false one", _TRUTH, "questions of the truthfulness preset", _truthfulqa
    ),
    "truthfulqa-mc": TaskKind(
        "MC1 and MC2 by log-likelihood", _TRUTH, "questions of the truthfulness preset", _truthfulqa_mc
    ),
    "gsm8k": TaskKind(
        "exact match of word problems",
        "question, answer",
        "word problems of arithmetic",
        _maths("gsm8k", "arithmetic", formats.gsm8k_problems),
    ),
    "math": TaskKind(
        "exact match of mathematics",
        "problem, solution",
        "school mathematics",
        _maths("math", "school_maths", formats.math_problems),
    ),
    "commonsenseqa": TaskKind(
        "multiple choice by log-likelihood",
        "question, choices, answerKey",
        "questions of common sense",
        _choice("commonsenseqa", "common_sense", formats.commonsense_questions),
    ),
    "mmlu": TaskKind(
        "multiple choice by log-likelihood of the answers",
        "question, choices, answer; or question, A, B, C, D, answer",
        "questions of general knowledge",
        _choice("mmlu", "general_knowledge", formats.mmlu_questions),
        formats.MMLU_COLUMNS,
    ),
    "mmlu-letters": TaskKind(
        "multiple choice by log-likelihood of the letters",
        "question, choices, answer; or question, A, B, C, D, answer",
        "questions of general knowledge",
        _choice("mmlu", "general_knowledge", formats.mmlu_questions, "letter"),
        formats.MMLU_COLUMNS,
    ),
    "length": TaskKind("length of replies, and how many end", _REQUESTS, "requests of the conciseness preset", _length),
    "drift": TaskKind(
        "distance to the base on its own answers", _REQUESTS, "benign requests of the safety preset", _drift
    ),
    "degeneration": TaskKind(
        "replies that repeat themselves, are empty or do not end",
        _REQUESTS,
        "benign requests of the safety preset",
        _degeneration,
    ),
    **{name: _preset(name) for name in BEHAVIOURS},
}
