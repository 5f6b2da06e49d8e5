"""`export`, `combine` and `push` on a tiny checkpoint: what they print, and what a mistake looks like."""

import json
from pathlib import Path

import pytest

from steer2edit.artifacts import save_edit
from steer2edit.cli import app, main
from steer2edit.editing import convert
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import load_model
from tiny_chat import tiny_chat_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    tiny = tiny_chat_model()
    tiny.network.save_pretrained(folder / "base")
    assert tiny.tokenizer is not None
    tiny.tokenizer.save_pretrained(folder / "base")
    model = load_model(str(folder / "base"), dtype="float32", device="cpu")
    from engine_contract import random_vectors

    for seed, name in ((1, "one"), (2, "two")):
        save_edit(model, convert(model, random_vectors(model, seed), Hyperparameters(0.05, 0.05, 0.1)), folder / name)
    return folder


def run(*arguments: object) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False)


def test_export(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "adapters"
    run("export", folder / "one", "--format", "gguf-lora", "--strength", "0.5,1", "--out", out, "--json")
    result = json.loads(capsys.readouterr().out)
    paths = [str(out / f"one-strength-{s}.gguf") for s in ("0.5", "1")]
    assert [(a["strength"], a["path"]) for a in result["adapters"]] == list(zip([0.5, 1.0], paths, strict=True))
    assert f"llama-cli -m BASE.gguf --lora {paths[0]}" in result["usage"]
    run("export", folder / "one", "--format", "vllm", "--out", tmp_path / "vllm")
    assert "--enable-lora --max-lora-rank 1 --max-loras 2" in capsys.readouterr().out


def test_combine(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("combine", folder / "one", folder / "two", "--weights", "1,-0.5", "--out", tmp_path / "both", "--json")
    result = json.loads(capsys.readouterr().out)
    assert [m["weight"] for m in result["members"]] == [1.0, -0.5]
    assert -1 <= result["interference"] <= 1
    assert all(-1 <= value <= 1 for value in result["sites"].values())
    run("combine", folder / "one", folder / "one", "--out", tmp_path / "twice")
    text = capsys.readouterr().out
    assert "Interference ‖Σ ΔW‖² / Σ ‖ΔW‖² − 1: +1.000" in text
    assert "Where edits meet" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "one", "--format", "onnx", "--out", "x"), "unknown format 'onnx'"),
        (("export", "one", "--format", "peft", "--strength", "1,b", "--out", "x"), "'b' is not a number"),
        (("export", "base", "--format", "peft", "--out", "x"), "holds no edit"),
        (("export", "one", "--format", "gguf-lora", "--model", "./no", "--out", "x"), "there is no model"),
        (("combine", "one", "two", "--weights", "1", "--out", "x"), "got 1 weights for 2 edits"),
        (("push", "base", "me/edit"), "steer2edit did not write it"),
    ],
)
def test_mistakes(
    folder: Path,
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["steer2edit", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert message in capsys.readouterr().err
    assert not (folder / "x").exists()
