"""A behaviour planted in one head or one neuron: the edit must find exactly that component, its direction and sign.

The planted component alone tells the two classes of responses apart, because it responds to the tokens of one class
only, and it alone writes along a direction p: the other components of its site write at a right angle to it. All
else is random. The means come from real forward passes.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from families import tiny_model
from steer2edit.core import ClassMeans, Component, Site, SiteMeans, SteeringVectors
from steer2edit.editing import convert, edited
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import EncodedResponse, LanguageModel, mean_output, span_means

LAYER, HEAD, NEURON, HEAD_DIM = 1, 2, 7, 8
TOKENS = {"loud": range(10, 40), "quiet": range(50, 80)}  # the planted component responds to the loud ones
PROMPT = (90, 91, 92)
HYPERPARAMETERS = Hyperparameters(0.5, 0.5, 0.6)  # a threshold of 0.3


@dataclass(frozen=True)
class Planted:
    model: LanguageModel
    component: Component
    p: Tensor  # written direction [d]
    r: Tensor  # read direction within the component's input [w]


def plant(component: Component) -> Planted:
    """Tokens of either class share an embedding direction; the component reads the loud one and writes p."""
    model = tiny_model("llama", num_key_value_heads=4)
    generator = torch.Generator().manual_seed(5)
    directions = torch.linalg.qr(torch.randn(32, 3, generator=generator)).Q.T
    loud, quiet, p = directions
    layer = model.network.model.layers[LAYER]
    with torch.no_grad():
        embedding = model.network.get_input_embeddings().weight
        embedding.mul_(0.1)
        embedding[TOKENS["loud"]] += 3 * loud
        embedding[TOKENS["quiet"]] += 3 * quiet
        for index in range(LAYER + 1):  # what comes before the site leaves the embeddings readable
            for block in ("attn", "mlp"):
                model.sites[Site(index, block)].weight.mul_(0.05)
        W = model.sites[component.site].weight
        W.sub_(torch.outer(p, p @ W))
        if component.site.block == "mlp":
            r = torch.ones(1)
            layer.mlp.gate_proj.weight[component.index] = loud
            layer.mlp.up_proj.weight[component.index] = loud
            W[:, component.index] = p
        else:
            r = torch.randn(HEAD_DIM, generator=generator)
            r /= r.norm()
            columns = slice(component.index * HEAD_DIM, (component.index + 1) * HEAD_DIM)
            layer.self_attn.v_proj.weight[columns] = torch.outer(r, loud)
            W[:, columns] += torch.outer(p, r)
    return Planted(model, component, p, r)


def responses(kind: str, count: int = 6, length: int = 8) -> list[EncodedResponse]:
    generator = torch.Generator().manual_seed(len(kind))
    tokens = torch.tensor(TOKENS[kind])
    drawn = tokens[torch.randint(len(tokens), (count, length), generator=generator)]
    return [EncodedResponse((*PROMPT, *row), len(PROMPT)) for row in drawn.tolist()]


def mean_inputs(model: LanguageModel, kind: str) -> dict[Site, Tensor]:
    (batch,) = span_means(model, responses(kind))
    return {site: means.input.mean(dim=0) for site, means in batch.sites.items()}


def measured(planted: Planted, positive: str, negative: str) -> SteeringVectors:
    """Steering vectors of the planted site from forward passes over both classes."""
    model, site = planted.model, planted.component.site
    x_pos, x_neg = mean_inputs(model, positive)[site], mean_inputs(model, negative)[site]
    outputs = ClassMeans(mean_output(model, site, x_pos), mean_output(model, site, x_neg))
    return SteeringVectors({site: SiteMeans(outputs, ClassMeans(x_pos, x_neg))}, {"model": model.describe()})


PLANTS = [Component(Site(LAYER, "mlp"), NEURON), Component(Site(LAYER, "attn"), HEAD)]


@pytest.mark.parametrize(("positive", "sign"), [("loud", 1), ("quiet", -1)])
@pytest.mark.parametrize("component", PLANTS, ids=str)
def test_exactly_the_planted_component_is_found(component: Component, positive: str, sign: int) -> None:
    planted = plant(component)
    negative = "quiet" if positive == "loud" else "loud"
    edit = convert(planted.model, measured(planted, positive, negative), HYPERPARAMETERS, allow_missing=True)
    ((found, magnitude, importance),) = edit.components()
    assert found == component
    assert importance * sign > 0.99
    # λ = ±(1 − 0.3) / (0.5 · 0.4) = ±3.5 for a cosine of ±1
    assert magnitude * sign == pytest.approx(3.5, rel=0.02)
    site = edit.sites[component.site]
    assert cosine_similarity(site.output_direction, sign * planted.p, dim=0) > 0.99
    k = site.row.view(-1, len(planted.r))[component.index] / magnitude
    assert cosine_similarity(k, sign * planted.r, dim=0) > 0.99


@pytest.mark.parametrize(("positive", "sign"), [("loud", 1), ("quiet", -1)])
@pytest.mark.parametrize("component", PLANTS, ids=str)
def test_the_edit_strengthens_or_weakens_what_was_planted(component: Component, positive: str, sign: int) -> None:
    """Where the component speaks, it speaks 3.5 times more, or the other way; where it is silent, nothing happens."""
    planted = plant(component)
    negative = "quiet" if positive == "loud" else "loud"
    edit = convert(planted.model, measured(planted, positive, negative), HYPERPARAMETERS, allow_missing=True)

    def written(kind: str) -> Tensor:
        seen = []
        module = planted.model.sites[component.site].module
        handle = module.register_forward_hook(lambda _, inputs, output: seen.append(output @ planted.p))
        ids = torch.tensor([response.ids[len(PROMPT) :] for response in responses(kind)])
        with torch.inference_mode():
            planted.model.network(input_ids=ids)
        handle.remove()
        return seen[0].flatten()

    before = {kind: written(kind) for kind in TOKENS}
    with edited(planted.model, edit):
        after = {kind: written(kind) for kind in TOKENS}
    assert bool((before["loud"] > 1).all())
    change = {kind: after[kind] - before[kind] for kind in TOKENS}
    assert torch.allclose(change["loud"], sign * 3.5 * before["loud"], rtol=0.05)
    assert change["quiet"].abs().max() < 0.05 * change["loud"].abs().min()
