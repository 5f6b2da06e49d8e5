"""Rows of data: the one reader of what comes from outside, for contrast sets, tasks and attacks alike."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from steer2edit.errors import DataError
from steer2edit.models import Message, Prompt
from steer2edit.steering.data_files import read_records, without_repeats

Split = Literal["train", "validation", "held_out"]
SPLITS: tuple[Split, ...] = get_args(Split)
PROMPT_COLUMNS = ("prompt", "messages", "goal", "forbidden_prompt", "instruction", "question")
_CONVERSATION = re.compile(r"\s*\[\s*\{\s*['\"](role|content)['\"].*\}\s*\]\s*", re.DOTALL)
_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Row:
    """One row of a data set, which knows where it stands. What its methods raise are DataErrors that say so.

    Raises:
        DataError: two columns have one name, or there is half of a surrogate pair anywhere: JSON can hold it, text
            cannot.
    """

    where: str  # for messages, e.g. `advbench.csv, row 3 (line 4)`
    cells: Mapping[str, Any]  # by column, without regard to case and surrounding space; `Best Answer` is `best_answer`

    def __post_init__(self) -> None:
        try:
            cells = without_repeats((_plain(name), value) for name, value in self.cells.items())
        except ValueError as error:
            raise self.error(f"the column {error}") from error
        object.__setattr__(self, "cells", cells)
        for name, value in cells.items():
            self._require_whole(name, name)
            self._require_whole(name, value)

    def needs(self, *columns: str) -> None:
        """Refuse a row that lacks columns."""
        if missing := [column for column in columns if _plain(column) not in self.cells]:
            raise DataError(
                f"{self.where} has no column {', '.join(map(repr, missing))}: need {', '.join(columns)}, "
                f"found {', '.join(self.cells) or 'none'}."
            )

    def get(self, column: str) -> Any:
        """The cell, or `None`."""
        return self.cells.get(_plain(column))

    def text(self, column: str) -> str:
        """The cell without surrounding space; see `whole_text`."""
        return self.whole_text(column).strip()

    def whole_text(self, column: str) -> str:
        """The cell, which must be a text with something in it, and no conversation."""
        self.needs(column)
        value = self.get(column)
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"{column} must be text and not empty, got {value!r:.200}")
        if _CONVERSATION.fullmatch(value):
            raise self.error(f"{column} must be text, not a conversation, got {value!r:.200}")
        return value

    def one_of(self, column: str, known: Sequence[str]) -> Any:
        """The cell, which must be one of the known words, or `None`."""
        value = self.get(column)
        word = value.strip() if isinstance(value, str) else value
        if word not in (None, *known):
            raise self.error(f"{column} must be one of {', '.join(known)}, got {value!r:.200}")
        return word

    def prompt(self) -> Prompt:
        """The one request of the row, a text or a conversation, in one of `PROMPT_COLUMNS`."""
        columns = [name for name in PROMPT_COLUMNS if name in self.cells]
        if not columns:
            raise DataError(
                f"{self.where} has no prompt column: need one of {', '.join(PROMPT_COLUMNS)}, "
                f"found {', '.join(self.cells) or 'none'}."
            )
        filled = [name for name in columns if self.get(name) is not None] or columns
        if len(filled) > 1 and any(self.get(name) != self.get(filled[0]) for name in filled):
            raise self.error(f"there are {len(filled)} prompts, {', '.join(filled)}: rename all of them but one")
        value = self.get(filled[0])
        if isinstance(value, str) and _CONVERSATION.fullmatch(value):
            value = self.parsed(filled[0], value, "a conversation as JSON")
        if value is None:
            raise self.error(f"the {filled[0]} is empty")
        return self.whole_text(filled[0]) if isinstance(value, str) else self._messages(filled[0], value)

    def request(self) -> Prompt:
        """The prompt, where nothing but the request is used: a conversation must end with it."""
        prompt = self.prompt()
        if isinstance(prompt, str):
            return prompt.strip()
        if prompt[-1]["role"] == "assistant":
            raise self.error("the conversation ends with the assistant, not with a request: take its last message out")
        return prompt

    def parsed(self, column: str, text: str, what: str) -> Any:
        """The text of a cell, which must be JSON of what is said."""
        try:
            value = json.loads(text, object_pairs_hook=without_repeats)
        except (ValueError, RecursionError) as error:
            raise self.error(f"{column} must be {what}, got {text!r:.200}") from error
        self._require_whole(column, value)
        return value

    def error(self, what: str) -> DataError:
        """An error about this row."""
        return DataError(f"{self.where}: {what}.")

    def _messages(self, column: str, value: Any) -> list[Message]:
        messages = value if isinstance(value, list) else []
        texts = [m.get(key) if isinstance(m, dict) else None for m in messages for key in ("role", "content")]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise self.error(f"a prompt must be text or a list of {{role, content}} messages, got {value!r:.200}")
        for number, message in enumerate(messages, start=1):
            if more := [key for key in message if key not in ("role", "content") and message[key] is not None]:
                raise self.error(
                    f"message {number} of {column} has {', '.join(map(repr, more))} besides role and content, which "
                    "would be lost: take it out, or put it into the content"
                )
        return [Message(role=message["role"], content=message["content"]) for message in messages]

    def _require_whole(self, column: str, value: Any) -> None:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        if half := _HALF.search(text):
            raise self.error(
                f"{column!a} has half of a character, {ascii(half[0])[1:-1]}: a text was cut in the middle of an "
                "emoji, say. Repair it or take it out"
            )


@dataclass(frozen=True)
class Table:
    """The rows of one data set; a DataError without any."""

    name: str  # in letters, digits and underscores: what metrics are called after
    where: str  # for messages
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        if not self.rows:
            raise DataError(f"{self.where} has no rows.")

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def split(self, split: Split) -> "Table":
        """The rows of one split, all where the data has no column `split`; a DataError for other splits, or no rows."""
        marked = [row.one_of("split", SPLITS) for row in self.rows]
        if all(value is None for value in marked):
            return self
        if None in marked:
            raise self.rows[marked.index(None)].error(f"split must be one of {', '.join(SPLITS)}, got None")
        rows = tuple(row for row, value in zip(self.rows, marked, strict=True) if value == split)
        if not rows:
            found = ", ".join(f"{name}: {marked.count(name)}" for name in SPLITS if name in marked)
            raise DataError(
                f"{self.where} has no rows of the split {split!r} (found {found}). Mark some so, ask for another "
                "split, or leave out the column."
            )
        return replace(self, rows=rows)


def read_table(source: str | Path, columns_without_header: Sequence[str] = (), *, name: str | None = None) -> Table:
    """The rows of a file, or of a file of a Hub data set (docs/formats.md); a DataError where there are none to read.

    A CSV file without a header, whose first line ends with a single letter, has `columns_without_header`.
    """
    where = str(source) if name is None else f"the built-in set {name}"
    rows = []
    for number, (line, cells) in enumerate(read_records(str(source), columns_without_header), start=1):
        place = f"{where}, row {number}" + (f" (line {line})" if line not in (0, number) else "")
        if not isinstance(cells, Mapping):
            raise DataError(f'{place} must be an object, e.g. {{"prompt": ..., "response": ...}}, got {cells!r:.200}.')
        rows.append(Row(place, cells))
    plain = re.sub(r"\W+", "_", Path(source).stem.lower(), flags=re.ASCII).strip("_") or "data"
    return Table(name or plain, where, tuple(rows))


def _plain(column: object) -> str:
    return str(column).strip().lower().replace(" ", "_")
