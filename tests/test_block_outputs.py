"""Block outputs from text to the file of another tool and back: extract, write a control vector, read it again."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from steer2edit.artifacts import load_vectors, read_vectors, save_block_vectors, save_vectors
from steer2edit.models import LanguageModel, encode_responses
from steer2edit.steering.contrast import Contrast, ContrastSet
from steer2edit.steering.extract import extract
from tiny_chat import tiny_chat_model

CONTRAST = ContrastSet(
    "by hand",
    {
        "train": Contrast(
            (("one", "I cannot do that."), ("two", "No."), ("three", "I'm sorry, but I can't help with that.")),
            (("one", "Sure! Here is what I can do:\n\n  - tell you the time"), ("four", "Yes")),
        )
    },
    {},
)


def mean_outputs(model: LanguageModel, pairs: Sequence[tuple[str, str]]) -> list[Tensor]:
    """Mean output of every layer, response by response, with plain hooks, in float64."""
    totals = [torch.zeros(32, dtype=torch.float64) for _ in model.layers]
    for response in encode_responses(model, pairs):
        seen: list[Tensor] = []

        def keep(module: object, inputs: object, output: object, seen: list[Tensor] = seen) -> None:
            seen.append(output[0] if isinstance(output, tuple) else output)

        handles = [layer.register_forward_hook(keep) for layer in model.layers]
        with torch.inference_mode():
            model.network(input_ids=torch.tensor([response.ids]))
        for handle in handles:
            handle.remove()
        for total, output in zip(totals, seen, strict=True):
            total += output[0, response.start - 1 : len(response.ids) - 1].double().mean(dim=0) / len(pairs)
    return totals


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "granitemoehybrid"])
def test_from_text_to_a_control_vector_and_back(family: str, tmp_path: Path) -> None:
    model = tiny_chat_model(family)
    vectors = extract(model, CONTRAST, block_outputs=True)
    positive = mean_outputs(model, CONTRAST.train.positive)
    negative = mean_outputs(model, CONTRAST.train.negative)
    assert list(vectors.block_outputs) == [0, 1, 2]
    for layer, means in vectors.block_outputs.items():
        assert torch.allclose(means.positive.double(), positive[layer], atol=1e-5)
        assert torch.allclose(means.negative.double(), negative[layer], atol=1e-5)
    plain = extract(model, CONTRAST)
    assert plain.block_outputs is None
    assert plain.digest() == vectors.digest()  # the sites' means are the same pass's

    save_vectors(vectors, tmp_path / "v.safetensors")
    blocks = load_vectors(tmp_path / "v.safetensors")
    path = tmp_path / "v.gguf"
    assert save_block_vectors(blocks, path) == [0]  # a control vector has no place for layer 0
    read = read_vectors(path)
    assert not read.sites
    assert list(read.block_outputs) == [1, 2]
    for layer in (1, 2):
        assert torch.equal(read.block_outputs[layer].difference, vectors.block_outputs[layer].difference)
