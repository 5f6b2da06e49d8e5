"""What is given as a model: one line says what it is, for loading, for the structure alone and for the files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_checkpoint import save_checkpoint

from steer2edit.errors import ModelError
from steer2edit.models import checkpoint_directory, load_model, load_skeleton


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "tiny"
    save_checkpoint(directory)
    return directory


SAFETENSORS = "Give the checkpoint in safetensors that it was made from"


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    (folder / "adapter_model.safetensors").write_bytes(b"")


def without_weights(folder: Path, file: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_bytes(b"")


def alone(folder: Path, file: str, content: bytes = b"") -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / file).write_bytes(content)


def higher(folder: Path, *inner: str) -> None:
    shutil.move(folder, folder.with_name("inside"))
    for path in inner:
        shutil.copytree(folder.with_name("inside"), folder / path)


def config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "GGUF alone": (
        lambda f: alone(f, "small-q4_k_m.gguf"),
        rf"another format than safetensors \('.*/small-q4_k_m.gguf'\)\. {SAFETENSORS}, or one of its GGUF files",
    ),
    "GGUF and config": (lambda f: without_weights(f, "small.gguf"), r"another format .*small\.gguf"),
    "ONNX": (lambda f: without_weights(f, "onnx/model.onnx"), rf"another format .*onnx/model.onnx.*{SAFETENSORS}"),
    "MLX": (lambda f: without_weights(f, "weights.npz"), "another format"),
    "quantised by MLX": (lambda f: config(f, quantization={"bits": 4, "group_size": 64}), "is quantised for MLX"),
    "Flax": (lambda f: without_weights(f, "flax_model.msgpack"), "another format"),
    "pickles of Meta's": (lambda f: alone(f, "consolidated.00.pth"), "another format"),
    "an adapter": (lambda f: (alone(f, "x"), adapter(f)), r"is an adapter of 'org/base' .*Give that"),
    "weights and an adapter": (adapter, r"both a model's weights and an adapter \(adapter_config.json\)"),
    "one level too high": (lambda f: higher(f, "checkpoint-9"), r"has no config.json, but the folder '.*checkpoint-9'"),
    "the Hub's cache": (
        lambda f: higher(f, "snapshots/0a", "snapshots/0b"),
        r"'.*snapshots/0a'.*\(and 1 more\)",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json: it is no model"),
    "nothing": (lambda f: alone(f, "notes.txt"), "has no config.json: it is no model"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_is_something_else(saved: Path, tmp_path: Path, kind: str) -> None:
    make, message = FOLDERS[kind]
    folder = Path(shutil.copytree(saved, tmp_path / "tiny"))
    make(folder)
    for reader in (load_model, load_skeleton, checkpoint_directory):
        with pytest.raises(ModelError, match=message) as caught:
            reader(str(folder))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("a.gguf", "is a file, .*begins with GGUF"),
        ("sha256-0a", "is not a sound GGUF file"),  # as Ollama names it
        ("v.safetensors", "is a file, and a model is a directory"),
    ],
)
def test_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, message: str) -> None:
    (tmp_path / file).write_bytes(b"GGUF" if "sound" in message else b"")
    monkeypatch.chdir(tmp_path)
    for name in (file, f"./{file}", str(tmp_path / file)):
        with pytest.raises(ModelError, match=message):
            load_model(name)


def test_weights_alone_and_adapters_are_taken_where_they_are_meant(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "weights"))
    (folder / "config.json").unlink()
    lora = tmp_path / "lora"
    lora.mkdir()
    adapter(lora)
    for path in (folder, lora):
        assert checkpoint_directory(str(path), weights_alone=True) == path
    adapter(folder)
    with pytest.raises(ModelError, match="both a model's weights and an adapter"):
        checkpoint_directory(str(folder), weights_alone=True)


def test_an_adapter_that_came_along_with_the_weights_is_noticed(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from the Hub, whose folders are not looked at before."""
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "_hf_peft_config_loaded", True)
    with pytest.raises(ModelError, match="both a model's weights and an adapter"):
        load_model(str(saved), device="cpu")
