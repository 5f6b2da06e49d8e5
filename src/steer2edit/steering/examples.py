"""Reading contrast data: JSONL, JSON, CSV, plain lines; prompts as strings or chat messages."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from steer2edit.errors import DataError
from steer2edit.models import Message, Prompt
from steer2edit.steering.labels import Label

Split = Literal["train", "validation", "held_out"]
SPLITS: tuple[Split, ...] = get_args(Split)
PROMPT_COLUMNS = ("prompt", "messages", "question", "goal", "instruction")


@dataclass(frozen=True)
class Example:
    """One row of contrast data.

    Args:
        prompt: a request, or a conversation that ends with one.
        response: the answer; `None` if the model is to generate it.
        label: its class; `None` if a labeller is to decide.
        reference: the known right answer, for the labeller `reference`.
        split: the part it belongs to; `None` if it is to be assigned.
    """

    prompt: Prompt
    response: str | None = None
    label: Label | None = None
    reference: str | None = None
    split: Split | None = None

    @property
    def key(self) -> str:
        """The prompt as text: rows with the same key never land in different splits."""
        return prompt_key(self.prompt)


def prompt_key(prompt: Prompt) -> str:
    """A prompt's identity: its text without surrounding space, or its messages as JSON."""
    return prompt.strip() if isinstance(prompt, str) else json.dumps(list(prompt), sort_keys=True)


def read_examples(path: Path, label: Label | None = None) -> list[Example]:
    """Rows of a contrast file.

    A row has a prompt (`prompt`, `messages`, `question`, `goal` or `instruction`) and one of
    - `positive` and `negative`: two responses;
    - `response` and `label` ("positive" or "negative");
    - `response` alone, where `label` is given for the whole file;
    - neither: the model will generate and a labeller decide.
    Optional: `reference`, `split` (train, validation, held_out).

    Args:
        path: .jsonl, .json (a list), .csv, or .txt (a prompt a line).
        label: class of every row, for data in two files.

    Raises:
        DataError: the file is missing, is not what its name says, or a row lacks what it needs.
    """
    rows = read_rows(path)
    if not rows:
        raise DataError(f"{path} has no rows.")
    examples = []
    for number, row in enumerate(rows, start=1):
        try:
            examples += _examples_of(row, label)
        except DataError as error:
            raise DataError(f"{path}, row {number}: {error}") from error
    return examples


def read_rows(path: Path) -> list[Mapping[str, Any]]:
    """Rows of a data file as mappings; a plain text line becomes `{"prompt": line}`.

    Raises:
        DataError: the file is missing, unreadable, malformed, or of an unknown kind.
    """
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".txt": _lines}
    if path.suffix.lower() not in readers:
        raise DataError(f"cannot tell the format of {path}: the name must end in {', '.join(readers)}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    rows = readers[path.suffix.lower()](path, text)
    if not all(isinstance(row, Mapping) for row in rows):
        raise DataError(f'{path} must hold one object per row, e.g. {{"prompt": ..., "response": ...}}.')
    return rows


def _jsonl(path: Path, text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number} is not JSON: {error}") from error
    return rows


def _json(path: Path, text: str) -> list[Any]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise DataError(f"{path} must hold a list of rows, got {type(rows).__name__}.")
    return rows


def _csv(path: Path, text: str) -> list[Any]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        cells = list(reader)
    except csv.Error as error:
        raise DataError(f"{path} is not CSV: {error}") from error
    for number, row in enumerate(cells, start=1):
        if None in row:
            raise DataError(f"{path}, row {number} has more cells than the header: quote text that has commas.")
    rows = [{key: value for key, value in row.items() if value not in (None, "")} for row in cells]
    if reader.fieldnames and not set(PROMPT_COLUMNS) & set(reader.fieldnames):
        raise DataError(_no_prompt(path.name, reader.fieldnames))
    return rows


def _lines(path: Path, text: str) -> list[Any]:
    return [{"prompt": line.strip()} for line in text.split("\n") if line.strip()]


def _no_prompt(where: str, found: Sequence[str]) -> str:
    return f"{where} has no prompt column: need one of {', '.join(PROMPT_COLUMNS)}, found {', '.join(found)}."


def _examples_of(row: Mapping[str, Any], label: Label | None) -> list[Example]:
    column = next((name for name in PROMPT_COLUMNS if name in row), None)
    if column is None:
        raise DataError(_no_prompt("the row", list(row)))
    prompt, response = _prompt_and_response(row[column], row.get("response"))
    split = row.get("split")
    if split not in (None, *SPLITS):
        raise DataError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
    example = Example(prompt, response, label, _text(row, "reference"), split)
    if "positive" in row or "negative" in row:
        return [replace(example, response=_required_text(row, side), label=side) for side in ("positive", "negative")]
    if label is not None or "label" not in row:
        return [example]
    if row["label"] not in ("positive", "negative"):
        raise DataError(f"label must be 'positive' or 'negative', got {row['label']!r}.")
    return [replace(example, label=row["label"])]


def _prompt_and_response(value: Any, response: Any) -> tuple[Prompt, str | None]:
    """A conversation that ends with the assistant brings its own response."""
    if response is not None and not isinstance(response, str):
        raise DataError(f"a response must be text, got {response!r}.")
    if response is not None and not response.strip():
        raise DataError("the response is empty; leave it out to have the model generate one.")
    if isinstance(value, str):
        if not value.strip():
            raise DataError("the prompt is empty.")
        return value, response
    if not isinstance(value, list) or not value or not all(_is_message(m) for m in value):
        raise DataError(f"a prompt must be text or a list of {{role, content}} messages, got {value!r}.")
    messages: list[Message] = [{"role": m["role"], "content": m["content"]} for m in value]
    if messages[-1]["role"] == "assistant" and response is None:
        response = messages.pop()["content"]
    return messages, response


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)


def _text(row: Mapping[str, Any], key: str) -> str | None:
    value = row.get(key)
    return None if value is None else str(value)


def _required_text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"the row needs text in both 'positive' and 'negative', got {key} = {_shown(value)}.")
    return value


def _shown(value: Any) -> str:
    return "an empty text" if isinstance(value, str) else repr(value)
