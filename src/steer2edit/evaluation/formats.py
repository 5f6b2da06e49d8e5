"""The data of tasks: items, the published formats that they are read from, and the sets that come with the package."""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from importlib import resources
from typing import Any, TypeVar

from steer2edit.errors import DataError, InvalidValueError
from steer2edit.models import Prompt
from steer2edit.steering.rows import Row, Split, Table, read_table

_T = TypeVar("_T")

LETTERS = "ABCDEFGHIJ"
MMLU_COLUMNS = ("question", "A", "B", "C", "D", "answer")
_VALIDATION_SHARE = 0.4


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question with choices, of which the one at index `answer` is right; what is none is a DataError."""

    question: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        if not 2 <= len(self.choices) <= len(LETTERS):
            raise DataError(f"a question needs 2 to {len(LETTERS)} choices, got {len(self.choices)}.")
        _require_texts("the question and its choices", self.question, *self.choices)
        if not 0 <= self.answer < len(self.choices):
            raise DataError(f"the answer's index must be 0 to {len(self.choices) - 1}, got {self.answer}.")
        if all(choice == self.choices[self.answer] for choice in self.choices):
            raise DataError(f"all choices are {self.choices[0]!r}: there is nothing to choose from.")


@dataclass(frozen=True)
class TruthQuestion:
    """A question of TruthfulQA; a DataError without a true or a false answer, or where a text is empty."""

    question: str
    best: str  # the best true answer
    false_to_best: tuple[str, ...]  # false answers that it is compared with (MC1)
    true: tuple[str, ...]  # the true answers (MC2)
    false: tuple[str, ...]  # the false answers (MC2)

    def __post_init__(self) -> None:
        if not self.false_to_best or not self.true or not self.false:
            raise DataError(f"the question {self.question!r} needs at least one true and one false answer.")
        answers = (self.best, *self.false_to_best, *self.true, *self.false)
        _require_texts("the question and its answers", self.question, *answers)


@dataclass(frozen=True)
class MathProblem:
    """A problem with one final answer, a number or LaTeX; `None` if it could not be read: the item is unscored."""

    problem: str
    answer: str | None

    def __post_init__(self) -> None:
        _require_texts("the problem", self.problem)


def _require_texts(what: str, *texts: str) -> None:
    if not all(text.strip() for text in texts):
        raise DataError(f"{what} must not be empty, got {texts}.")


def built_in_table(name: str) -> Table:
    """A set that comes with the package: `sets/{name}.jsonl`."""
    with resources.as_file(resources.files("steer2edit.evaluation").joinpath(f"sets/{name}.jsonl")) as path:
        return read_table(path, name=name)


def divided(table: Table, split: Split, seed: int) -> Table:
    """By the column `split` if there is one; else 40 % of the rows for validation, the rest held out, at random."""
    if any(row.get("split") is not None for row in table):
        return table.split(split)
    if split not in ("validation", "held_out"):
        raise InvalidValueError(f"data without a column split has validation and held_out parts only, got {split!r}.")
    rows = list(table.rows)
    random.Random(seed).shuffle(rows)
    border = round(_VALIDATION_SHARE * len(rows))
    own = rows[:border] if split == "validation" else rows[border:]
    if not own:
        raise DataError(f"{table.where} has {len(rows)} rows, too few for a validation and a held-out part.")
    return replace(table, rows=tuple(own))


def requests(table: Table) -> list[Prompt]:
    """Requests: AdvBench's `goal`, StrongREJECT's `forbidden_prompt`, `prompt`, `messages`, `instruction`; lines."""
    return [row.request() for row in table]


def plain_requests(table: Table) -> list[str]:
    """Requests that must be texts, each once; a DataError where a row has a conversation."""
    found: dict[str, None] = {}
    for row in table:
        request = row.request()
        if not isinstance(request, str):
            raise row.error("a conversation cannot be used here: give the request as text")
        found[request] = None
    return list(found)


def xstest(table: Table) -> tuple[list[str], list[str]]:
    """(safe, unsafe) prompts of XSTest: `prompt,type`; a type that begins with `contrast_` is unsafe.

    Source: Röttger et al., arXiv 2308.01263.
    """
    sets: tuple[list[str], list[str]] = [], []
    for row in table:
        row.needs("prompt", "type")
        sets[row.text("type").startswith("contrast_")].append(row.text("prompt"))
    return sets


def _of_every_row(read: Callable[[Row], _T]) -> Callable[[Table], list[_T]]:
    """A reader of one row as one of a table, with the row in front of what is wrong with it."""

    @wraps(read)
    def items(table: Table) -> list[_T]:
        found = []
        for row in table:
            try:
                found.append(read(row))
            except DataError as error:
                raise error if str(error).startswith(row.where) else DataError(f"{row.where}: {error}") from error
        return found

    return items


@_of_every_row
def truthful_questions(row: Row) -> TruthQuestion:
    """TruthfulQA: `question, best_answer, correct_answers, incorrect_answers`, where several are a list or separated
    by `;`; or `question, mc1_targets, mc2_targets`; or rows of a contrast file, with one answer of each kind.

    Source: Lin et al., arXiv 2109.07958; the Hub's `truthful_qa`, configurations generation and multiple_choice.
    """
    if row.get("positive") is not None:
        answer, other = row.text("positive"), row.text("negative")
        return TruthQuestion(str(row.request()), answer, (other,), (answer,), (other,))
    if row.get("mc1_targets") is None:
        row.needs("question", "best_answer", "correct_answers", "incorrect_answers")
        false, true = _answers(row, "incorrect_answers"), _answers(row, "correct_answers")
        return TruthQuestion(row.text("question"), row.text("best_answer"), false, true, false)
    row.needs("question", "mc1_targets", "mc2_targets")
    best, false_to_best = _targets(row, "mc1_targets")
    true, false = _targets(row, "mc2_targets")
    if len(best) != 1:
        raise row.error(f"mc1_targets must mark exactly one answer as true, got {len(best)}")
    return TruthQuestion(row.text("question"), best[0], false_to_best, true, false)


def true_and_false(table: Table) -> list[tuple[Prompt, str, str]]:
    """(prompt, positive answer, negative answer) of a contrast file; of TruthfulQA the best and the first false one."""
    if any(row.get("best_answer") is not None or row.get("mc1_targets") is not None for row in table):
        return [(q.question, q.best, q.false_to_best[0]) for q in truthful_questions(table)]
    for row in table:
        row.needs("positive", "negative")
    return [(row.request(), row.text("positive"), row.text("negative")) for row in table]


@_of_every_row
def commonsense_questions(row: Row) -> ChoiceQuestion:
    """CommonsenseQA: `question` (text, or `{"stem", "choices"}` as its authors publish it), `choices`, `answerKey`.

    `choices` is `{"label": [...], "text": [...]}` or a list of `{"label", "text"}`. Source: Talmor et al.,
    arXiv 1811.00937.
    """
    row.needs("question", "answerKey")
    question = row.get("question")
    if isinstance(question, Mapping):
        row = Row(row.where, {**row.cells, **question, "question": question.get("stem")})
    row.needs("question", "choices", "answerKey")
    choices = row.get("choices")
    if isinstance(choices, Sequence) and all(isinstance(choice, Mapping) for choice in choices):
        choices = {key: [choice.get(key) for choice in choices] for key in ("label", "text")}
    if not isinstance(choices, Mapping) or not {"label", "text"} <= choices.keys():
        raise row.error(f"choices must have label and text, got {choices!r}")
    labels, texts = (_texts(row, "choices", choices[key]) for key in ("label", "text"))
    key = row.text("answerKey")
    if key not in labels or len(labels) != len(texts):
        raise row.error(f"answerKey must be one of the labels {', '.join(labels)}, got {key!r}")
    return ChoiceQuestion(row.text("question"), texts, labels.index(key))


@_of_every_row
def mmlu_questions(row: Row) -> ChoiceQuestion:
    """MMLU: `question, choices` (a list) and `answer` (an index from 0, or a letter); or `question,A,B,C,D,answer`.

    Source: Hendrycks et al., arXiv 2009.03300; the Hub's `cais/mmlu`.
    """
    row.needs("question", "answer")
    if row.get("choices") is None and row.get("A") is not None:
        row.needs(*MMLU_COLUMNS)
        choices = tuple(row.text(letter) for letter in "ABCD")
    else:
        row.needs("question", "choices", "answer")
        choices = _texts(row, "choices", row.get("choices"))
    indices = {name: i for i, letter in enumerate(LETTERS[: len(choices)]) for name in (f"{i}", letter)}
    if (index := indices.get(str(row.get("answer")).strip())) is None:
        raise row.error(f"answer must be one of {', '.join(indices)}, got {row.get('answer')!r}")
    return ChoiceQuestion(row.text("question"), choices, index)


def gsm8k_problems(table: Table) -> list[MathProblem]:
    """GSM8K: `question` and `answer`, whose text ends with `#### number`. Source: Cobbe et al., arXiv 2110.14168."""

    def answer(text: str) -> str | None:
        _, mark, number = text.rpartition("####")
        return number.strip() or None if mark else None

    return _problems(table, "question", "answer", answer, "an `answer` that ends with `#### number`")


def math_problems(table: Table) -> list[MathProblem]:
    """MATH: `problem` and `solution`, whose last `\\boxed{}` is the answer.

    Source: Hendrycks et al., arXiv 2103.03874.
    """
    return _problems(table, "problem", "solution", last_boxed, "a `solution` with `\\boxed{}`")


def _problems(
    table: Table, problem: str, solution: str, answer: Callable[[str], str | None], what: str
) -> list[MathProblem]:
    """A few answers that cannot be read are unscored; if none can, it is not this format."""
    problems = []
    for row in table:
        row.needs(problem, solution)
        problems.append(MathProblem(row.text(problem), answer(row.text(solution))))
    if all(one.answer is None for one in problems):
        raise DataError(f"no row of {table.where} has {what}.")
    return problems


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{}` whose braces close; `None` if there is none, or nothing in it."""
    for opening in reversed([match.end() for match in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for position in range(opening, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[opening:position].strip() or None
    return None


def _answers(row: Row, column: str) -> tuple[str, ...]:
    value = row.get(column)
    texts = value.split(";") if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise row.error(f"{column} must be a list of texts, or texts separated by `;`, got {value!r}")
    return tuple(text.strip() for text in texts if text.strip())


def _targets(row: Row, column: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(true, false) answers of `{"choices": [...], "labels": [1, 0, ...]}` or of `{answer: label}`."""
    value = row.get(column)
    answers = value if isinstance(value, Mapping) else {}
    texts, labels = tuple(answers), list(answers.values())
    if {"choices", "labels"} <= answers.keys():
        texts, labels = _texts(row, column, answers["choices"]), list(answers["labels"])
    if not labels or len(labels) != len(texts) or not all(label in (0, 1) for label in labels):
        raise row.error(f"{column} must have a label, 0 or 1, for every answer, got {value!r}")
    true, false = (tuple(t for t, label in zip(texts, labels, strict=True) if label == own) for own in (1, 0))
    return true, false


def _texts(row: Row, column: str, value: Any) -> tuple[str, ...]:
    """A list of texts, in JSON or as JSON in a CSV cell."""
    if isinstance(value, str):
        value = row.parsed(column, value, "a list of texts")
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise row.error(f"{column} must be a list of texts, got {value!r}")
    return tuple(text.strip() for text in value)
