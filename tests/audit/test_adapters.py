"""An adapter as the other side, and LoRAs of others merged with PEFT."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from planted_edits import plant, tiny_base
from safetensors.torch import load_file, save_file

from steer2edit.artifacts import save_edit
from steer2edit.audit import audit
from steer2edit.core import WeightEdit
from steer2edit.errors import ArtifactError, MismatchError
from steer2edit.models import LanguageModel

MODULES = ["q_proj", "v_proj", "o_proj"]


def lora(directory: Path, family: str = "llama", **settings: object) -> LanguageModel:
    """A random LoRA of rank 4 in `adapter`, its base in `base`, and the merged model in `merged`."""
    model = tiny_base(directory / "base", family)
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": MODULES, **settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model.network, config)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        wrapped.save_pretrained(directory / "adapter")
        merged = wrapped.merge_and_unload()
    merged.save_pretrained(directory / "merged")
    return LanguageModel(merged)


def test_merged_lora_is_of_its_rank(tmp_path: Path) -> None:
    lora(tmp_path)
    found = audit(str(tmp_path / "base"), tmp_path / "merged")
    assert found.classification.label == "low-rank"
    assert [change.rank for change in found.changes] == [4] * 9
    assert "rank 4 in" in found.classification.sentence
    assert all(name in found.classification.sentence for name in MODULES)


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"alpha_pattern": {"o_proj": 2}, "rank_pattern": {"q_proj": 2}}]
)
def test_an_adapter_is_what_it_becomes_when_merged(settings: dict[str, object], tmp_path: Path) -> None:
    lora(tmp_path, **settings)
    merged, adapter = (audit(str(tmp_path / "base"), tmp_path / name) for name in ("merged", "adapter"))
    assert adapter.is_adapter
    assert {c.name: c.rank for c in adapter.changes} == {c.name: c.rank for c in merged.changes}
    for one, other in zip(adapter.changes, merged.changes, strict=True):
        assert one.size == pytest.approx(other.size, rel=2e-3)
    assert adapter.notes == ()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_oss", "qwen3_moe", "granitemoehybrid", "laguna"])
def test_own_adapter_matches_its_edit(family: str, tmp_path: Path) -> None:
    planted = plant(tmp_path, family, torch.float32, strength=0.0)
    model = LanguageModel(planted.model.network, name=str(planted.base))
    sites = {
        site: type(edit)(
            *(getattr(edit, n) for n in ("output_direction", "row", "magnitude", "importance")), model.sites[site].sizes
        )
        for site, edit in planted.edit.sites.items()
    }
    save_edit(model, WeightEdit(sites, {}), tmp_path / "edit")
    found = audit(str(planted.base), tmp_path / "edit", WeightEdit(sites, {}))
    assert found.notes == ()
    assert found.classification.label == "steer2edit-like"
    assert found.match is not None
    assert (
        found.match.sentence
        == f"Matches the given edit at strength 1, in all {len(sites)} sites. Nothing else changed."
    )
    for site, own in found.sites.items():
        assert (own.magnitude - planted.magnitudes[site]).abs().max() < 1e-4


def test_adapters_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    lora(tmp_path)
    config = tmp_path / "adapter" / "adapter_config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "use_dora": True}))
    with pytest.raises(ArtifactError, match="use_dora"):
        audit(str(tmp_path / "base"), tmp_path / "adapter")
    config.write_text(json.dumps(content))
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if key.endswith("lora_B.weight"))
    save_file({**tensors, key: torch.ones(7, 4)}, path, {"format": "pt"})
    with pytest.raises(MismatchError, match="made for another model"):
        audit(str(tmp_path / "base"), tmp_path / "adapter")
    save_file({name: tensor for name, tensor in tensors.items() if name != key}, path, {"format": "pt"})
    with pytest.raises(ArtifactError, match="only one of the factors"):
        audit(str(tmp_path / "base"), tmp_path / "adapter")


def test_peft_loads_the_adapter_of_these_tests(tmp_path: Path) -> None:
    """The oracle's own check: what is audited is what PEFT merges."""
    lora(tmp_path)
    network = tiny_base(tmp_path / "again").network
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = PeftModel.from_pretrained(network, tmp_path / "adapter").merge_and_unload()
    expected = load_file(tmp_path / "merged" / "model.safetensors")
    for name, tensor in merged.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
