"""What is written works for every architecture: plain PEFT and plain transformers give the merged model's logits."""

from pathlib import Path

import pytest
import torch
from artifact_models import logits, random_edit, relative
from peft import PeftModel
from transformers import AutoModelForCausalLM

from families import FAMILIES, tiny_network
from steer2edit.artifacts import CheckpointManifest, load_edit, read_manifest, save_checkpoint, save_edit
from steer2edit.editing import edited, merged
from steer2edit.models import LanguageModel


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_and_checkpoints(tmp_path: Path, family: str) -> None:
    tiny_network(family).save_pretrained(tmp_path / "base")
    model = LanguageModel(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), name=str(tmp_path / "base"))
    save_edit(model, random_edit(model), tmp_path / "edit")
    edit = load_edit(tmp_path / "edit")
    base = logits(model.network)
    with merged(model, edit):
        expected = logits(model.network)
    assert relative(expected, base) > 1e-2
    with edited(model, edit):
        assert relative(logits(model.network), expected) < 1e-4

    save_checkpoint(model, edit, tmp_path / "from-files")
    in_memory = LanguageModel(tiny_network(family))
    save_checkpoint(in_memory, edit, tmp_path / "from-memory")
    for source in ("files", "memory"):
        assert read_manifest(tmp_path / f"from-{source}", CheckpointManifest).source == source
        reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / f"from-{source}", dtype="auto")
        assert reloaded.dtype == torch.float32
        assert torch.equal(logits(reloaded), expected)

    adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "edit")
    assert relative(logits(adapter), expected) < 1e-4
