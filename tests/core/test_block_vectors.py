"""Directions of block outputs: what they are made of, and that they become site vectors only where they are told to."""

import pytest
import torch

from families import tiny_model
from steer2edit.core import ClassMeans, Site, SiteMeans, SteeringVectors
from steer2edit.errors import InvalidValueError
from steered import steered

IDS = torch.arange(3, 15).view(2, 6)


def means(positive: list[float], negative: list[float]) -> ClassMeans:
    return ClassMeans(torch.tensor(positive), torch.tensor(negative))


def blocks() -> SteeringVectors:
    layers = {5: means([1.0, 2.0], [0.5, 3.0]), 0: means([0.0, 1.0], [1.0, 0.0])}
    return SteeringVectors({}, {"origin": "by hand"}, block_outputs=layers)


def direction(vectors: SteeringVectors, layer: int) -> list[float]:
    return vectors.block_outputs[layer].difference.tolist()


def test_layers_are_sorted_and_a_direction_is_the_difference() -> None:
    assert list(blocks().block_outputs) == [0, 5]
    assert direction(blocks(), 5) == [0.5, -1]
    with pytest.raises(TypeError):
        blocks().block_outputs[1] = means([1.0], [1.0])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({}, "at least one layer"),
        ({-1: means([1.0], [0.0])}, "layer must be >= 0, got -1"),
        ({0: means([1.0], [0.0]), 1: means([1.0, 2.0], [0.0, 0.0])}, "layer 1: the output has 2 entries, .* has 1"),
        ({0: means([1.0, float("nan")], [0.0, 0.0])}, "layer 0: the positive output mean has 1 non-finite"),
        ({0: means([1.0], [float("inf")])}, "layer 0: the negative output mean has 1 non-finite"),
    ],
)
def test_bad_block_outputs_are_refused_on_their_own_and_along_with_vectors(layers: dict, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        SteeringVectors({}, block_outputs=layers)
    with pytest.raises(InvalidValueError, match=message):
        SteeringVectors({Site(0, "mlp"): SiteMeans(means([1.0], [0.0]))}, block_outputs=layers)


@pytest.mark.parametrize("bad", [torch.ones(1, 2), torch.ones(2, dtype=torch.int64), torch.ones(0)])
def test_a_direction_is_a_vector_of_floats(bad: torch.Tensor) -> None:
    with pytest.raises(InvalidValueError, match="layer 3: a direction is a vector"):
        SteeringVectors.from_mapping({3: bad})


def test_no_edit_depends_on_block_outputs() -> None:
    vectors = SteeringVectors({Site(0, "mlp"): SiteMeans(means([1.0], [0.0]))}, {"contrast": "safety"})
    measured = SteeringVectors(vectors.sites, vectors.metadata, block_outputs={3: means([2.0], [1.0])})
    assert direction(measured, 3) == [1]
    assert measured.digest() == vectors.digest()


@pytest.mark.parametrize(
    ("use_at", "sites"),
    [
        ("mlp", ["L0.mlp", "L5.mlp"]),
        ("attn", ["L0.attn", "L5.attn"]),
        ("both", ["L0.attn", "L0.mlp", "L5.attn", "L5.mlp"]),
    ],
)
def test_site_vectors_take_the_direction_of_their_layer(use_at: str, sites: list[str]) -> None:
    made = blocks().used_at(use_at)
    assert list(map(str, made.sites)) == sites
    for site, own in made.sites.items():
        assert own.steering_vector.tolist() == direction(blocks(), site.layer)
        assert own.input is None
    assert made.metadata == {"origin": "by hand", "block_outputs_used_at": use_at}
    assert direction(made, 5) == [0.5, -1]


def test_there_is_no_other_place() -> None:
    with pytest.raises(InvalidValueError, match="used at attn, mlp, both, got 'residual'"):
        SteeringVectors.used_at.__wrapped__(blocks(), "residual")


def test_used_at_the_mlp_steering_does_what_was_meant_for_the_block_output() -> None:
    """Oracle: a hook on the decoder layer that adds v to what the whole layer puts out, as repeng and llama.cpp do."""
    model = tiny_model("llama")
    generator = torch.Generator().manual_seed(0)
    directions = {layer: torch.randn(32, generator=generator) for layer in (0, 2)}
    handles = [
        model.network.model.layers[layer].register_forward_hook(
            lambda module, args, output, v=v: (output[0] + v, *output[1:]) if isinstance(output, tuple) else output + v
        )
        for layer, v in directions.items()
    ]
    with torch.inference_mode():
        expected = model.network(input_ids=IDS).logits
        for handle in handles:
            handle.remove()
        base = model.network(input_ids=IDS).logits
        with steered(model, SteeringVectors.from_mapping(directions).used_at("mlp"), 1.0):
            ours = model.network(input_ids=IDS).logits
    assert (expected - base).abs().max() > 0.1
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
