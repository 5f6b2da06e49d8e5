"""Commands and calls that are shown to users can be pasted: options parse, files exist by then, keywords are known."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

import steer2edit
from steer2edit.cli import app

ROOT = Path(__file__).parents[1]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INSIDE = {"search": {"run/edit"}}
"""What a command writes into its --out, as far as the guide goes on with it."""


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command in a text, as a shell reads them."""
    for line in text.replace("\\\n", "").splitlines():
        if line.strip().startswith(("steer2edit ", "printf ")):
            yield shlex.split(line, comments=True)


def parsed(name: str, words: list[str]) -> dict[str, object]:
    """Arguments and options by name; what cannot be parsed ends in click's error."""
    return dict(COMMANDS[name].make_context(name, list(words)).params)


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"demo"}))
@pytest.mark.parametrize("width", ["40", "80"])
def test_examples_of_help_can_be_pasted(name: str, width: str) -> None:
    shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": width, "TERMINAL_WIDTH": width}).output
    paragraph = shown.partition("Example:\n")[2].partition("\n\n")[0].replace("\\\n", "")
    examples = list(commands(paragraph))
    assert len(examples) == len(paragraph.splitlines()) > 0
    for program, command, *words in examples:
        assert (program, command) == ("steer2edit", name)
        parsed(name, words)


def test_files_of_the_readme_are_there_when_they_are_used() -> None:
    """Its commands and then the guide's: each writes where nothing is yet, and reads what an earlier one wrote."""
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/guide.md"))
    there: set[str] = set()
    for program, *words in commands("\n".join(code for language, code in BLOCK.findall(text) if not language)):
        if program == "printf":
            there.add(words[-1])
        elif "--list" not in words:
            name, *rest = words
            missing = set(given(parsed(name, rest))) - there
            assert not missing, f"steer2edit {shlex.join(words)}: {missing} are not there yet"
            written = {rest[rest.index("--out") + 1]} if "--out" in rest else set()
            assert not written & there, f"steer2edit {shlex.join(words)}: {written} is there already"
            there |= written | INSIDE.get(name, set())
    assert {"edit", "run/edit", "requests.csv"} <= there


def given(parameters: dict[str, object]) -> Iterator[str]:
    """Files and folders that a command reads: `edit:0.5` is of `edit`, `over-refusal=requests.csv` of that file."""
    for key in ("vectors", "edit", "edit_dir", "edit_dirs", "steer", "edited", "task"):
        value = parameters.get(key) or ()
        for text in map(str, value if isinstance(value, list | tuple) else [value]):
            place = text.partition("=")[2] if key == "task" else text.split(":")[0]
            if place:
                yield place


@pytest.mark.parametrize("page", ["README.md", "docs/python.md", "docs/tasks.md", "docs/stress.md"])
def test_calls_use_keywords_that_exist(page: str) -> None:
    for _, block in (b for b in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")) if b[0] == "python"):
        for node in ast.walk(ast.parse(block)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if isinstance(node.func.value, ast.Name) and node.func.value.id == "s2e":
                known = inspect.signature(getattr(steer2edit, node.func.attr)).parameters
                assert {keyword.arg for keyword in node.keywords} - {None} <= set(known), ast.unparse(node)
