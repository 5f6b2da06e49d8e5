"""The notebooks in examples/, cell for cell: on a tiny checkpoint that stands for smollm2, and on SmolLM2 itself."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
LIMIT = re.compile(r"^LIMIT = \d+$", re.MULTILINE)


def cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def run(path: Path, limit: int) -> None:
    """Every cell as a notebook runs it: what its last line is worth is shown, as text and as HTML."""
    names: dict[str, Any] = {}
    for cell in cells(path):
        code = LIMIT.sub(f"LIMIT = {limit}", "".join(cell["source"]))
        body = ast.parse(code).body
        if isinstance(last := body[-1], ast.Expr):
            body[-1] = ast.copy_location(ast.Assign([ast.Name("shown", ast.Store())], last.value), last)
        exec(compile(ast.fix_missing_locations(ast.Module(body, [])), path.name, "exec"), names)
        if (shown := names.pop("shown", None)) is not None:
            assert repr(shown)
            assert "<" in shown._repr_html_()


def test_notebooks_are_without_outputs_and_say_what_they_are_for() -> None:
    assert {path.stem for path in NOTEBOOKS} == {
        "first_edit",
        "own_behaviour",
        "vector_or_edit",
        "which_heads",
        "serving",
    }
    for path in NOTEBOOKS:
        book = json.loads(path.read_text(encoding="utf-8"))
        assert book["cells"][0]["source"][0].startswith("# ")
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(path))


@pytest.mark.parametrize("name", ["first_edit", "which_heads", "serving"])  # of a tiny model the others are noise
def test_every_cell_runs(name: str, tiny_smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(EXAMPLES / f"{name}.ipynb", 48)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs_on_smollm2(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(path, 12)
