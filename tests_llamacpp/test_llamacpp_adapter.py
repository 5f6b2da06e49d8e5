"""llama.cpp with our GGUF adapter against transformers with our hook, in float32: the same logits and greedy text."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from llama_cpp import Llama

from engine_contract import random_edits
from steer2edit.artifacts import save_edit
from steer2edit.artifacts.edits.adapter import load_members, read_members, save_combined
from steer2edit.artifacts.exports.export import export_edit
from steer2edit.core import Editing, Intervention
from steer2edit.editing import intervened
from steer2edit.models import LanguageModel, encode_prompts

PROMPTS = ["What is the capital of France?", "Write a short poem about the sea.", "How do I bake bread?"]
TOLERANCE = 1e-3
TOKENS = 24


def llama(base: Path, adapter: Path | None, scale: float = 1.0) -> Llama:
    """In float32 throughout: its cache, too, is in half precision unless told otherwise."""
    return Llama(
        str(base),
        lora_path=None if adapter is None else str(adapter),
        lora_scale=scale,
        n_ctx=128,
        n_threads=1,  # with more, they wait for each other on a busy machine
        n_threads_batch=1,
        logits_all=True,
        verbose=False,
        flash_attn=False,
        type_k=0,
        type_v=0,
    )


def by_llamacpp(engine: Llama, ids: list[int]) -> tuple[torch.Tensor, list[int]]:
    """(logits at every position of the prompt and the reply, the greedy reply)."""
    engine.reset()
    engine.eval(ids)
    reply = []
    for _ in range(TOKENS):
        reply.append(int(np.argmax(engine.scores[engine.n_tokens - 1])))
        engine.eval(reply[-1:])
    return torch.from_numpy(np.array(engine.scores[: engine.n_tokens])), reply


def by_transformers(
    model: LanguageModel, intervention: Intervention, ids: list[int], reply: list[int]
) -> tuple[torch.Tensor, list[int]]:
    """(logits over prompt and reply, the greedy choice after the prompt and after every token of the reply but one)."""
    with torch.inference_mode(), intervened(model, [intervention]):
        logits = model.network(input_ids=torch.tensor([ids + reply])).logits[0]
    return logits, logits[len(ids) - 1 : -1].argmax(dim=-1).tolist()


def require_same(model: LanguageModel, engine: Llama, intervention: Intervention) -> list[list[int]]:
    """If the greedy choice after every token of llama.cpp's reply is its next token, the replies are the same."""
    replies = []
    for ids in encode_prompts(model, PROMPTS):
        found, reply = by_llamacpp(engine, list(ids))
        wanted, greedy = by_transformers(model, intervention, list(ids), reply)
        assert (found - wanted).abs().max() < TOLERANCE
        assert reply == greedy
        replies.append(reply)
    return replies


@pytest.fixture(scope="module")
def editing(model: LanguageModel) -> Editing:
    """Heads and neurons along random directions, strong enough to change the text."""
    (editing,) = random_edits(model, [1.0], rho=0.02)
    return editing


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, model: LanguageModel, editing: Editing) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    save_edit(model, editing.edit, folder / "edit")
    export_edit(folder / "edit", "gguf-lora", [0.5, 1.0], folder / "out", model=model)
    return folder / "out"


def test_the_base_and_both_strengths(model: LanguageModel, base_gguf: Path, exported: Path, editing: Editing) -> None:
    replies = [require_same(model, llama(base_gguf, None), None)]
    for strength in (0.5, 1.0):
        engine = llama(base_gguf, exported / f"edit-strength-{strength:g}.gguf")
        replies.append(require_same(model, engine, Editing(editing.edit, strength)))
    assert all(one[i] != other[i] for one, other in pairwise(replies) for i in range(3))
    assert replies[0] != replies[2]


def test_the_scale_of_llamacpp_is_the_strength(
    model: LanguageModel, base_gguf: Path, exported: Path, editing: Editing
) -> None:
    engine = llama(base_gguf, exported / "edit-strength-1.gguf", scale=0.7)
    require_same(model, engine, Editing(editing.edit, 0.7))


def test_a_combined_edit(tmp_path: Path, model: LanguageModel, base_gguf: Path) -> None:
    """Rank 2: llama.cpp divides by the rank what the file gives as alpha."""
    edits = [editing.edit for editing in random_edits(model, [1.0, 1.0, 1.0], rho=0.04)][1:]
    for index, edit in enumerate(edits):
        save_edit(model, edit, tmp_path / f"edit{index}")
    save_combined(model, read_members([tmp_path / "edit0", tmp_path / "edit1"], [1.0, -0.5]), tmp_path / "both")
    export_edit(tmp_path / "both", "gguf-lora", [1.0], tmp_path / "out", model=model)
    engine = llama(base_gguf, tmp_path / "out" / "both-strength-1.gguf")
    (one, w1), (two, w2) = load_members(tmp_path / "both")
    for ids in encode_prompts(model, PROMPTS):
        found, reply = by_llamacpp(engine, list(ids))
        with intervened(model, [Editing(one, w1)]):
            wanted, greedy = by_transformers(model, Editing(two, w2), list(ids), reply)
        assert (found - wanted).abs().max() < TOLERANCE
        assert reply == greedy
