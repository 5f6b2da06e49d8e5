"""A base whose weights are in `pytorch_model.bin`: as with safetensors, only edited tensors change, in their dtype."""

import json
from pathlib import Path

import pytest
import torch
from artifact_models import random_edit, tiny_network
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from steer2edit.artifacts import apply_to_files, open_base, verify_checkpoint
from steer2edit.core import Site, WeightEdit
from steer2edit.errors import ArtifactError
from steer2edit.models import LanguageModel

Tensors = dict[str, torch.Tensor]
BESIDE = {"LICENSE": "free", "preprocessor_config.json": "{}", "modeling_own.py": "print()", "README.md": "# it"}


def pickled(directory: Path, *, shards: int = 1, legacy: bool = False) -> tuple[LanguageModel, Tensors]:
    """A float16 checkpoint with an integer and a float32 tensor in it, its model, and its tensors."""
    network = tiny_network("gpt2").half()
    network.config.dtype = torch.float16
    network.save_pretrained(directory)
    words = Tokenizer(WordLevel({"<unk>": 0, "hello": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(directory)
    (directory / "model.safetensors").unlink()
    tensors = dict(network.state_dict())  # lm_head and the embedding share their memory
    tensors["transformer.h.0.attn.bias"] = torch.arange(5)
    tensors["transformer.h.1.attn.masked_bias"] = torch.tensor(-1e4)
    names = sorted(tensors)
    parts = [names[number::shards] for number in range(shards)]
    files = [
        f"pytorch_model-{n + 1:05}-of-{shards:05}.bin" if shards > 1 else "pytorch_model.bin" for n in range(shards)
    ]
    for file, part in zip(files, parts, strict=True):
        content = {name: tensors[name] for name in part}
        torch.save(content, directory / file, _use_new_zipfile_serialization=not legacy)
    if shards > 1:
        weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name, text in BESIDE.items():
        (directory / name).write_text(text)
    return LanguageModel(network, name=str(directory)), tensors


def written(directory: Path) -> Tensors:
    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}


def one_site(model: LanguageModel, seed: int = 1) -> WeightEdit:
    edit = random_edit(model, seed)
    return WeightEdit({Site(1, "attn"): edit.sites[Site(1, "attn")]}, edit.metadata)


EDITED = "transformer.h.1.attn.c_proj.weight"


def require_only_edited(before: Tensors, after: Tensors, *edits: tuple[WeightEdit, float]) -> None:
    assert after.keys() == before.keys()
    assert {name for name in before if after[name].dtype != before[name].dtype} == set()
    differing = [name for name in before if not torch.equal(before[name], after[name])]
    assert differing == [EDITED]
    sites = [(edit.sites[Site(1, "attn")], strength) for edit, strength in edits]
    change = sum(strength * torch.outer(site.row, site.output_direction) for site, strength in sites)  # Conv1D: Wᵀ
    assert torch.equal(after[EDITED], (before[EDITED].float() + change).half())


@pytest.mark.parametrize(("shards", "legacy"), [(1, False), (1, True), (3, False)])
def test_only_edited_tensors_change(tmp_path: Path, shards: int, legacy: bool) -> None:
    model, before = pickled(tmp_path / "base", shards=shards, legacy=legacy)
    edit = one_site(model)
    manifest = apply_to_files(str(tmp_path / "base"), [(edit, 0.5)], tmp_path / "out")
    require_only_edited(before, written(tmp_path / "out"), (edit, 0.5))
    for name in (*BESIDE, "config.json", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "base" / name).read_bytes()
    assert all("pytorch_model" in name for name in manifest.not_copied)
    assert len(manifest.not_copied) == (1 if shards == 1 else shards + 1)
    assert (manifest.source, manifest.base.fingerprint) == ("files", model.fingerprint)
    names = {path.name for path in (tmp_path / "out").glob("model[.-]*")}
    if shards == 1:
        assert names == {"model.safetensors"}
    else:
        files = {f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)}
        assert names == {*files, "model.safetensors.index.json"}
        index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in before.values())
    assert open_base(str(tmp_path / "out")).files.tensors.keys() == before.keys()


def test_several_edits_and_the_result_is_verified(tmp_path: Path) -> None:
    model, before = pickled(tmp_path / "base")
    edits = [(one_site(model, 1), 0.5), (one_site(model, 2), -0.25)]
    base = open_base(str(tmp_path / "base"))
    apply_to_files(base, edits, tmp_path / "out")
    require_only_edited(before, written(tmp_path / "out"), *edits)
    assert verify_checkpoint(base, edits, tmp_path / "out") == len(before)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": torch.zeros(1).expand(2**40)}, "does not hold plain tensors"),  # four terabytes, if it were written
        ({"x": torch.eye(2).to_sparse()}, "does not hold plain tensors"),
        ({"state_dict": {"x": torch.eye(2)}}, "does not hold plain tensors"),
        ([torch.eye(2)], "does not hold plain tensors"),
        ({"x": Path("x")}, "pickled Python objects"),
    ],
)
def test_what_is_no_checkpoints_file_is_refused(tmp_path: Path, content: object, message: str) -> None:
    model, _ = pickled(tmp_path / "base")
    torch.save(content, tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match=message):
        apply_to_files(str(tmp_path / "base"), [(one_site(model), 1.0)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_index_of_files_that_were_merged_into_one_is_not_copied(tmp_path: Path) -> None:
    network = tiny_network("llama")
    network.save_pretrained(tmp_path / "base")
    index = {"metadata": {}, "weight_map": dict.fromkeys(network.state_dict(), "model-00001-of-00002.safetensors")}
    (tmp_path / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
    edit = random_edit(LanguageModel(network, name="tiny"))
    manifest = apply_to_files(str(tmp_path / "base"), [(edit, 1.0)], tmp_path / "out")
    assert manifest.not_copied == ["model.safetensors.index.json"]
    assert [path.name for path in (tmp_path / "out").glob("model*")] == ["model.safetensors"]
