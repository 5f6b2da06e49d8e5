"""`steer2edit vectors` and `import-edit` on tiny files: what is shown, what is written, and what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from steer2edit.artifacts import load_edit, load_vectors, read_vectors, save_block_vectors, save_vectors
from steer2edit.cli import app, main
from steer2edit.core import ClassMeans, Site, SiteMeans, SteeringVectors
from tiny_chat import tiny_chat_model
from unchecked import unchecked


def run(*arguments: object) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False)


def failure(monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: object) -> str:
    """What the user is told: one message, no traceback."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["steer2edit", *(str(argument) for argument in arguments)])
    with unchecked(), pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code not in (0, None)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return " ".join(error.replace("│", " ").split())


def shown(capsys: Any, *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    run("vectors", *arguments, "--json")
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def control(tmp_path: Path) -> Path:
    directions = {1: torch.tensor([3.0, 4.0]), 2: torch.tensor([0.0, -2.0])}
    save_block_vectors(SteeringVectors.from_mapping(directions), tmp_path / "happy.gguf", model_hint="llama")
    return tmp_path / "happy.gguf"


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    site = SiteMeans(
        ClassMeans(torch.tensor([3.0, 5.0]), torch.tensor([0.0, 1.0])), ClassMeans(torch.ones(3), torch.ones(3))
    )
    layers = {layer: ClassMeans(torch.tensor([1.0, 0.0]), torch.tensor([0.0, float(layer)])) for layer in (0, 1)}
    made_on = {"name": "tiny", "model_type": "qwen2", "fingerprint": "0" * 64}
    metadata = {"model": made_on, "contrast": {"name": "safety"}}
    vectors = SteeringVectors({Site(1, "attn"): site}, metadata, block_outputs=layers)
    save_vectors(vectors, tmp_path / "ours.safetensors")
    return tmp_path / "ours.safetensors"


def test_show_a_control_vector(control: Path, capsys: Any) -> None:
    assert shown(capsys, control) == {
        "file": str(control),
        "format": "control vectors",
        "sites": {},
        "block_outputs": {"1": {"norm": 5.0, "outputs": 2}, "2": {"norm": 2.0, "outputs": 2}},
        "metadata": {
            "origin": "imported",
            "format": "control vectors",
            "file": "happy.gguf",
            "model_hint": "llama",
            "layer_count": 2,
        },
    }
    run("vectors", control)
    table = capsys.readouterr().out
    assert "block output of layer" in table
    assert "model_hint: llama" in table


def test_show_our_own_file(ours: Path, capsys: Any) -> None:
    result = shown(capsys, ours)
    assert result["format"] == "steer2edit"
    assert result["sites"] == {"L1.attn": {"norm": 5.0, "outputs": 2, "inputs": 3}}
    assert list(result["block_outputs"]) == ["0", "1"]
    assert result["metadata"]["contrast"] == {"name": "safety"}
    assert "written" not in result
    run("vectors", ours)
    assert "L1.attn" in capsys.readouterr().out


def test_a_control_vector_to_our_format_needs_the_place(
    control: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "happy.safetensors"
    error = failure(monkeypatch, capsys, "vectors", control, "--to", out)
    assert "not converted silently" in error
    assert "--use-at mlp|attn|both" in error
    assert "used at attn, mlp, both, got 'mpl'" in failure(
        monkeypatch, capsys, "vectors", control, "--to", out, "--use-at", "mpl"
    )
    assert not out.exists()
    assert shown(capsys, control, "--to", out, "--use-at", "both")["written"]["file"] == str(out)
    written = load_vectors(out)
    assert list(map(str, written.sites)) == ["L1.attn", "L1.mlp", "L2.attn", "L2.mlp"]
    assert written.metadata["block_outputs_used_at"] == "both"
    assert written.block_outputs[1].difference.tolist() == [3, 4]


def test_our_file_to_the_formats_of_others(ours: Path, tmp_path: Path, capsys: Any) -> None:
    assert shown(capsys, ours, "--to", tmp_path / "v.gguf")["written"]["layers_left_out"] == [0]
    assert read_vectors(tmp_path / "v.gguf").block_outputs[1].difference.tolist() == [1, -1]
    assert read_vectors(tmp_path / "v.gguf").metadata["model_hint"] == "qwen2"
    run("vectors", ours, "--to", tmp_path / "w.gguf")
    assert "Left out, because the format has no place for it: layer 0." in capsys.readouterr().out
    assert shown(capsys, ours, "--to", tmp_path / "v.svec", "--model-hint", "llama")["written"]["layers_left_out"] == []
    assert json.loads((tmp_path / "v.svec").read_text())["directions"] == {"0": [1.0, 0.0], "1": [1.0, -1.0]}
    assert json.loads((tmp_path / "v.svec").read_text())["model_type"] == "llama"
    run("vectors", ours, "--to", tmp_path / "plain.safetensors", "--plain")
    assert set(load_file(tmp_path / "plain.safetensors")) == {"L1.attn", "L1.attn.input_mean", "B0", "B1"}


def test_from_one_format_of_others_to_the_other(control: Path, tmp_path: Path) -> None:
    run("vectors", control, "--to", tmp_path / "v.svec")
    run("vectors", tmp_path / "v.svec", "--to", tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == control.read_bytes()


def test_refusals(ours: Path, control: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    without = tmp_path / "without.safetensors"
    save_vectors(SteeringVectors.from_mapping({"L1.mlp": torch.ones(2)}), without)
    existing = tmp_path / "there.gguf"
    existing.write_text("precious")
    for arguments, message in (
        ((without, "--to", tmp_path / "v.gguf"), "Extract again with --block-outputs"),
        ((control, "--to", existing), "exists already"),
        ((control, "--to", tmp_path / "v.gguf", "--use-at", "mlp"), "are for .safetensors"),
        ((control, "--to", tmp_path / "v.svec", "--plain"), "are for .safetensors"),
        ((control, "--use-at", "mlp"), "give --to FILE too"),
        ((ours, "--to", tmp_path / "v.safetensors", "--use-at", "mlp"), "leave out --use-at"),
        ((ours, "--to", tmp_path / "v.npz"), "name it v.safetensors"),
        ((tmp_path / "absent.gguf",), "there is no file"),
    ):
        assert message in failure(monkeypatch, capsys, "vectors", *arguments), arguments
    assert existing.read_text() == "precious"
    assert not (tmp_path / "v.gguf").exists()
    run("vectors", control, "--to", existing, "--overwrite")
    assert existing.read_bytes() == control.read_bytes()


def test_import_an_official_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    model = tiny_chat_model()
    assert model.tokenizer is not None
    model.network.save_pretrained(tmp_path / "base")
    model.tokenizer.save_pretrained(tmp_path / "base")
    meta = {"vhat_attn": {}, "vhat_mlp": {1: torch.eye(32)[0]}, "rho_attn": -1.0, "rho_mlp": 0.5, "alpha": 0.5}
    torch.save({"attn": {}, "mlp": {(1, 5): {"lambda": -0.5}}, "meta": meta}, tmp_path / "rank1.pt")
    capsys.readouterr()
    run("import-edit", tmp_path / "base", tmp_path / "rank1.pt", "--out", tmp_path / "edit", "--json")
    printed = json.loads(capsys.readouterr().out)
    assert [component["component"] for component in printed["top"]] == ["L1.N5"]
    edit = load_edit(tmp_path / "edit")
    assert edit.sites[Site(1, "mlp")].row.nonzero().flatten().tolist() == [5]
    assert edit.sites[Site(1, "mlp")].row[5] == -0.5
    meta["vhat_mlp"][9] = torch.eye(32)[0]
    torch.save({"attn": {}, "mlp": {(9, 5): {"lambda": -0.5}}, "meta": meta}, tmp_path / "other.pt")
    arguments = ("import-edit", tmp_path / "base", tmp_path / "other.pt", "--out", tmp_path / "not")
    assert "no such site" in failure(monkeypatch, capsys, *arguments)
    assert not (tmp_path / "not").exists()
