"""Activation steering equals the same vector in the biases, and leaves no trace."""

import pytest
import torch
from torch import nn

from families import tiny_model
from steer2edit.core import Steering, SteeringVectors
from steer2edit.editing import intervened
from steer2edit.errors import MismatchError
from steer2edit.models import LanguageModel

IDS = torch.arange(3, 3 + 24).view(2, 12)
FAMILIES = ["llama", "gemma2", "gpt2", "gpt_neox", "falcon"]


def logits(model: LanguageModel) -> torch.Tensor:
    with torch.inference_mode():
        return model.network(input_ids=IDS).logits


def vectors_for(model: LanguageModel, seed: int = 0) -> SteeringVectors:
    generator = torch.Generator().manual_seed(seed)
    return SteeringVectors.from_mapping(
        {site: torch.randn(p.shape[0], generator=generator) for site, p in model.sites.items()}
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strength", [0.3, -1.0])
def test_equals_the_vector_in_the_bias(family: str, strength: float) -> None:
    model, other = tiny_model(family), tiny_model(family)
    vectors = vectors_for(model)
    base = logits(model)
    for site, projection in other.sites.items():
        v = strength * vectors.sites[site].steering_vector
        bias = projection.only.bias
        projection.module.bias = nn.Parameter(v if bias is None else bias + v)
    with intervened(model, [Steering(vectors, strength)]):
        found = logits(model)
    assert float((found - logits(other)).norm() / found.norm()) < 1e-5
    assert float((found - base).norm() / base.norm()) > 1e-2
    assert torch.equal(logits(model), base)


def test_strength_zero_changes_nothing() -> None:
    model = tiny_model()
    base = logits(model)
    with intervened(model, [Steering(vectors_for(model), 0.0)]):
        assert torch.equal(logits(model), base)


def test_restored_after_an_exception() -> None:
    model = tiny_model()
    base, state = logits(model), {k: v.clone() for k, v in model.network.state_dict().items()}

    def run() -> None:
        with intervened(model, [Steering(vectors_for(model), 1.0)]):
            logits(model)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        run()
    assert torch.equal(logits(model), base)
    assert all(torch.equal(v, state[k]) for k, v in model.network.state_dict().items())
    assert not any(m._forward_hooks for m in model.network.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_keeps_the_dtype(dtype: torch.dtype) -> None:
    model = tiny_model()
    model.network.to(dtype)
    base = logits(model)
    with intervened(model, [Steering(vectors_for(model), 0.5)]):
        changed = logits(model)
    assert changed.dtype == dtype
    assert not torch.equal(changed, base)
    assert torch.equal(logits(model), base)


def test_some_sites_only() -> None:
    model = tiny_model()
    whole = vectors_for(model)
    part = SteeringVectors({site: means for site, means in whole.sites.items() if str(site) == "L1.mlp"})
    base = logits(model)
    with intervened(model, [Steering(part, 1.0)]):
        one = logits(model)
    with intervened(model, [Steering(whole, 1.0)]):
        all_of_them = logits(model)
    assert not torch.equal(one, base)
    assert not torch.equal(one, all_of_them)


class TestMismatch:
    def test_another_model(self) -> None:
        model, other = tiny_model(), tiny_model(seed=1)
        vectors = SteeringVectors(vectors_for(model).sites, {"model": other.describe()})
        with pytest.raises(MismatchError, match="these vectors were made on 'tiny-llama'"):
            model.require_fit(vectors)
        model.require_fit(vectors, allow_mismatch=True)

    def test_another_shape(self) -> None:
        with pytest.raises(MismatchError, match=r"L0\.attn.* of 31 entries.*\[32, 32\]"):
            tiny_model().require_fit(SteeringVectors.from_mapping({"L0.attn": torch.ones(31)}))

    def test_a_site_the_model_lacks(self) -> None:
        with pytest.raises(MismatchError, match=r"L7\.attn: these vectors are .* has no such site"):
            tiny_model().require_fit(SteeringVectors.from_mapping({"L7.attn": torch.ones(32)}))
