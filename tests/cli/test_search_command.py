"""`steer2edit search` on a tiny checkpoint: what it prints, what it leaves, and what a mistake looks like."""

import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from steer2edit.artifacts import load_edit
from steer2edit.cli import app, main
from steer2edit.engines import TransformersEngine
from tiny_chat import tiny_chat_model
from unchecked import unchecked

SMALL = ("--limit", "2", "--max-new-tokens", "2", "--trials", "4", "--generation", "2", "--strategy", "random",
         "--strengths", "0.02,0.05", "--max-kl", "2", "--force")  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base") / "tiny"
    model = tiny_chat_model(num_hidden_layers=2)
    model.network.save_pretrained(directory)
    assert model.tokenizer is not None
    model.tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def vectors(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors")
    contrast = [
        {"prompt": f"request number {i}", "positive": f"no, never {i}", "negative": f"yes, here it is {i}"}
        for i in range(8)
    ]
    (folder / "contrast.jsonl").write_text("\n".join(json.dumps(row) for row in contrast))
    call("extract", checkpoint, "--contrast", folder / "contrast.jsonl", "--out", folder / "v.safetensors")
    return folder / "v.safetensors"


@pytest.fixture(scope="module")
def found(checkpoint: Path, vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "run"
    call("search", checkpoint, vectors, "--behaviour", "truthfulness", "--out", out, *SMALL)
    return out


def call(*arguments: object) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False)


def failed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit status and stderr of a call as a user makes it."""
    monkeypatch.setattr(sys, "argv", ["steer2edit", "search", *(str(argument) for argument in arguments)])
    capsys.readouterr()
    with unchecked(), pytest.raises(SystemExit) as exit_info:
        main()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    return int(exit_info.value.code or 0), " ".join(printed.err.replace("│", " ").split())


def test_json_alone_on_stdout_and_nothing_is_done_twice(
    checkpoint: Path, vectors: Path, found: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = json.loads((found / "results.json").read_text())
    kept = {path.name: path.read_bytes() for path in (found / "trials").iterdir()}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a finished search runs no model")

    monkeypatch.setattr(TransformersEngine, "generate", refuse)
    monkeypatch.setattr(TransformersEngine, "score", refuse)
    capsys.readouterr()
    call("search", checkpoint, vectors, "--behaviour", "truthfulness", "--out", found, *SMALL, "--json")
    printed = json.loads(capsys.readouterr().out)
    for key in ("front", "trials", "comparison", "held_out", "validation", "chosen", "summary", "settings", "model"):
        assert printed[key] == written[key]
    assert {path.name: path.read_bytes() for path in (found / "trials").iterdir()} == kept


def test_results(found: Path) -> None:
    results = json.loads((found / "results.json").read_text())
    assert results["behaviour"] == "truthfulness"
    assert results["trials"]["tried"] == 4
    kinds = [condition["kind"] for condition in results["validation"]["conditions"]]
    assert kinds[:3] == ["base", "steering", "steering"]
    held_out = results["held_out"]["conditions"]
    assert [condition["kind"] for condition in held_out[:3]] == ["base", "steering", "steering"]
    assert len(held_out) == 3 + len(results["front"])
    recommended = held_out[-1]["parameters"]
    assert load_edit(found / "edit").metadata["hyperparameters"].items() <= recommended.items()
    assert results["chosen"]["hyperparameters"].items() <= recommended.items()
    assert held_out[0]["metrics"]["truth_preferred"]["n"] == 2
    assert "<html" in (found / "report.html").read_text()
    assert (found / "edit" / "adapter_model.safetensors").is_file()


def test_text(checkpoint: Path, vectors: Path, found: Path, capsys: Any) -> None:
    capsys.readouterr()
    call("search", checkpoint, vectors, "--behaviour", "truthfulness", "--out", found, *SMALL)
    shown = capsys.readouterr().out
    summary = json.loads((found / "results.json").read_text())["summary"]
    for line in summary:
        assert line in shown
    assert any(re.search(r"Held-out .*: \d+ % \[.* points \[", f"{a} {b}") for a, b in pairwise(summary))
    for text in ("steering 0.02", "Base model and activation steering, on validation items:", "Held-out items",
                 str(found / "edit"), str(found / "report.html"), str(found / "results.json")):  # fmt: skip
        assert text in shown


def test_another_behaviour_in_the_same_folder(
    checkpoint: Path, vectors: Path, found: Path, monkeypatch: Any, capsys: Any
) -> None:
    code, error = failed(monkeypatch, capsys, checkpoint, vectors, "--behaviour", "safety", "--out", found, *SMALL)
    assert code == 1
    assert "behaviour (truthfulness, now safety)" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--behaviour", "safty"), "Did you mean 'safety'?"),
        (("--strategy", "tpa"), "unknown strategy 'tpa'. Did you mean 'tpe'?"),
        (("--blocks", "attn,head"), "blocks must be attn, mlp or both, got attn, head"),
        (("--min-utility", "0.5"), "--min-utility needs a task to measure: --utility TASK"),
        (("--min-utility", "0.5", "--utility", "refusal"), "and so does the behaviour safety"),
        (("--utility", "comonsenseqa"), "Did you mean 'commonsenseqa'?"),
        (("--behaviour", "truthfulness", "--max-over-refusal", "0.1"), "which truthfulness does not measure"),
        (("--strengths", "0.1;0.2"), "--strengths takes numbers separated by commas"),
        (("--strengths", "0.1,nan"), "strengths must be finite, got 0.1, nan"),
        (("--trials", "0"), "'--trials': Input should be greater than or equal to 1"),
        (("--generation", "1"), "'--generation': Input should be greater than or equal to 2"),
        (("--seed", "-1"), "'--seed': Input should be greater than or equal to 0"),
        (("--worker", "a/b"), "a worker's name must be usable in a file name"),
        (("--max-kl", "0"), "max_kl must be > 0, got 0"),
        (("--storage", "sqlite:///study.db"), "--storage is a folder that the workers share"),
    ],
)
def test_bad_options_are_one_message(
    arguments: tuple[str, ...], message: str, checkpoint: Path, vectors: Path, tmp_path: Path, monkeypatch: Any,
    capsys: Any,
) -> None:  # fmt: skip
    out = tmp_path / "run"
    given = ("--limit", "2", "--max-new-tokens", "2", "--force", "--behaviour", "safety", *arguments)
    code, error = failed(monkeypatch, capsys, checkpoint, vectors, "--out", out, *given)
    assert code in (1, 2)
    assert message in error
    assert not (out / "trials").exists()


def test_absent_vectors(checkpoint: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    code, error = failed(monkeypatch, capsys, checkpoint, tmp_path / "absent.safetensors", "--out", tmp_path / "run")
    assert code == 1
    assert "absent.safetensors" in error
