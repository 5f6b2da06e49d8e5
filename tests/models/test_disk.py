"""Layers on the disk: vectors and edits of the model in memory, bit for bit; each layer read once for all prompts."""

import gc
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate.utils.offload import OffloadedWeightsLoader
from greenlet import greenlet
from safetensors import SafetensorError

from families import tiny_network
from steer2edit.core import SteeringVectors
from steer2edit.editing import convert, merged
from steer2edit.errors import ModelError
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import LanguageModel, encode_responses, load_model, span_means
from steer2edit.steering.contrast import Contrast, ContrastSet
from steer2edit.steering.extract import extract
from tiny_chat import tiny_tokenizer

_PROMPTS = ["How do I bake bread?", "one", "two\n\n", "tell me a joke", "What is it?"]
PAIRS = [tuple((p, r + p) for p in _PROMPTS) for r in ("I'm sorry, but", "Mix the flour. ")]
CONTRAST = ContrastSet("tiny", {"train": Contrast(*PAIRS), "validation": Contrast(PAIRS[0][:2], PAIRS[1][:2])}, {})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEER2EDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each tensor was read from the disk."""
    counts: Counter[str] = Counter()
    read = OffloadedWeightsLoader.__getitem__

    def counted(self: OffloadedWeightsLoader, key: str) -> torch.Tensor:
        counts[key] += 1
        return read(self, key)

    monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", counted)
    return counts


def saved(folder: Path, family: str) -> tuple[LanguageModel, LanguageModel]:
    """The model in memory, and on the disk."""
    tiny_network(family, vocab_size=len(tiny_tokenizer()), max_position_embeddings=512).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return tuple(load_model(str(folder), dtype="float32", device=device) for device in ("cpu", "disk"))


def tensors(vectors: SteeringVectors) -> dict[str, torch.Tensor]:
    found = {}
    for site, means in vectors.sites.items():
        found |= {f"{site} v": means.steering_vector, f"{site} x": means.input.midpoint}
    return found


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe", "mixtral"])
def test_vectors_and_edits_are_those_of_the_model_in_memory(family: str, tmp_path: Path) -> None:
    memory, disk = saved(tmp_path / "model", family)
    assert all(parameter.is_meta for parameter in disk.layers.parameters())
    assert disk.fingerprint == memory.fingerprint
    one, other = (extract(model, CONTRAST, batch_tokens=64) for model in (memory, disk))
    assert tensors(one).keys() == tensors(other).keys()
    assert all(torch.equal(value, tensors(other)[name]) for name, value in tensors(one).items())
    assert one.diagnosis == other.diagnosis
    budget = Hyperparameters(rho_attn=0.2, rho_mlp=0.2, alpha=0.5)
    edits = [convert(m, v, budget, force=True) for m, v in ((memory, one), (disk, other))]
    assert edits[0].digest() == edits[1].digest()
    assert all(parameter.is_meta for parameter in disk.layers.parameters())
    lost = r"is on the disk \(--device disk\), .*steer2edit apply"
    with pytest.raises(ModelError, match=lost), merged(disk, edits[1]):
        pass


def test_each_layer_is_read_once_for_all_batches(tmp_path: Path, reads: Counter[str]) -> None:
    _, disk = saved(tmp_path / "model", "llama")
    reads.clear()
    encoded = encode_responses(disk, [pair for pairs in PAIRS for pair in pairs])
    found = list(span_means(disk, encoded, batch_tokens=64))
    assert len(found) > 3 * 3  # more than three batches, for each of three layers
    assert {len(means.sites) for means in found} == {2}
    weights = {name for name, _ in disk.network.named_parameters() if ".layers." in name}
    assert reads == dict.fromkeys(weights, 1)


def test_what_goes_wrong_in_a_batch_is_said_and_ends_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    _, disk = saved(tmp_path / "model", "llama")

    def fails(*arguments: object) -> None:
        raise RuntimeError("out of order")

    handle = disk.layers[1].mlp.register_forward_hook(fails)
    encoded = encode_responses(disk, PAIRS[0])
    with pytest.raises(RuntimeError, match="out of order"):
        list(span_means(disk, encoded, batch_tokens=64))
    handle.remove()
    assert not torch.is_inference_mode_enabled()
    assert not any(one.parent and not one.dead for one in gc.get_objects() if issubclass(type(one), greenlet))
    assert len(list(span_means(disk, encoded, batch_tokens=64))) > 3


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("unable to mmap 9 bytes: Cannot allocate memory (12)")])
def test_a_model_that_memory_does_not_hold(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_network("llama").save_pretrained(tmp_path)

    def fails(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("transformers.modeling_utils.safe_open", fails)
    with pytest.raises(ModelError, match=r"memory does not suffice for the weights of .*--device disk"):
        load_model(str(tmp_path), device="cpu")


@pytest.mark.slow
def test_a_model_of_twice_the_memory_that_the_process_is_given() -> None:
    """2 GB; the benchmark ends with an error where vectors or edits differ, or the limit does not hold in memory."""
    script = Path(__file__).parents[2] / "benchmarks" / "disk.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["equal"]
    assert found["peak_bytes"]["disk"] < found["limit_bytes"] < 0.51 * found["weights_bytes"]


def test_no_place_to_offload_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_network("llama", vocab_size=len(tiny_tokenizer())).save_pretrained(tmp_path / "model")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STEER2EDIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match=r"by way of '.*file/cache': .*Not a directory.*Set STEER2EDIT_CACHE to a"):
        load_model(str(tmp_path / "model"), device="disk")


def test_a_full_cache_loses_nothing_that_is_in_it(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_network("llama", vocab_size=len(tiny_tokenizer())).save_pretrained(tmp_path / "model")
    cache.mkdir(exist_ok=True)
    (cache / "mine.txt").write_text("keep me")

    def full(**options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("steer2edit.models.loading.tempfile.mkdtemp", full)
    with pytest.raises(ModelError, match=r"No space left on device.*Set STEER2EDIT_CACHE"):
        load_model(str(tmp_path / "model"), device="disk")
    assert (cache / "mine.txt").read_text() == "keep me"


def test_a_full_offload_folder(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts that the model has fused are written anew."""
    tiny_network("mixtral", vocab_size=len(tiny_tokenizer())).save_pretrained(tmp_path / "model")

    def full(*arguments: object, **options: object) -> None:
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr("transformers.integrations.accelerate.save_file", full)
    with pytest.raises(ModelError, match=r"by way of '.*offload-.*': .*No space left on device.*Set STEER2EDIT_CACHE"):
        load_model(str(tmp_path / "model"), device="disk")
    assert list(cache.iterdir()) == []
