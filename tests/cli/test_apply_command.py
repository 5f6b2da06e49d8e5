"""`steer2edit apply` on a tiny checkpoint: from the files alone, verified, and what a mistake looks like."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from steer2edit.artifacts import CheckpointManifest, load_edit, read_manifest, save_edit
from steer2edit.artifacts.edits.adapter import read_members, save_combined
from steer2edit.cli import app, main
from steer2edit.core import SiteEdit, WeightEdit
from steer2edit.editing import merged
from steer2edit.models import LanguageModel, load_model
from tiny_chat import tiny_chat_model
from unchecked import unchecked


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base") / "tiny"
    model = tiny_chat_model()
    model.network.bfloat16().save_pretrained(directory, max_shard_size="60KB")
    assert model.tokenizer is not None
    model.tokenizer.save_pretrained(directory)
    (directory / "pytorch_model.bin").write_bytes(b"unedited")
    return directory


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LanguageModel:
    return load_model(str(checkpoint), dtype="bfloat16", device="cpu")


@pytest.fixture(scope="module")
def edit(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = torch.Generator().manual_seed(2)
    sites = {}
    for site, module in model.sites.items():
        (d, m), n = module.shape, module.component_count
        u, row = torch.randn(d, generator=generator), 0.2 * torch.randn(m, generator=generator)
        sites[site] = SiteEdit(u / u.norm(), row, torch.ones(n), torch.ones(n) / 2)
    directory = tmp_path_factory.mktemp("edits") / "edit"
    with unchecked():
        save_edit(model, WeightEdit(sites, {"model": model.describe()}), directory)
    return directory


def run(*arguments: object) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False)


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["steer2edit", *(str(argument) for argument in arguments)])
    with unchecked(), pytest.raises(SystemExit) as exit_info:
        main()
    code = exit_info.value.code
    return 0 if code is None else int(code)


def test_verified_and_reported_as_json(
    checkpoint: Path, edit: Path, model: LanguageModel, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    capsys.readouterr()
    run("apply", checkpoint, edit, "--out", out, "--strength", "0.5", "--verify", "--json")
    printed = json.loads(capsys.readouterr().out)
    assert printed["source"] == "files"
    assert printed["base"]["fingerprint"] == model.fingerprint
    assert printed["not_copied"] == ["pytorch_model.bin"]
    assert printed["edited"].keys() == {f"{site.name}.weight" for site in model.sites.values()}
    found = printed["verification"]
    assert found["edited_tensors"] == len(model.sites) < found["tensors"] == len(model.network.state_dict())
    reloaded = load_model(str(out), dtype="bfloat16", device="cpu").network.state_dict()
    with merged(model, load_edit(edit), 0.5):
        assert all(torch.equal(value, reloaded[name]) for name, value in model.network.state_dict().items())


def test_no_model_is_loaded(
    checkpoint: Path, edit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", load)
    run("apply", checkpoint, edit, "--out", tmp_path / "out")
    shown = capsys.readouterr().out
    assert "tensors changed" in shown
    assert "Not copied: pytorch_model.bin." in shown


def test_a_result_that_was_changed_is_not_verified(checkpoint: Path, edit: Path, tmp_path: Path, capsys: Any) -> None:
    from steer2edit.artifacts import open_base, verify_checkpoint
    from steer2edit.errors import ArtifactError

    out = tmp_path / "out"
    run("apply", checkpoint, edit, "--out", out)
    base, edits = open_base(str(checkpoint)), [(load_edit(edit), 1.0)]
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 10.0}))
    with pytest.raises(ArtifactError, match=r"config.json is not the base's"):
        verify_checkpoint(base, edits, out)
    (out / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    for name, what in (("model.norm.weight", "the base's bytes"), ("model.layers.1.mlp.down_proj.weight", "the edit")):
        shard = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"][name]
        kept = (out / shard).read_bytes()
        tensors = load_file(out / shard)
        tensors[name].view(-1)[3] += 0.5
        save_file(tensors, out / shard, {"format": "pt"})
        with pytest.raises(ArtifactError, match=f"{name} does not hold {what}"):
            verify_checkpoint(base, edits, out)
        (out / shard).write_bytes(kept)
    assert verify_checkpoint(base, edits, out) == len(base.files.tensors)


def test_a_strength_that_is_no_number(
    checkpoint: Path, edit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert run_main(monkeypatch, "apply", checkpoint, edit, "--out", tmp_path / "out", "--strength", "nan") == 1
    assert "strength must be a finite number" in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_applying_twice_is_refused(
    checkpoint: Path, edit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    once = tmp_path / "once"
    run("apply", checkpoint, edit, "--out", once)
    assert run_main(monkeypatch, "apply", once, edit, "--out", tmp_path / "twice") == 1
    assert "this edit is already in" in " ".join(capsys.readouterr().err.split())


def test_a_damaged_edit_is_refused(
    checkpoint: Path, edit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    copy = tmp_path / "edit"
    copy.mkdir()
    for path in edit.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    tensors = load_file(copy / "adapter_model.safetensors")
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, copy / "adapter_model.safetensors", {"format": "pt"})
    assert run_main(monkeypatch, "apply", checkpoint, copy, "--out", tmp_path / "out") == 1
    assert "another SHA-256" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_combined_edit(checkpoint: Path, edit: Path, model: LanguageModel, tmp_path: Path, capsys: Any) -> None:
    members = read_members([edit, edit], [1.0, -0.25])
    with unchecked():
        save_combined(model, members, tmp_path / "both")
    capsys.readouterr()
    run("apply", checkpoint, tmp_path / "both", "--out", tmp_path / "out", "--strength", "0.5", "--json")
    assert json.loads(capsys.readouterr().out)["edited"]
    applied = read_manifest(tmp_path / "out", CheckpointManifest).edits
    assert [record.strength for record in applied] == [0.5, -0.125]
