"""Edits in the weights: what is written, and that every bit comes back."""

import pytest
import torch
from edit_models import hook_count, logits, random_vectors, relative, weight_bytes

from families import tiny_network
from steer2edit.core import Site, SiteEdit, WeightEdit
from steer2edit.editing import applying, convert, edited, merged, merged_weight
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import LanguageModel

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPSILON = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def model_and_edit(dtype: torch.dtype, family: str = "llama") -> tuple[LanguageModel, WeightEdit]:
    model = LanguageModel(tiny_network(family).to(dtype), name=f"tiny-{family}")
    return model, convert(model, random_vectors(model), Hyperparameters(0.1, 0.2, 0.1))


class StopError(Exception):
    pass


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # gpt2 stores its weights transposed
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_undo_is_bit_exact(dtype: torch.dtype, family: str) -> None:
    model, edit = model_and_edit(dtype, family)
    before, outputs = weight_bytes(model.network), logits(model)
    for strength in (1.0, -1.0, 0.3, 1000.0):
        with merged(model, edit, strength):
            inside = weight_bytes(model.network)
            changed = {name for name in before if before[name] != inside[name]}
            assert changed == {f"{model.sites[site].name}.weight" for site in edit.sites}
            assert relative(logits(model), outputs) > 0.01
        assert weight_bytes(model.network) == before
    assert torch.equal(logits(model), outputs)


@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_undo_after_an_exception(dtype: torch.dtype, error: type[BaseException]) -> None:
    model, edit = model_and_edit(dtype)
    before, inside = weight_bytes(model.network), {}

    def fail() -> None:
        inside.update(weight_bytes(model.network))
        raise error

    with pytest.raises(error), merged(model, edit):
        fail()
    assert inside != before
    assert weight_bytes(model.network) == before


def test_undo_when_the_edit_fails_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model, edit = model_and_edit(torch.bfloat16)
    before, done = weight_bytes(model.network), []

    def fail_at_the_third(weight: torch.Tensor, edit: SiteEdit, strength: float) -> torch.Tensor:
        if len(done) == 2:
            assert weight_bytes(model.network) != before
            raise StopError
        done.append(1)
        return merged_weight(weight, edit, strength)

    monkeypatch.setattr(applying, "merged_weight", fail_at_the_third)
    with pytest.raises(StopError), merged(model, edit):
        raise AssertionError("not reached")
    assert weight_bytes(model.network) == before


def test_negative_zero_and_subnormal_weights_come_back() -> None:
    """Subtracting the edit again would turn −0 into +0 and lose the subnormal."""
    model, edit = model_and_edit(torch.float32)
    weight = model.sites[Site(0, "mlp")].weight
    weight[0, 0], weight[0, 1] = -0.0, 2.0**-149
    before = weight_bytes(model.network)
    with merged(model, edit):
        pass
    assert weight_bytes(model.network) == before


def test_contexts_nest() -> None:
    model, edit = model_and_edit(torch.bfloat16)
    other = convert(model, random_vectors(model, seed=2), Hyperparameters(0.1, None, 0.1))
    before = weight_bytes(model.network)
    with merged(model, edit):
        once = weight_bytes(model.network)
        with merged(model, other), edited(model, other, 0.5):
            assert weight_bytes(model.network) != once
        assert weight_bytes(model.network) == once
    assert weight_bytes(model.network) == before


def test_works_in_inference_mode_and_leaves_gradients_as_they_were() -> None:
    model, edit = model_and_edit(torch.float32)
    before = weight_bytes(model.network)
    with torch.inference_mode(), merged(model, edit):
        assert weight_bytes(model.network) != before
    assert weight_bytes(model.network) == before
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.network.parameters())
    assert hook_count(model.network) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("strength", [1.0, -0.37])
def test_what_is_written_is_rounded_once(dtype: torch.dtype, strength: float) -> None:
    """Within half a unit in the last place of W + strength · u aᵀ, which is formed here in float64."""
    model, edit = model_and_edit(dtype)
    for site, site_edit in edit.sites.items():
        weight = model.sites[site].weight
        u, a = site_edit.output_direction.double(), site_edit.row.double()
        exact = weight.double() + strength * u[:, None] * a[None, :]
        ours = merged_weight(weight, site_edit, strength)
        assert ours.dtype == dtype
        # adding in float32 first costs a few float32 roundings of the larger term
        allowed = 0.5 * EPSILON[dtype] * exact.abs() + 4 * 2.0**-24 * (weight.double().abs() + exact.abs()) + 2.0**-25
        assert bool(((ours.double() - exact).abs() <= allowed).all())


def test_strength_zero_writes_the_same_bits() -> None:
    model, edit = model_and_edit(torch.bfloat16)
    before = weight_bytes(model.network)
    with merged(model, edit, 0.0):
        assert weight_bytes(model.network) == before


def test_sites_that_are_not_in_the_edit_are_not_touched() -> None:
    model, edit = model_and_edit(torch.float32)
    site = Site(1, "attn")
    before = weight_bytes(model.network)
    with merged(model, WeightEdit({site: edit.sites[site]})):
        inside = weight_bytes(model.network)
    assert [name for name in before if inside[name] != before[name]] == [f"{model.sites[site].name}.weight"]


def test_a_strength_that_is_no_number() -> None:
    model, edit = model_and_edit(torch.float32)
    with pytest.raises(ValueError, match=r"strength|non-finite"), merged(model, edit, float("nan")):
        pass
