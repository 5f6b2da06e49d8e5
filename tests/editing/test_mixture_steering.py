"""Steering a mixture of experts adds strength · v to what the block writes, exactly once."""

import pytest
import torch
from edit_models import IDS, random_vectors
from torch import Tensor

from families import MIXTURES, tiny_model
from steer2edit.core import Site, Steering, SteeringVectors
from steer2edit.editing import intervened
from steer2edit.models import LanguageModel
from steered import steered

OUTPUTS = {
    "granitemoe": ["block_sparse_moe"],
    "granitemoeshared": ["block_sparse_moe", "shared_mlp"],
    "granitemoehybrid": ["block_sparse_moe", "shared_mlp"],
    "llama4_text": ["feed_forward"],
    "lfm2_moe": ["feed_forward"],
}


def written(model: LanguageModel, family: str, layer: int) -> Tensor:
    """What a layer's mixture adds to the residual stream, before any factor: the sum of its modules' outputs."""
    seen: list[Tensor] = []

    def keep(module: object, inputs: object, output: object) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).reshape(*IDS.shape, -1).clone())

    modules = [model.layers[layer].get_submodule(name) for name in OUTPUTS.get(family, ["mlp"])]
    handles = [module.register_forward_hook(keep) for module in modules]
    with torch.inference_mode():
        model.network(input_ids=IDS)
    for handle in handles:
        handle.remove()
    assert len(seen) == len(modules)
    return torch.stack(seen).sum(dim=0)


@pytest.mark.parametrize("family", MIXTURES)
def test_v_is_added_once(family: str) -> None:
    model = tiny_model(family)
    vectors = random_vectors(model)
    layer = max(site.layer for site, module in model.sites.items() if module.experts)
    site = Site(layer, "mlp")
    only = SteeringVectors({site: vectors.sites[site]}, vectors.metadata)
    v = vectors.sites[site].steering_vector
    before = written(model, family, layer)
    with steered(model, only, 0.3):
        assert torch.allclose(written(model, family, layer) - before, 0.3 * v, atol=1e-5)
    with intervened(model, [Steering(only, -0.7), None]):  # each row its own
        change = written(model, family, layer) - before
    assert torch.allclose(change[0], (-0.7 * v).expand(12, -1), atol=1e-5)
    assert bool((change[1] == 0).all())
    assert torch.equal(written(model, family, layer), before)
