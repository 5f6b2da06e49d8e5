"""Captured means against the slow way: one response at a time, no padding, all activations kept, float64."""

from collections.abc import Sequence

import pytest
import torch

from architectures import tiny_architecture
from families import DENSE, tiny_model
from naive_capture import activations, naive_means
from steer2edit.core import Site
from steer2edit.errors import ModelError
from steer2edit.models import EncodedResponse, LanguageModel, mean_output, span_means

# Lengths differ, so that batches are padded; spans begin at different places; one response has a single token.
RESPONSES = [
    EncodedResponse(tuple(range(3, 20)), 5),
    EncodedResponse((7, 90, 4, 4, 31), 4),
    EncodedResponse(tuple(range(80, 50, -1)), 1),
    EncodedResponse((11, 12, 13, 60, 61, 62, 63, 64, 65), 3),
]
WITH_BIASES = ("starcoder2", "gpt_neox", "falcon", "opt", "gpt2")


def captured(model: LanguageModel, responses: Sequence[EncodedResponse], batch_tokens: int) -> list[dict]:
    """The captured means, response by response."""
    rows: dict[int, dict[Site, torch.Tensor]] = {}
    for batch in span_means(model, responses, batch_tokens=batch_tokens):
        assert batch.blocks == {}
        for row, index in enumerate(batch.rows):
            rows[index] = {site: means.input[row] for site, means in batch.sites.items()}
    assert sorted(rows) == list(range(len(responses)))
    return [rows[i] for i in range(len(responses))]


def assert_near(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == wanted.shape
    assert float((found.double() - wanted.double()).norm() / wanted.double().norm()) < tolerance


def hook_count(model: LanguageModel) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.network.modules())


@pytest.mark.parametrize("family", DENSE)
def test_means_equal_the_naive_reference(family: str) -> None:
    model = tiny_model(family)
    has_bias = model.sites[Site(0, "mlp")].only.bias is not None
    assert has_bias == (family in WITH_BIASES)
    for response, means in zip(RESPONSES, captured(model, RESPONSES, batch_tokens=1000), strict=True):
        inputs, outputs = naive_means(model, response)
        assert set(means) == set(model.sites) == set(inputs)
        for site in model.sites:
            assert_near(means[site], inputs[site])
            assert_near(mean_output(model, site, means[site]), outputs[site])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("batch_tokens", [1, 40, 65])
def test_padding_and_batch_composition_do_not_matter(family: str, batch_tokens: int) -> None:
    model = tiny_model(family)
    together = captured(model, RESPONSES, batch_tokens=1000)
    for one, other in zip(together, captured(model, RESPONSES, batch_tokens), strict=True):
        for site in model.sites:
            assert_near(one[site], other[site])
    backwards = captured(model, RESPONSES[::-1], batch_tokens=1000)[::-1]
    for one, other in zip(together, backwards, strict=True):
        for site in model.sites:
            assert_near(one[site], other[site])


def test_the_span_is_what_predicts_the_response() -> None:
    # one response token at index 4: the mean is the activation at position 3, and nothing else
    model = tiny_model()
    inputs, _ = activations(model, RESPONSES[1].ids)
    (means,) = captured(model, RESPONSES[1:2], batch_tokens=100)
    for site in model.sites:
        assert_near(means[site], inputs[site][3], 1e-6)
        assert float((means[site] - inputs[site][4]).norm()) > 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_float32_whatever_the_dtype(dtype: torch.dtype) -> None:
    model = tiny_model()
    model.network.to(dtype)
    long = EncodedResponse(tuple(i % 90 + 3 for i in range(120)), 8)
    (means,) = captured(model, [long], batch_tokens=1000)
    inputs, _ = activations(model, long.ids)
    worst = 0.0
    for site, x in inputs.items():
        assert x.dtype == dtype
        assert means[site].dtype == torch.float32
        exact = x[7:119].double().mean(dim=0)
        assert_near(means[site], exact, 1e-5)
        in_dtype = x[7:119].mean(dim=0).double()
        worst = max(worst, float((in_dtype - exact).norm() / exact.norm()))
    assert worst > 1e-4  # a mean that is rounded to the model's dtype would not pass


def test_mean_output_keeps_the_precision_of_its_input() -> None:
    model = tiny_model("gpt2")
    model.network.to(torch.bfloat16)
    site = Site(1, "mlp")
    x = torch.randn(model.sites[site].shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    module = model.network.get_submodule(model.sites[site].name)
    wanted = (x @ module.weight.double() + module.bias.double()).detach()  # Conv1D stores [m, d]
    found = mean_output(model, site, x)
    assert found.dtype == torch.float64
    assert_near(found, wanted, 1e-12)


class TestHooks:
    def test_gone_afterwards(self) -> None:
        model = tiny_model()
        before = hook_count(model)
        list(span_means(model, RESPONSES))
        assert hook_count(model) == before == 0

    def test_gone_between_batches_and_when_abandoned(self) -> None:
        model = tiny_model()
        batches = span_means(model, RESPONSES, batch_tokens=1)
        next(batches)
        assert hook_count(model) == 0
        batches.close()
        assert hook_count(model) == 0

    def test_gone_after_an_exception(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = tiny_model()
        seen = []

        def fail(*args: object, **kwargs: object) -> None:
            seen.append(hook_count(model))
            raise RuntimeError("in the middle of the forward pass")

        monkeypatch.setattr(model.network.model.layers[1].mlp, "forward", fail)
        with pytest.raises(RuntimeError, match="in the middle"):
            list(span_means(model, RESPONSES))
        assert seen == [len(model.sites)]  # they were there
        assert hook_count(model) == 0

    def test_outputs_are_untouched(self) -> None:
        model = tiny_model()
        ids = torch.tensor([RESPONSES[0].ids])
        with torch.inference_mode():
            before = model.network(input_ids=ids).logits
            list(span_means(model, RESPONSES))
            assert torch.equal(model.network(input_ids=ids).logits, before)


def test_no_responses_give_no_batches() -> None:
    assert list(span_means(tiny_model(), [])) == []


def test_layers_with_several_streams_have_no_one_output() -> None:
    model = LanguageModel(tiny_architecture("deepseek_v4"))
    (batch,) = span_means(model, RESPONSES[:1])
    assert batch.sites.keys() == model.sites.keys()
    with pytest.raises(ModelError, match=r"hand on several residual streams.*Leave out --block-outputs"):
        list(span_means(model, RESPONSES[:1], block_outputs=True))
