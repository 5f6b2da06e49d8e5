"""README and docs against the code: commands, options, files and names that they mention exist."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

import steer2edit
from steer2edit.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
THEIRS = ("safety_alignment/", "truthfulness/")
"""Folders of the official code."""
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def page(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands_of(path: Path) -> Iterator[list[str]]:
    """The words of every `steer2edit ...` in code, continued lines joined, comments left out."""
    text = path.read_text(encoding="utf-8")
    code = [block for language, block in BLOCK.findall(text) if language in ("", "bash", "sh")]
    code += re.findall(r"`(steer2edit [^`]+)`", text)
    for line in "\n".join(code).replace("\\\n", " ").splitlines():
        if line.startswith("steer2edit "):
            yield line.split("#")[0].split()[1:]


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_commands_and_options_exist(path: Path) -> None:
    for name, *words in commands_of(path):
        if name.startswith("-") or not name.islower():
            continue
        assert name in COMMANDS, f"steer2edit {name}"
        known = {option for parameter in COMMANDS[name].params for option in parameter.opts} | {"--help"}
        used = {word.split("=")[0].rstrip(",.;)]") for word in words if word.startswith("--")}
        assert used <= known, f"steer2edit {name}: {used - known}"


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_python_names_exist(path: Path) -> None:
    """Imports from the package, and attributes of `s2e`."""
    for _, block in (b for b in BLOCK.findall(path.read_text(encoding="utf-8")) if b[0] == "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("steer2edit"):
                module = importlib.import_module(str(node.module))
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "s2e":
                assert hasattr(steer2edit, node.attr), node.attr


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=page)
def test_links_and_files_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target
    places = (ROOT, ROOT / "src" / "steer2edit", path.parent)
    for name in re.findall(r"`([\w/]+/[\w/]+\.(?:py|toml|jsonl))`", text):
        assert name.startswith(THEIRS) or any((place / name).exists() for place in places), name


def test_every_page_is_reached_from_the_readme() -> None:
    seen, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        targets = re.findall(r"\]\(([^)#]+\.md)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
        waiting += [(path.parent / target).resolve() for target in targets if not target.startswith("http")]
    assert set(PAGES) <= seen


def test_the_site_has_every_page() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    named = re.findall(r"[\w/-]+\.md", nav)
    generated = {"index.md", "reference/python.md", "reference/command-line.md"}
    assert set(named) == generated | {path.name for path in (ROOT / "docs").glob("*.md")}
