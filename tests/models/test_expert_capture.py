"""Captured means of mixtures against the slow way: plain hooks on the blocks, and the experts written out here.

One response at a time, no padding, every activation kept, one token and one expert after another, float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import sigmoid, silu

from families import ALL_FAMILIES, MIXTURES, tiny_model
from steer2edit.core import Site
from steer2edit.models import BatchMeans, EncodedResponse, LanguageModel, SpanMeans, span_means

RESPONSES = [
    EncodedResponse(tuple(range(3, 20)), 5),
    EncodedResponse((7, 90, 4, 4, 31), 4),  # one response token
    EncodedResponse(tuple(range(80, 50, -1)), 1),
    EncodedResponse((11, 12, 13, 60, 61, 62, 63, 64, 65), 3),
]
# the modules whose outputs add up to what the block writes, within a layer
BLOCKS = {
    "granitemoe": ["block_sparse_moe"],
    "granitemoeshared": ["block_sparse_moe", "shared_mlp"],
    "granitemoehybrid": ["block_sparse_moe", "shared_mlp"],
    "llama4_text": ["feed_forward"],
    "lfm2_moe": ["feed_forward"],
}


@dataclass
class Naive:
    """One response's values at one mixture."""

    inputs: list[Tensor]  # of every expert, mean over its tokens of the span
    tokens: list[int]
    output: Tensor


def gated(module: nn.Module, family: str, x: Tensor, expert: int) -> Tensor:
    """The input of one expert's down-projection, as the architecture defines it."""
    weight = module.gate_up_proj[expert].double()
    if family == "gpt_oss":  # interleaved, biased, clamped
        both = x @ weight + module.gate_up_proj_bias[expert].double()
        gate, up = both[::2].clamp(max=module.limit), both[1::2].clamp(-module.limit, module.limit)
        return (up + 1) * gate * sigmoid(gate * module.alpha)
    both = x @ weight if family == "llama4_text" else weight @ x
    gate, up = both.chunk(2)
    return silu(gate) * up


def naive(model: LanguageModel, family: str, response: EncodedResponse) -> dict[Site, Naive]:
    kept: dict[tuple[Site, str], tuple[object, ...]] = {}
    handles = []

    def keep(key: tuple[Site, str], module: nn.Module) -> None:
        def hook(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            output = output[0] if isinstance(output, tuple) else output
            kept[key] = (*(t.clone() for t in inputs if isinstance(t, Tensor)), output.clone())

        handles.append(module.register_forward_hook(hook))

    mixtures = {site: module for site, module in model.sites.items() if module.experts}
    for site, module in mixtures.items():
        layer = model.layers[site.layer]
        keep((site, "experts"), model.network.get_submodule(module.name))
        for name in BLOCKS.get(family, ["mlp"]):
            keep((site, name), layer.get_submodule(name))
        for shared in module.plain:
            keep((site, "shared"), model.network.get_submodule(shared.key))
    with torch.inference_mode():
        model.network(input_ids=torch.tensor([response.ids]))
    for handle in handles:
        handle.remove()
    return {site: of_site(model, family, site, kept, response) for site in mixtures}


def of_site(
    model: LanguageModel,
    family: str,
    site: Site,
    kept: dict[tuple[Site, str], tuple[object, ...]],
    response: EncodedResponse,
) -> Naive:
    module = model.network.get_submodule(model.sites[site].name)
    count, length = module.down_proj.shape[0], len(response.ids)
    span = range(response.start - 1, length - 1)
    hidden, *routing, _ = kept[site, "experts"]
    seen: list[list[Tensor]] = [[] for _ in range(count)]
    for t in span:
        if family == "llama4_text":  # every expert is given every token, times its weight
            chosen = [(e, x) for e, x in enumerate(hidden.view(count, length, -1)[:, t]) if bool(x.any())]
        else:
            chosen = [(int(e), hidden[t]) for e in routing[0][t]]
        for e, x in chosen:
            seen[e].append(gated(module, family, x.double(), e))
    width = model.sites[site].sizes.width
    inputs = [torch.stack(xs).mean(dim=0) if xs else torch.zeros(width, dtype=torch.float64) for xs in seen]
    tokens = [len(xs) for xs in seen]
    if model.sites[site].plain:
        x, _ = kept[site, "shared"]
        inputs.append(x.reshape(length, -1)[span].double().mean(dim=0))
        tokens.append(len(span))
    outputs = [kept[site, name][-1].reshape(length, -1)[span].double() for name in BLOCKS.get(family, ["mlp"])]
    return Naive(inputs, tokens, sum(outputs).mean(dim=0))


def captured(model: LanguageModel, responses: Sequence[EncodedResponse], batch_tokens: int) -> list[dict]:
    rows: dict[int, dict[Site, SpanMeans]] = {}
    for batch in span_means(model, responses, batch_tokens=batch_tokens):
        for row, index in enumerate(batch.rows):
            rows[index] = {site: (means, row) for site, means in batch.sites.items()}
    return [rows[i] for i in range(len(responses))]


def near(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> bool:
    assert found.shape == wanted.shape
    return float((found.double() - wanted.double()).norm()) <= tolerance * float(wanted.double().norm()) + 1e-9


@pytest.mark.parametrize("batch_tokens", [65, 1000], ids=["some", "together"])
@pytest.mark.parametrize("family", MIXTURES)
@torch.inference_mode()
def test_means_and_counts_equal_the_naive_reference(family: str, batch_tokens: int) -> None:
    model = tiny_model(family)
    for response, means in zip(RESPONSES, captured(model, RESPONSES, batch_tokens), strict=True):
        reference = naive(model, family, response)
        for site, wanted in reference.items():
            found, row = means[site]
            assert found.input.dtype == found.output.dtype == torch.float32
            assert found.tokens[row].tolist() == wanted.tokens  # exactly: padding and prompts never count
            parts = found.input[row].split(model.sites[site].sizes.widths)
            for part, expected in zip(parts, wanted.inputs, strict=True):
                assert near(part, expected)
            assert near(found.output[row], wanted.output)


def one_batch(model: LanguageModel, responses: Sequence[EncodedResponse], **options: bool) -> BatchMeans:
    (batch,) = span_means(model, responses, batch_tokens=10_000, **options)
    return batch


@pytest.mark.parametrize("family", ["qwen2_moe", "llama4_text", "granitemoehybrid"])
def test_tokens_outside_the_span_never_count(family: str) -> None:
    """The same tokens, another split into prompt and response: other counts, by exactly the tokens that moved."""
    model = tiny_model(family)
    ids = tuple(range(20, 45))
    whole, later = (one_batch(model, [EncodedResponse(ids, start)]) for start in (1, 14))
    site = next(s for s, m in model.sites.items() if m.experts)
    per_token = 1 if family == "llama4_text" else 2
    for batch, length in ((whole, 24), (later, 11)):
        tokens = batch.sites[site].tokens[0]
        assert tokens[:4].sum() == per_token * length
        assert tokens[4] == length
    assert bool((later.sites[site].tokens <= whole.sites[site].tokens).all())


def test_an_expert_that_is_never_chosen_has_zeros() -> None:
    model = tiny_model("mixtral")
    with torch.no_grad():  # the third expert's score is far below the others' for every token
        for layer in model.layers:
            layer.mlp.gate.weight[2] = -100 * layer.mlp.gate.weight[[0, 1, 3]].sum(dim=0)
            layer.mlp.gate.weight[[0, 1, 3]] = 0
            layer.mlp.gate.register_forward_pre_hook(lambda _, args: (args[0].abs(),))
            layer.mlp.gate.weight[2] = -1
    batch = one_batch(model, RESPONSES)
    for site, module in model.sites.items():
        if module.experts:
            means = batch.sites[site]
            assert bool((means.tokens[:, 2] == 0).all())
            assert bool((means.input[:, 2 * 48 : 3 * 48] == 0).all())
            assert bool(torch.isfinite(means.input).all())


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_rows_together_equal_rows_alone(family: str) -> None:
    """Every family: attention, mixers, MLPs, mixtures, and the outputs of whole layers."""
    model = tiny_model(family)
    together = one_batch(model, RESPONSES, block_outputs=True)
    assert sorted(together.blocks) == [0, 1, 2]
    for row, index in list(enumerate(together.rows))[1:3]:  # a short and a longer one, both padded
        alone = one_batch(model, [RESPONSES[index]], block_outputs=True)
        for site, means in alone.sites.items():
            assert near(together.sites[site].input[row], means.input[0]), site
        for layer, output in alone.blocks.items():
            assert near(together.blocks[layer][row], output[0])


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "granitemoehybrid", "lfm2", "gemma3", "gpt2", "llama4_text"])
def test_block_outputs_equal_hooks_on_the_layers(family: str) -> None:
    model = tiny_model(family)
    batch = one_batch(model, RESPONSES, block_outputs=True)
    for row, index in enumerate(batch.rows):
        response = RESPONSES[index]
        seen: list[Tensor] = []

        def keep(_: nn.Module, inputs: object, output: object, seen: list[Tensor] = seen) -> None:
            seen.append(output[0] if isinstance(output, tuple) else output)

        handles = [layer.register_forward_hook(keep) for layer in model.layers]
        with torch.inference_mode():
            model.network(input_ids=torch.tensor([response.ids]))
        for handle in handles:
            handle.remove()
        for layer, output in enumerate(seen):
            wanted = output[0, response.start - 1 : len(response.ids) - 1].double().mean(dim=0)
            assert near(batch.blocks[layer][row], wanted)


@pytest.mark.parametrize("family", MIXTURES)
def test_nothing_is_left_behind(family: str) -> None:
    model = tiny_model(family)
    ids = torch.tensor([RESPONSES[0].ids])
    before = model.network.config.to_json_string(use_diff=False)
    with torch.inference_mode():
        base = model.network(input_ids=ids).logits
    list(span_means(model, RESPONSES, batch_tokens=65, block_outputs=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.network.modules())
    assert model.network.config.to_json_string(use_diff=False) == before
    with torch.inference_mode():
        assert torch.equal(model.network(input_ids=ids).logits, base)
