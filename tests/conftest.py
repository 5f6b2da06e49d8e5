"""Settings of all tests."""

from pathlib import Path

import pytest
from hypothesis import settings

from tiny_chat import tiny_chat_model

# the same examples every time, and no deadline: the machines that run this are of any speed
settings.register_profile("few", deadline=None, derandomize=True, max_examples=15)
settings.register_profile("many", deadline=None, max_examples=200)
settings.load_profile("few")


@pytest.fixture
def tiny_smollm2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny checkpoint that `smollm2` means for a while."""
    directory = tmp_path / "tiny"
    model = tiny_chat_model(num_hidden_layers=2, max_position_embeddings=2048)
    model.network.save_pretrained(directory)
    assert model.tokenizer is not None
    model.tokenizer.save_pretrained(directory)
    monkeypatch.setattr("steer2edit.models.model_path.embedded_file", lambda name: None)
    monkeypatch.setattr("steer2edit.models.model_path.HUB_ID", str(directory))
    return directory
