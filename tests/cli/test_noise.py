"""What a user sees of vectors that are noise, and of an edit that would change nothing."""

from pathlib import Path

import pytest
import torch

from families import random_site_means
from steer2edit.artifacts import load_edit, save_vectors
from steer2edit.cli import app, main
from steer2edit.core import SteeringVectors
from steer2edit.models import load_model
from steer2edit.steering.diagnosis import SiteDiagnosis
from tiny_chat import tiny_chat_model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A checkpoint, and a folder with vectors that are noise (all.safetensors) and of which one site is (one)."""
    folder = tmp_path_factory.mktemp("noise")
    made = tiny_chat_model(num_hidden_layers=2)
    made.network.save_pretrained(folder / "model")
    assert made.tokenizer is not None
    made.tokenizer.save_pretrained(folder / "model")
    model = load_model(str(folder / "model"))
    generator = torch.Generator().manual_seed(1)
    sites = {site: random_site_means(module, generator) for site, module in model.sites.items()}
    for name, noisy in (("all", set(map(str, sites))), ("one", {"L1.mlp"})):
        judged = {str(s): SiteDiagnosis(1.0, -0.1 if str(s) in noisy else 0.9, 0.9, 0.8, 1.0).to_json() for s in sites}
        diagnosis = {"summary": f"noise: {', '.join(noisy)}", "sites": judged}
        save_vectors(SteeringVectors(sites, {"model": model.describe()}, diagnosis), folder / f"{name}.safetensors")
    return str(folder / "model"), folder


def outcome(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["steer2edit", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


@pytest.mark.parametrize(
    "command", [("convert", "--rho-attn", "0.2"), ("search", "--limit", "2", "--behaviour", "safety")]
)
def test_noise_is_refused(
    command: tuple[str, ...], files: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model, folder = files
    name, *options = command
    assert outcome(monkeypatch, name, model, folder / "all.safetensors", *options, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "none of the 2 attn sites (L0.attn, L1.attn)" in error
    assert "--force" in error
    assert not (tmp_path / "out").exists()


def test_noise_is_edited_if_forced_and_noisy_sites_are_named(
    files: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder = files
    common = ["convert", model, "--rho-attn", "0.1", "--rho-mlp", "0.1", "--alpha", "0.1", "--out"]
    for out, *vectors in ((tmp_path / "a", "one"), (tmp_path / "b", "all", "--force")):
        words = [*common, str(out), str(folder / f"{vectors[0]}.safetensors"), *vectors[1:]]
        app(words, standalone_mode=False)
        shown = ", ".join(load_edit(out).metadata["noisy_sites"])
        assert f"calls their vectors noise: {shown} (" in capsys.readouterr().out
        assert f"calls their vectors noise: {shown} (" in (out / "README.md").read_text(encoding="utf-8")


def test_an_edit_of_nothing_is_an_error(
    files: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder = files
    out = tmp_path / "edit"
    words = ("convert", model, folder / "one.safetensors", "--rho-attn", "50", "--out", out)
    assert outcome(monkeypatch, *words) == 1
    error = capsys.readouterr().err
    assert "changes nothing" in error
    assert "Give rho_attn (--rho-attn) below " in error
    assert not out.exists()
