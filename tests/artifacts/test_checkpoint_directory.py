import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from artifact_models import logits, random_edit, tiny_network
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from steer2edit.artifacts import CheckpointManifest, apply_to_files, read_manifest
from steer2edit.core import Site, WeightEdit
from steer2edit.editing import merged
from steer2edit.errors import ArtifactError, InvalidValueError, MismatchError
from steer2edit.models import LanguageModel


def load_all(directory: Path) -> dict[str, torch.Tensor]:
    return {k: t for path in directory.glob("model*.safetensors") for k, t in load_file(path).items()}


def expected_weight(
    weight: torch.Tensor, edit: WeightEdit, site: Site, strength: float, transposed: bool
) -> torch.Tensor:
    """W + strength · u aᵀ in float32, rounded once to W's dtype."""
    u, a = edit.sites[site].output_direction, edit.sites[site].row
    change = strength * (u[:, None] * a[None, :])
    return (weight.float() + (change.T if transposed else change)).to(weight.dtype)


def require_only_edited_differ(
    base: dict[str, torch.Tensor], found: dict[str, torch.Tensor], edit: WeightEdit, names: dict[str, Site],
    strength: float = 1.0, transposed: bool = False,
) -> None:  # fmt: skip
    assert found.keys() == base.keys()
    for name, tensor in base.items():
        assert found[name].dtype == tensor.dtype
        if name in names:
            assert torch.equal(found[name], expected_weight(tensor, edit, names[name], strength, transposed))
            assert not torch.equal(found[name], tensor)
        else:
            assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8))


def weight_names(model: LanguageModel, edit: WeightEdit) -> dict[str, Site]:
    return {f"{model.sites[site].name}.weight": site for site in edit.sites}


def add_tokenizer(directory: Path) -> None:
    tokenizer = Tokenizer(WordLevel({"<unk>": 0, "hello": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(directory)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A bf16 checkpoint in several shards, with a tokenizer and what else lies in such directories."""
    directory = tmp_path / "base"
    tiny_network("llama").bfloat16().save_pretrained(directory, max_shard_size="4KB")
    add_tokenizer(directory)
    (directory / "LICENSE").write_text("free")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool.jinja").write_text("{{ x }}")
    (directory / "pytorch_model.bin").write_bytes(b"unedited weights")
    (directory / "pytorch_model.bin.index.json").write_text("{}")
    (directory / ".cache").mkdir()
    assert len(list(directory.glob("*.safetensors"))) > 3
    return directory


def load(directory: Path, dtype: torch.dtype = torch.float32) -> LanguageModel:
    network = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    return LanguageModel(network, AutoTokenizer.from_pretrained(directory), name=str(directory))


@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_files_of_the_base_with_only_edited_tensors_changed(tmp_path: Path, base: Path, strength: float) -> None:
    model = load(base)
    edit = random_edit(model)
    edit = WeightEdit({s: e for s, e in edit.sites.items() if s != Site(0, "mlp")}, edit.metadata)
    apply_to_files(str(base), [(edit, strength)], tmp_path / "out")
    left_out = {"pytorch_model.bin", "pytorch_model.bin.index.json", ".cache"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in base.iterdir()} - left_out | {
        "steer2edit.json"
    }
    rewritten = set()
    for path in base.glob("*.safetensors"):
        with safe_open(path, "pt") as before, safe_open(tmp_path / "out" / path.name, "pt") as after:
            assert set(before.keys()) == set(after.keys())
            assert before.metadata() == after.metadata() == {"format": "pt"}
        if path.read_bytes() != (tmp_path / "out" / path.name).read_bytes():
            rewritten.add(path.name)
    names = weight_names(model, edit)
    require_only_edited_differ(load_all(base), load_all(tmp_path / "out"), edit, names, strength)
    weight_map = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    assert rewritten == {weight_map[name] for name in names}
    for name in ("config.json", "generation_config.json", "tokenizer.json", "LICENSE", "model.safetensors.index.json",
                 "additional_chat_templates/tool.jinja"):  # fmt: skip
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    reference = load(base, torch.bfloat16)
    with merged(reference, edit, strength):
        expected = logits(reference.network)
    assert torch.equal(logits(load(tmp_path / "out", torch.bfloat16).network), expected)
    manifest = read_manifest(tmp_path / "out", CheckpointManifest)
    assert (manifest.source, set(manifest.not_copied)) == ("files", left_out)
    assert {name: record.file for name, record in manifest.edited_tensors.items()} == {n: weight_map[n] for n in names}
    found = load_all(tmp_path / "out")
    for name, record in manifest.edited_tensors.items():
        assert record.sha256 == hashlib.sha256(found[name].view(torch.uint8).numpy().tobytes()).hexdigest()
        assert (record.site, record.projections) == (str(names[name]), [name.removesuffix(".weight")])
    assert manifest.base.fingerprint == model.fingerprint
    (applied,) = manifest.edits
    assert (applied.strength, applied.edit, applied.sha256) == (strength, edit.metadata, edit.digest())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_files_as_transformers_saves_them(tmp_path: Path, build: Callable[[str], LanguageModel], kind: str) -> None:
    model = build(kind)
    model.network.bfloat16().save_pretrained(tmp_path / "base")
    add_tokenizer(tmp_path / "base")
    edit = random_edit(model)
    apply_to_files(str(tmp_path / "base"), [(edit, 1.0)], tmp_path / "out")
    base, found = load_all(tmp_path / "base"), load_all(tmp_path / "out")
    require_only_edited_differ(base, found, edit, weight_names(model, edit), transposed=kind == "gpt2")
    # not `model`: .bfloat16() also rounded its rotary frequencies, which loading does not
    reference = load(tmp_path / "base", torch.bfloat16)
    with merged(reference, edit):
        expected = logits(reference.network)
    assert torch.equal(logits(load(tmp_path / "out", torch.bfloat16).network), expected)


def test_conv1d_tied_weights_and_names_without_prefix(tmp_path: Path) -> None:
    tiny_network("gpt2").save_pretrained(tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    assert "lm_head.weight" not in tensors  # tied
    old_names = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}  # as on the Hub
    save_file(old_names, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    add_tokenizer(tmp_path / "base")
    model = load(tmp_path / "base")
    edit = random_edit(model)
    assert apply_to_files(str(tmp_path / "base"), [(edit, 1.0)], tmp_path / "out").source == "files"
    names = {name.removeprefix("transformer."): site for name, site in weight_names(model, edit).items()}
    require_only_edited_differ(old_names, load_all(tmp_path / "out"), edit, names, transposed=True)
    with merged(model, edit):
        expected = logits(model.network)
    assert torch.equal(logits(load(tmp_path / "out").network), expected)


def test_files_in_the_hub_cache(tmp_path: Path, base: Path) -> None:
    repository, commit = tmp_path / "hub" / "models--org--name", "c" * 40
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(filter(Path.is_file, base.iterdir())):
        (repository / "blobs" / str(number)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")  # as the Hub cache keeps them
    model = load(base)
    edit = random_edit(model)
    assert apply_to_files(str(snapshot), [(edit, 1.0)], tmp_path / "out").base.revision == commit
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    require_only_edited_differ(load_all(base), load_all(tmp_path / "out"), edit, weight_names(model, edit))
    next(snapshot.glob("*-of-*.safetensors")).unlink()  # a shard is not in the cache
    with pytest.raises(ArtifactError, match="is missing"):
        apply_to_files(str(snapshot), [(edit, 1.0)], tmp_path / "again")


@pytest.mark.parametrize("stage", ["write_manifest", "find_side_files"])
def test_ctrl_c_leaves_nothing(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"steer2edit.artifacts.checkpoints.checkpoint.{stage}", interrupted)
    with pytest.raises(KeyboardInterrupt):
        apply_to_files(str(base), [(random_edit(load(base)), 1.0)], tmp_path / "made" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_base_directory_is_untouched(tmp_path: Path, base: Path) -> None:
    before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    edit = random_edit(load(base))
    apply_to_files(str(base), [(edit, 1.0)], tmp_path / "out")
    assert before == {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    with pytest.raises(ArtifactError, match="exists already"):
        apply_to_files(str(base), [(edit, 1.0)], base)


def test_refusals(tmp_path: Path, base: Path) -> None:
    edit, out = random_edit(load(base)), tmp_path / "out"
    with pytest.raises(InvalidValueError, match="strength must be a finite number, got nan"):
        apply_to_files(str(base), [(edit, float("nan"))], out)
    changed = tiny_network("llama")
    changed.model.layers[0].mlp.down_proj.weight.data += 1
    changed.save_pretrained(tmp_path / "other")
    with pytest.raises(MismatchError, match="fingerprint"):
        apply_to_files(str(tmp_path / "other"), [(edit, 1.0)], out)
    assert not out.exists()
    apply_to_files(str(tmp_path / "other"), [(edit, 1.0)], out, allow_mismatch=True)
    with pytest.raises(ArtifactError, match="exists already"):
        apply_to_files(str(base), [(edit, 1.0)], out)
    apply_to_files(str(base), [(edit, 1.0)], out, overwrite=True)
    assert read_manifest(out, CheckpointManifest).base.fingerprint == load(base).fingerprint
