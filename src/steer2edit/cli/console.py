"""What commands print: tables and text for people on stdout, or one JSON object; and what was typed."""

import codecs
import io
import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from steer2edit.progress import console_of_bars
from steer2edit.tables import text_table, visible

if TYPE_CHECKING:
    from steer2edit.estimates import Condition

_PASSWORD = re.compile(r"(://[^/@:\s]*:)[^@/\s]+@")


def typed() -> str:
    """The command line, quoted so that it can be pasted, without passwords in URLs."""
    return _PASSWORD.sub(r"\1***@", shlex.join(["steer2edit", *sys.argv[1:]]))


OUT = Console(markup=False, highlight=False, soft_wrap=True)


_IN_ASCII = {"−": "-", "–": "-", "→": ">", "‖": "|", "≤": "<=", "≥": ">=", "×": "x", "·": ".", "ρ": "rho", "α": "alpha"}
_IN_ASCII |= {"λ": "lambda", "Δ": "d", "Σ": "sum", "⟨": "<", "⟩": ">"}


def show_what_stdout_can() -> None:
    """Have stdout replace what its encoding lacks, as stderr does by itself; a minus sign stays one."""
    codecs.register_error("steer2edit", _in_ascii)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="steer2edit")


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(character, "?") for character in lacking), error.end


@contextmanager
def saying(on: bool) -> Iterator[None]:
    """Within the context, what is said to people is printed, or nothing of it."""
    OUT.quiet = not on
    try:
        yield
    finally:
        OUT.quiet = False


def say(text: str = "", style: str = "") -> None:
    """One line for people."""
    out().print(Text(visible(text), style=style), soft_wrap=True)


def out() -> Console:
    """What prints to stdout without getting into the bars of a step that is under way."""
    bars = console_of_bars() if sys.stdout.isatty() and not OUT.quiet else None
    return bars or OUT


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout, in ASCII: any encoding has it, and no control character is left in it."""
    print(json.dumps(value, indent=2, default=str))


def narrator(begun: float | None = None) -> "Callable[[str, Sequence[Condition]], None]":
    """Prints what a run has found under its first line, and conditions side by side; with the time since `begun`."""

    def narrate(text: str, conditions: "Sequence[Condition]") -> None:
        passed = "" if begun is None else f"[{time.perf_counter() - begun:4.0f} s] "
        heading, *others = text.split("\n", 1)
        say(f"\n{passed}{heading}", style="bold")
        for other in others:
            say(other)
        if conditions:
            print_conditions(conditions)

    return narrate


def print_unscored(reasons: Mapping[str, Mapping[str, int]]) -> None:
    """Why replies could not be scored, by set."""
    for name, own in reasons.items():
        say(f"{name}, not scored: " + ", ".join(f"{count} ({reason})" for reason, count in own.items()))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table for people, as wide as the terminal at most; the first column is text, the others are figures."""
    if title:
        say(title, style="bold")
    for line in text_table(columns, rows, OUT.width):
        say(line)


_NARROWEST = 30  # columns of a terminal in which a reply can still be read


def columns_of_text(labels: Sequence[str], texts: Sequence[str]) -> Table:
    """Texts under their labels, side by side where the terminal is wide enough for that, else one below the other."""
    table = Table.grid(padding=(0, 2), expand=True)
    if OUT.width >= _NARROWEST * len(labels):
        for _ in labels:
            table.add_column(ratio=1, overflow="fold")
        table.add_row(*(Text(visible(label), style="bold") for label in labels))
        table.add_row(*(Text(visible(text)) for text in texts))
        return table
    for label, text in zip(labels, texts, strict=True):
        table.add_row(Text(visible(label), style="bold"))
        table.add_row(Text(f"{visible(text)}\n"))
    return table


def print_conditions(conditions: "Sequence[Condition]", title: str = "") -> None:
    """Conditions side by side, each metric with its 95 % interval and n."""
    from steer2edit.api.showing import condition_rows

    print_table(*condition_rows(conditions), title)
