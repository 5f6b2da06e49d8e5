"""Settings are declared once: options, recipe keys and messages follow from the class."""

import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
import typer.main

from steer2edit.cli import app
from steer2edit.cli.options import expanded
from steer2edit.errors import InvalidValueError
from steer2edit.settings import ConvertOptions, ExtractOptions, Loading, SearchOptions
from steer2edit.settings.declared import Above, Checked, Text, declared, read_numbers, read_values

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("command", "kind"),
    [("search", SearchOptions), ("search", Loading), ("extract", ExtractOptions), ("convert", ConvertOptions)],
)
def test_every_setting_is_an_option(command: str, kind: type) -> None:
    flags = {flag for parameter in COMMANDS[command].params for flag in parameter.opts}
    assert {setting.flag for setting in declared(kind).values()} <= flags


@dataclass(frozen=True)
class Small(Checked):
    """Two settings, and a field that is none.

    Args:
        count: How many
            there are.
        sizes: Sizes.
    """

    count: Annotated[int, typer.Option(min=1, max=3)] = 2
    sizes: Annotated[tuple[float, ...], Text(read_numbers), Above(0)] = (1.0,)
    other: bool = False


def test_help_texts_are_those_of_the_docstring() -> None:
    assert {name: setting.option.help for name, setting in declared(Small).items()} == {
        "count": "How many there are.",
        "sizes": "Sizes.",
    }


def test_a_command_takes_settings() -> None:
    made: list[Small] = []

    def command(small: Small, last: Annotated[bool, typer.Option("--last")] = False) -> None:
        made.append(small)

    own = typer.Typer()
    own.command()(expanded(command))
    own([], standalone_mode=False)
    own(["--count", "3", "--sizes", "0.5,2"], standalone_mode=False)
    assert made == [Small(), Small(3, (0.5, 2.0))]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "count must be >= 1 and <= 3, got 0"),
        ({"count": 4}, "count must be >= 1 and <= 3, got 4"),
        ({"count": 1.5}, r"count must be an integer, got 1\.5"),
        ({"sizes": (1.0, 0.0)}, r"sizes must be > 0, got 1\.0, 0\.0"),
        ({"sizes": (1.0, float("nan"))}, r"sizes must be finite, got 1\.0, nan"),
    ],
)
def test_what_is_out_of_range_is_refused_in_python_too(values: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        Small(**values)  # type: ignore[arg-type]


def test_numbers() -> None:
    assert read_numbers("--x", "0.5,1,") == (0.5, 1.0)
    for text in ("a", "", "1,,2", "1;2"):
        with pytest.raises(InvalidValueError, match="--x takes numbers separated by commas"):
            read_numbers("--x", text)


def test_without_docstrings_it_is_said_what_is_missing() -> None:
    """Help texts stand in docstrings: options would be gone without a word."""
    done = subprocess.run([sys.executable, "-OO", "-c", "import steer2edit.cli"], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith("run it without -OO.")


def test_a_template_argument_that_is_nested_too_deep_is_text() -> None:
    deep = "[" * 100_000
    assert read_values("--template-arg", [f"a={deep}", "b=[1]"]) == {"a": deep, "b": [1]}
