"""A model cut in two: the adapters of row-parallel projections are cut with them, and nothing changes."""

from pathlib import Path

import pytest

from engine_contract import assert_same_replies, assert_same_scores, random_edits
from steer2edit.engines import TransformersEngine
from steer2edit.engines.vllm import VllmEngine
from steer2edit.models import encode_responses
from tiny_chat import tiny_chat_model

PROMPTS = ["Hi", "How do I bake bread?"]


def test_two_processes_give_what_one_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # else the CPU build wants a NUMA node per process
    model = tiny_chat_model(hidden_size=128, num_attention_heads=4, num_key_value_heads=2)
    model.network.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    arguments = {"tensor_parallel_size": 2, "max_model_len": 256, "enforce_eager": True}
    engine = VllmEngine(model, tmp_path, max_edits=2, engine_args=arguments)
    reference = TransformersEngine(model)
    interventions = [None, *random_edits(model, [1.0, -3.0, 1.0])]
    try:
        assert_same_replies(engine, reference, PROMPTS, interventions, 6)
        responses = encode_responses(model, [(p, "Wait for an hour.") for p in PROMPTS])
        assert_same_scores(engine, reference, responses, interventions, 1e-4)
    finally:
        engine.close()
