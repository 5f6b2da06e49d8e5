"""docs/python.md, line for line, on a tiny checkpoint that stands for smollm2."""

import importlib.util
import re
from pathlib import Path

import pytest

import steer2edit

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
BLOCK = re.compile(r"^```python( pandas)?\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_every_line_runs(tiny_smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    has_pandas = importlib.util.find_spec("pandas") is not None
    blocks = [code for needs, code in BLOCK.findall(PAGE.read_text(encoding="utf-8")) if has_pandas or not needs]
    names: dict[str, object] = {}
    for code in blocks:
        exec(compile(code, str(PAGE), "exec"), names)
    assert (tmp_path / "work" / "both" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "work" / "run" / "report.html").is_file()
    assert "steering 0.1" in repr(names["results"])
    for name in ("model", "vectors", "edit", "both", "results", "found", "card", "audit"):
        assert 0 < len(repr(names[name])) < 4000, name
        assert repr(names[name]).count("\n") < 40, name


def test_the_page_names_all_that_is_public() -> None:
    page = PAGE.read_text(encoding="utf-8")
    # by the functions
    made = {"CombinedEdit", "Edit", "Model", "Results", "StressResults", "Vectors"}
    assert [name for name in sorted(set(steer2edit.__all__) - made) if f"s2e.{name}" not in page] == []
    for old in ("load_model", "load_contrast", "Hyperparameters", "edited", "steered", "generate", "save_edit"):
        assert not hasattr(steer2edit, old)
