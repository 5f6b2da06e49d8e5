"""lm-eval's steering files, against what it does with them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from families import tiny_model
from steer2edit.artifacts import (
    load_vectors,
    read_vectors,
    save_block_vectors,
    save_vectors,
)
from steer2edit.core import Site, SteeringVectors
from steer2edit.errors import ArtifactError
from steer2edit.models import LanguageModel
from steered import steered

IDS = torch.arange(3, 15).view(2, 6)


def entry(*values: float, coefficient: Any = 2.0, action: Any = "add") -> dict[str, Any]:
    return {
        "steering_vector": torch.tensor(values),
        "steering_coefficient": coefficient,
        "action": action,
        "bias": None,
    }


def written(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_hookpoints_of_projections_and_blocks(tmp_path: Path) -> None:
    content = {
        "layers.7.self_attn.o_proj": entry(1.0, -2.0),
        "layers.8.self_attn": entry(3.0, 0.5, coefficient=-1),
        "layers.7.mlp.down_proj": entry(1.0, 1.0, coefficient=0.5),
        "layers.11.mlp": entry(4.0, 4.0),
    }
    read = read_vectors(written(tmp_path / "s.pt", content))
    assert isinstance(read, SteeringVectors)
    assert {str(site): means.steering_vector.tolist() for site, means in read.sites.items()} == {
        "L7.attn": [2, -4], "L7.mlp": [0.5, 0.5], "L8.attn": [-3, -0.5], "L11.mlp": [8, 8],
    }  # fmt: skip
    assert read.metadata == {
        "origin": "imported",
        "format": "lm-eval steered",
        "file": "s.pt",
        "coefficients": {
            "layers.7.self_attn.o_proj": 2.0,
            "layers.8.self_attn": -1.0,
            "layers.7.mlp.down_proj": 0.5,
            "layers.11.mlp": 2.0,
        },
    }
    save_vectors(load_vectors(tmp_path / "s.pt"), tmp_path / "s.safetensors")


@pytest.mark.parametrize(
    ("hookpoint", "site"),
    [
        ("h.3.attn.c_proj", Site(3, "attn")),
        ("transformer.h.3.mlp", Site(3, "mlp")),
        ("model.layers.0.mlp.down_proj", Site(0, "mlp")),
        ("layers.2.attention.dense", Site(2, "attn")),
    ],
)
def test_names_of_other_families_and_prefixes(tmp_path: Path, hookpoint: str, site: Site) -> None:
    assert list(read_vectors(written(tmp_path / "s.pt", {hookpoint: entry(1.0)})).sites) == [site]


def test_whole_layers_are_block_outputs(tmp_path: Path) -> None:
    path = written(tmp_path / "s.pt", {"layers.7": entry(1.0, 2.0), "layers.3": entry(0.5, 0.5)})
    read = read_vectors(path)
    assert not read.sites
    assert {layer: own.difference.tolist() for layer, own in read.block_outputs.items()} == {3: [1, 1], 7: [2, 4]}
    with pytest.raises(ArtifactError, match=r"lm-eval steered: one direction per block output.*--use-at"):
        load_vectors(path)
    assert list(load_vectors(path, use_at="both").sites) == [Site(3, b) for b in ("attn", "mlp")] + [
        Site(7, b) for b in ("attn", "mlp")
    ]
    save_block_vectors(read, tmp_path / "s.gguf", model_hint="llama")
    assert read_vectors(tmp_path / "s.gguf").block_outputs[7].difference.tolist() == [2, 4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"layers.1.mlp": entry(1.0), "layers.1": entry(1.0)}, "projections and of whole layers"),
        ({"layers.1.mlp": entry(1.0), "layers.1.mlp.down_proj": entry(1.0)}, r"L1\.mlp is there twice"),
        ({"layers.1.mlp.up_proj": entry(1.0)}, r"'layers\.1\.mlp\.up_proj' is no place"),
        ({"layers.1.input_layernorm": entry(1.0)}, "is no place"),
        ({"embed_tokens": entry(1.0)}, "is no place"),
        ({"layers.-1": entry(1.0)}, "is no place"),
        ({"layers.01": entry(1.0)}, "is no place"),
        ({3: entry(1.0)}, "3 is no place"),
        ({"layers.1": entry(1.0, action="clamp")}, "action 'clamp': only 'add'"),
        ({"layers.1": entry(1.0, action=None)}, "action None"),
        ({"layers.1": entry(1.0, coefficient="2")}, "steering_coefficient must be a number"),
        ({"layers.1": entry(1.0, coefficient=True)}, "steering_coefficient must be a number"),
        ({"layers.1": entry(1.0, coefficient=float("nan"))}, "non-finite"),
        ({"layers.1.mlp": entry(float("inf"))}, "non-finite"),
        ({"layers.1": {**entry(1.0), "steering_vector": torch.ones(2, 2)}}, r"one row .* shape \[2, 2\]"),
        ({"layers.1": {**entry(1.0), "steering_vector": torch.ones(2, dtype=torch.int64)}}, "got int64"),
        ({"layers.1": {**entry(1.0), "steering_vector": [1.0]}}, "one row of floats, got .1"),
        ({"layers.1": entry(1.0), "layers.2": entry(1.0, 2.0)}, "has 2 entries, but another has 1"),
    ],
)
def test_steering_files_that_cannot_be_used(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as raised:
        read_vectors(written(tmp_path / "s.pt", content))
    assert "s.pt" in str(raised.value)


def lm_eval_logits(model: LanguageModel, content: dict[str, dict[str, Any]]) -> torch.Tensor:
    """What lm-eval's `add` does: a hook on each named module of the base model that adds c·v to its (first) output."""

    def hook(shift: torch.Tensor) -> Any:
        def add(module: torch.nn.Module, args: object, output: Any) -> Any:
            return (output[0] + shift, *output[1:]) if isinstance(output, tuple) else output + shift

        return add

    modules = dict(model.network.base_model.named_modules())
    handles = [
        modules[name].register_forward_hook(hook(e["steering_coefficient"] * e["steering_vector"]))
        for name, e in content.items()
    ]
    with torch.inference_mode():
        logits = model.network(input_ids=IDS).logits
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llama", ("layers.1.self_attn.o_proj", "layers.2.mlp")),
        ("gpt2", ("h.0.attn", "h.2.mlp.c_proj")),
        ("gemma2", ("layers.0.self_attn", "layers.1.mlp")),
    ],
)
def test_steering_equals_lm_eval(tmp_path: Path, family: str, names: tuple[str, ...]) -> None:
    model = tiny_model(family)
    generator = torch.Generator().manual_seed(3)
    content = {name: entry(*torch.randn(32, generator=generator).tolist(), coefficient=0.7) for name in names}
    expected = lm_eval_logits(model, content)
    with torch.inference_mode(), steered(model, load_vectors(written(tmp_path / "s.pt", content)), 1.0):
        ours = model.network(input_ids=IDS).logits
    assert (expected - model.network(input_ids=IDS).logits.detach()).abs().max() > 1e-3
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-5)
