"""`steer2edit inspect --base`: the table, JSON, the file of directions, and mistakes as a user sees them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from families import tiny_network
from steer2edit.artifacts import apply_to_files, save_edit
from steer2edit.cli import app, main
from steer2edit.core import SiteEdit, WeightEdit
from steer2edit.models import LanguageModel
from unchecked import unchecked


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, `edit` (one head, λ = 0.8) and `edited`, at strength 0.5."""
    folder = tmp_path_factory.mktemp("audit")
    network = tiny_network("llama").to(torch.bfloat16)
    network.save_pretrained(folder / "base")
    model = LanguageModel(network, name=str(folder / "base"))
    site = next(iter(model.sites))
    u = torch.ones(32) / 32**0.5
    k = (model.sites[site].weight.float().T @ u)[8:16]
    row = torch.zeros(32)
    row[8:16] = 0.8 * k / k.norm()
    edit = WeightEdit({site: SiteEdit(u, row, torch.tensor([0, 0.8, 0, 0]), torch.zeros(4))}, {})
    save_edit(model, edit, folder / "edit")
    apply_to_files(str(folder / "base"), [(edit, 0.5)], folder / "edited")
    return folder


def run(*arguments: object) -> None:
    app(["inspect", *(str(argument) for argument in arguments)], standalone_mode=False)


def test_for_people(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--base", folder / "base", "--edited", folder / "edited", "--edit", folder / "edit")
    shown = capsys.readouterr().out
    assert "A Steer2Edit-like edit: rank 1 along W_iᵀu in 1 output projection (o_proj), 1 heads and neurons." in shown
    assert "Matches the given edit at strength 0.5, in all 1 sites. Nothing else changed." in shown
    assert "model.layers.0.self_attn.o_proj.weight  rank 1" in shown
    assert "L0.H1 +0.40" in shown
    assert "λ by layer" in shown


def test_json_of_a_checkpoint_and_of_an_adapter(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for edited, magnitude in (("edited", 0.4), ("edit", 0.8)):
        run("--base", folder / "base", "--edited", folder / edited, "--json")
        found = json.loads(capsys.readouterr().out)
        assert found["kind"] == "audit"
        assert found["adapter"] is (edited == "edit")
        (changed,) = found["tensors"]["changed"]
        (component,) = changed["components"]
        assert component["component"] == "L0.H1"
        assert component["magnitude"] == pytest.approx(magnitude, abs=0.01)


def test_directions_are_written_once(folder: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    out = tmp_path / "u.safetensors"
    common = ("--base", folder / "base", "--edited", folder / "edited", "--directions", out)
    run(*common)
    (u,) = load_file(out).values()
    assert list(load_file(out)) == ["L0.attn"]
    assert abs(float(u.sum())) / 32**0.5 == pytest.approx(1, abs=1e-3)
    assert fails(monkeypatch, capsys, *common, "--json").startswith(f"steer2edit: {out} exists already")
    run(*common, "--overwrite")


def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["steer2edit", "inspect", *(str(argument) for argument in arguments)])
    with unchecked(), pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_mistakes_are_one_message(folder: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    base, edited, edit = (folder / name for name in ("base", "edited", "edit"))
    wide = tmp_path / "wide"
    wide.mkdir()
    save_file({k: torch.zeros(3, 3) for k in load_file(base / "model.safetensors")}, wide / "model.safetensors")
    for arguments, message in (
        ((), "give an edit directory"),
        (("--base", base), "needs both --base BASE and --edited OTHER"),
        ((edit, "--base", base, "--edited", edited), "--edit EDIT_DIR"),
        ((edit, "--edit", edit), "give an edit directory"),
        (("--base", base, "--edited", tmp_path / "nowhere"), "nowhere"),
        (("--base", base, "--edited", wide), "is no edit of"),
        (("--base", base, "--edited", edited, "--edit", base), "steer2edit.json"),
        (("--base", base, "--edited", base, "--directions", tmp_path / "u.safetensors"), "no direction to write"),
    ):
        assert message in fails(monkeypatch, capsys, *arguments)
    assert not (tmp_path / "u.safetensors").exists()
