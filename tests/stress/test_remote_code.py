"""A model whose checkpoint brings its own code, which the user lets run: tests that load it again let it run too."""

import json
from pathlib import Path

import pytest

from steer2edit.models import LanguageModel, load_model
from steer2edit.stress.persistence.treatments import saved
from steer2edit.stress.weight_attacks.recovery import recover_edit
from stress.test_persistence import subject_of
from stress.tiny_stress import random_vectors, tiny_edit
from tiny_chat import tiny_chat_model

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own_stress_probe"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def model(tmp_path: Path) -> LanguageModel:
    directory = tmp_path / "own"
    made = tiny_chat_model(num_hidden_layers=2)
    made.network.save_pretrained(directory)
    assert made.tokenizer is not None
    made.tokenizer.save_pretrained(directory)
    (directory / "own.py").write_text(CODE)
    config = json.loads((directory / "config.json").read_text())
    config |= {
        "model_type": "own_stress_probe",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    }
    (directory / "config.json").write_text(json.dumps(config))
    return load_model(str(directory), device="cpu", trust_remote_code=True)


def test_saved_and_loaded(model: LanguageModel, tmp_path: Path) -> None:
    assert type(model.network).__name__ == "OwnForCausalLM"
    folder = tmp_path / "work"
    folder.mkdir()
    subject = subject_of(folder, model)
    result = saved(subject)
    assert result.facts["adapter_as_saved"]
    assert result.facts["checkpoint_matrices_that_differ"] == 0
    assert result.replies["edit, adapter"] == result.replies["edit"]


def test_read_back(model: LanguageModel, tmp_path: Path) -> None:
    edit = tiny_edit(model, random_vectors(model))
    found = recover_edit(model, edit, 1.0, tmp_path)
    assert all(found.sites)
    assert len(found.sites) == len(edit.sites)
