"""Loading a model: what comes back, and one clear message for everything that can be wrong with a checkpoint."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import save_checkpoint
from transformers.utils import logging

from steer2edit.core import Site
from steer2edit.errors import LayoutError, ModelError
from steer2edit.models import load_model, loading
from steer2edit.models.model_path import GIVE_A_MODEL, model_path
from tiny_gguf import tiny_llama, write_gguf

IDS = torch.arange(3, 3 + 24).view(2, 12)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "tiny"
    save_checkpoint(directory)
    return directory


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def message_of(call: Callable[[], object], kind: type[ModelError] = ModelError) -> str:
    """What a user reads: one paragraph, with no trace of the stack behind it."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "Traceback" not in message
    assert 'File "' not in message
    assert len(message) < 1000
    return message


class TestSuccess:
    def test_a_local_directory(self, saved: Path) -> None:
        original = save_checkpoint(saved.parent / "again")
        model = load_model(str(saved), dtype="float32", device="cpu")
        assert model.name == str(saved)
        assert next(iter(model.sites)) == Site(0, "attn")
        assert model.tokenizer is not None
        assert model.tokenizer("w1 w5")["input_ids"] == [5, 9]
        assert not model.network.training
        assert model.context_length == 128
        loaded = model.network.state_dict()
        assert all(torch.equal(loaded[name], weight.float()) for name, weight in original.state_dict().items())
        with torch.inference_mode():
            assert bool(model.network(input_ids=IDS).logits.isfinite().all())

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_dtype_by_name(self, saved: Path, dtype: str) -> None:
        model = load_model(str(saved), dtype=dtype, device="cpu")
        assert {p.dtype for p in model.network.parameters()} == {getattr(torch, dtype)}

    @pytest.mark.parametrize(
        ("stored", "arithmetic", "expected"),
        [
            (torch.bfloat16, True, torch.bfloat16),
            (torch.bfloat16, False, torch.float32),
            (torch.float16, True, torch.bfloat16),
            (torch.float32, True, torch.float32),
        ],
        ids=str,
    )
    def test_dtype_auto_on_a_cpu(
        self,
        stored: torch.dtype,
        arithmetic: bool,
        expected: torch.dtype,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: arithmetic)
        save_checkpoint(tmp_path, stored)
        assert load_model(str(tmp_path), device="cpu").dtype == expected

    @pytest.mark.parametrize("device", ["auto", "cpu", "balanced"])
    def test_device(self, saved: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        assert load_model(str(saved), device=device).device.type == "cpu"

    def test_what_auto_means_on_other_machines(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        assert loading.device_map("auto") == "mps"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        assert loading.device_map("auto") == "cuda"
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert loading.device_map("auto") == "auto"  # accelerate spreads the model if it has to
        assert loading.device_map("cuda:1") == "cuda:1"

    @pytest.mark.parametrize("shown", [True, False])
    def test_the_progress_bars_of_transformers_are_as_they_were(self, saved: Path, shown: bool) -> None:
        before = logging.is_progress_bar_enabled()
        try:
            (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
            load_model(str(saved), device="cpu")
            assert logging.is_progress_bar_enabled() == shown
        finally:
            (logging.enable_progress_bar if before else logging.disable_progress_bar)()

    def test_several_shards(self, tmp_path: Path) -> None:
        save_checkpoint(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        assert len(load_model(str(tmp_path), device="cpu").sites) == 6

    def test_a_layout_file(self, saved: Path, tmp_path: Path) -> None:
        path = tmp_path / "own.toml"
        path.write_text('[own]\nlayers = "model.layers"\nattn = "self_attn.o_proj"\nmlp = "mlp.down_proj"\n')
        model = load_model(str(saved), device="cpu", layout=path)
        assert model.layout is not None
        assert model.layout.name == "own"


class TestNames:
    def test_a_directory_that_is_not_there(self, tmp_path: Path) -> None:
        for name in (str(tmp_path / "nowhere"), "./nowhere", "~/nowhere-at-all"):
            assert message_of(lambda name=name: load_model(name)) == (f"there is no model {name!r}. {GIVE_A_MODEL}")

    def test_a_file(self, saved: Path) -> None:
        message = message_of(lambda: load_model(str(saved / "model.safetensors")))
        assert "is a file, and a model is a directory" in message

    @pytest.mark.parametrize("name", ["", "a b", "org/name/more/still"])
    def test_what_is_no_name_at_all(self, name: str) -> None:
        message = message_of(lambda: load_model(name))
        assert message.startswith(f"cannot load the model {name!r}: ")
        assert "or smollm2" in message

    def test_a_hub_id_that_cannot_be_reached(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        message = message_of(lambda: load_model("no-such-org/no-such-model"))
        assert message.startswith("cannot load the model 'no-such-org/no-such-model': ")
        assert "a Hub id that can be reached" in message

    def test_smollm2_without_its_package_is_its_hub_id(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert model_path("smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"

    def test_smollm2_is_the_file_of_its_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        monkeypatch.setenv("STEER2EDIT_CACHE", str(tmp_path / "cache"))
        write_gguf(tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf", tiny_llama())
        first, second = load_model("smollm2", device="cpu"), load_model("SmolLM2", device="cpu")
        assert first.name == "smollm2"
        assert first.fingerprint == second.fingerprint
        assert len(list((tmp_path / "cache").iterdir())) == 1


class TestSettings:
    @pytest.mark.parametrize(("dtype", "near"), [("bf16", "bfloat16"), ("float8", "float32"), ("half", None)])
    def test_an_unknown_dtype(self, saved: Path, dtype: str, near: str | None) -> None:
        message = message_of(lambda: load_model(str(saved), dtype=dtype, device="cpu"))
        suggestion = f"Did you mean {near!r}? " if near else ""
        assert f"unknown dtype {dtype!r}. {suggestion}Known: auto, bfloat16, float16, float32." in message

    def test_an_unknown_dtype_is_not_the_models_fault(self, saved: Path) -> None:
        assert "cannot load the model" not in message_of(lambda: load_model(str(saved), dtype="bf16", device="cpu"))

    @pytest.mark.parametrize("device", ["gpu", "tpu", "", "cuda:x"])
    def test_an_unknown_device(self, saved: Path, device: str) -> None:
        message = message_of(lambda: load_model(str(saved), device=device))
        assert message.startswith(f"unknown device {device!r}. ")
        assert message.endswith("Known: auto, balanced, cpu, cuda, disk, mps.")

    @pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", "meta"])
    def test_a_device_that_is_not_there(self, saved: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        message = message_of(lambda: load_model(str(saved), device=device))
        assert message == f"device {device!r} is not available on this machine. Use --device cpu or auto."

    def test_a_layout_file_that_is_not_there(self, saved: Path, tmp_path: Path) -> None:
        message = message_of(lambda: load_model(str(saved), device="cpu", layout=tmp_path / "no.toml"), LayoutError)
        assert message.startswith("cannot read a layout from")


def config_with(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


class TestDamage:
    def test_no_config(self, checkpoint: Path) -> None:
        (checkpoint / "config.json").unlink()
        assert "has no config.json: it is no model" in message_of(lambda: load_model(str(checkpoint)))

    @pytest.mark.parametrize("content", ["{", "", "[]", "{}", "null"])
    def test_a_config_that_is_none(self, checkpoint: Path, content: str) -> None:
        (checkpoint / "config.json").write_text(content)
        assert "cannot load the model" in message_of(lambda: load_model(str(checkpoint)))

    def test_an_unknown_architecture(self, checkpoint: Path) -> None:
        config_with(checkpoint, model_type="frobnicator", architectures=["FrobForCausalLM"])
        assert "frobnicator" in message_of(lambda: load_model(str(checkpoint)))

    def test_a_config_with_a_wrong_type(self, checkpoint: Path) -> None:
        config_with(checkpoint, hidden_size="big")
        assert "hidden_size" in message_of(lambda: load_model(str(checkpoint)))

    def test_a_config_of_another_shape(self, checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
        config_with(checkpoint, intermediate_size=64)
        assert "cannot load the model" in message_of(lambda: load_model(str(checkpoint), device="cpu"))

    def test_missing_weights(self, checkpoint: Path) -> None:
        config_with(checkpoint, num_hidden_layers=4)
        assert "model.layers.3" in message_of(lambda: load_model(str(checkpoint), device="cpu"))

    def test_no_weights(self, checkpoint: Path) -> None:
        (checkpoint / "model.safetensors").unlink()
        assert "model.safetensors" in message_of(lambda: load_model(str(checkpoint), device="cpu"))

    @pytest.mark.parametrize("keep", [0, 4, 100, -1], ids=["empty", "header", "header cut", "one byte short"])
    def test_truncated_weights(self, checkpoint: Path, keep: int) -> None:
        path = checkpoint / "model.safetensors"
        path.write_bytes(path.read_bytes()[:keep])
        message = message_of(lambda: load_model(str(checkpoint), device="cpu"))
        assert f"cannot load the model {str(checkpoint)!r}" in message
        assert ". Give a directory with config.json" in message
        assert ".. " not in message

    def test_weights_that_are_something_else(self, checkpoint: Path) -> None:
        (checkpoint / "model.safetensors").write_bytes(b"<!DOCTYPE html>" * 100)
        assert "cannot load the model" in message_of(lambda: load_model(str(checkpoint), device="cpu"))

    def test_a_missing_shard(self, tmp_path: Path) -> None:
        save_checkpoint(tmp_path, max_shard_size="20KB")
        sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
        assert "cannot load the model" in message_of(lambda: load_model(str(tmp_path), device="cpu"))

    def test_no_tokenizer(self, checkpoint: Path) -> None:
        for path in checkpoint.glob("tokenizer*"):
            path.unlink()
        assert "tokenizer" in message_of(lambda: load_model(str(checkpoint), device="cpu"))

    @pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
    def test_a_damaged_tokenizer(self, checkpoint: Path, name: str) -> None:
        (checkpoint / name).write_text("{")
        assert "cannot load the model" in message_of(lambda: load_model(str(checkpoint), device="cpu"))

    def test_an_encoder(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "t5", "architectures": ["T5EncoderModel"]}')
        assert "cannot load the model" in message_of(lambda: load_model(str(tmp_path), device="cpu"))

    def test_code_in_a_checkpoint_is_not_run(self, checkpoint: Path) -> None:
        (checkpoint / "evil.py").write_text("raise SystemExit('code of the checkpoint ran')\n")
        config_with(checkpoint, model_type="evil", auto_map={"AutoConfig": "evil.E", "AutoModelForCausalLM": "evil.E"})
        assert "contains custom code" in message_of(lambda: load_model(str(checkpoint), device="cpu"))
