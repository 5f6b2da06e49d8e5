"""Contrast data: rows into examples; and which prompts were used for what."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar, get_args

from steer2edit.errors import DataError
from steer2edit.models import Prompt
from steer2edit.steering.labels import Label
from steer2edit.steering.rows import SPLITS, Row, Split, read_table

_SIDES: tuple[Label, ...] = get_args(Label)
_T = TypeVar("_T")
PAIR = ("prompt", *_SIDES)


@dataclass(frozen=True)
class Example:
    """One row of contrast data."""

    prompt: Prompt  # a request, or a conversation that ends with one
    response: str | None = None  # `None` if the model is to generate it
    label: Label | None = None  # `None` if a labeller is to decide
    reference: str | None = None  # the known right answer, for the labeller `reference`
    split: Split | None = None  # `None` if it is to be assigned

    @property
    def key(self) -> str:
        """The prompt as text: rows with the same key never land in different splits."""
        return prompt_key(self.prompt)


def spread(items: Sequence[_T], count: int) -> list[_T]:
    """At most so many of the items, evenly spread over the whole."""
    count = min(len(items), count)
    return [items[i * len(items) // count] for i in range(count)]


def prompt_key(prompt: Prompt) -> str:
    """A prompt's identity: its text without surrounding space, or its messages as JSON."""
    return prompt.strip() if isinstance(prompt, str) else json.dumps(list(prompt), sort_keys=True)


def prompt_digests(prompts: Iterable[Prompt]) -> list[str]:
    """A short digest of every different prompt, whatever its case and spacing, sorted."""
    plain = {" ".join(prompt_key(prompt).casefold().split()) for prompt in prompts}
    return sorted({hashlib.sha256(text.encode()).hexdigest()[:16] for text in plain})


def require_no_overlap(uses: Mapping[str, Iterable[str]]) -> None:
    """Require that no prompt has two uses; a DataError names those, and how many prompts they share.

    `uses` are digests of prompts by what they are used for, e.g. `vectors`, `validation`, `held-out`.
    """
    for (one, mine), (other, theirs) in combinations(uses.items(), 2):
        if shared := len(set(mine) & set(theirs)):
            raise DataError(
                f"{shared} prompts are among both the {one} and the {other} prompts. A prompt may have one use only: "
                "figures on prompts that something was made from or chosen on mean nothing. Take them out of one."
            )


def read_examples(source: str | Path, label: Label | None = None) -> list[Example]:
    """Rows of a contrast file, whose class is `label` where that is given; a DataError says what a row lacks.

    A row has a prompt (`rows.PROMPT_COLUMNS`) and one of: `positive` and `negative`; `response` and `label`;
    `response` alone, with `label` for the whole file; neither, for the model to generate and a labeller to decide. A
    conversation that ends with the assistant brings its own response. Optional: `reference`, `split`.
    """
    return [example for row in read_table(source) for example in _examples_of(row, label)]


def examples_in_memory(rows: Sequence[Any]) -> list[Example]:
    """Contrast data in memory, rows as in a file or (prompt, positive, negative); a DataError names what is neither."""
    if not rows:
        raise DataError("there are no pairs: give (prompt, positive, negative) for each prompt, or rows.")
    examples = []
    for number, row in enumerate(rows, start=1):
        where = f"pair {number}"
        if isinstance(row, tuple | list) and len(row) == len(PAIR):
            row = dict(zip(PAIR, row, strict=True))
        if not isinstance(row, Mapping):
            raise DataError(f"{where} must be (prompt, positive, negative), or a row by column, got {row!r:.200}.")
        examples += _examples_of(Row(where, row), None)
    return examples


def _examples_of(row: Row, label: Label | None) -> list[Example]:
    own, reference = row.one_of("label", _SIDES), row.get("reference")
    if label and own not in (None, label):
        raise row.error(f"the file is given as the {label} one, and the row's label is {own!r}: remove one of the two")
    pairs = {side: row.whole_text(side) for side in _SIDES if row.get(side) is not None}
    if pairs and (label or own or row.get("response") is not None or len(pairs) < len(_SIDES)):
        raise row.error(
            "the row needs text in both 'positive' and 'negative' and then neither a label nor a response, or a single "
            f"response; found {', '.join(name for name, cell in row.cells.items() if cell is not None)}"
        )
    prompt = row.prompt()
    response = None if row.get("response") is None else row.whole_text("response")
    if not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
        if response is not None or pairs:
            raise row.error(
                "the conversation ends with the assistant, and there is a response besides: take the assistant's last "
                "message out, or put its words in front of the response"
            )
        prompt, response = prompt[:-1], prompt[-1]["content"]
        if not prompt or not response.strip():
            raise row.error("the conversation needs a request, and words of the assistant that answer it")
    reference = None if reference is None else str(reference)
    example = Example(prompt, response, label or own, reference, row.one_of("split", SPLITS))
    return [replace(example, response=text, label=side) for side, text in pairs.items()] or [example]
