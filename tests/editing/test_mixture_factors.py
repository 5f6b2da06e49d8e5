"""Edits of mixtures of experts: their factors by hand, and a behaviour planted in one expert, found from its text."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from edit_models import random_vectors
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dense_definitions import dense_edit, float64
from families import MIXTURES, tiny_model
from steer2edit.core import (
    ClassMeans,
    Component,
    Experts,
    Site,
    SiteEffects,
    SiteMeans,
    SteeringVectors,
)
from steer2edit.editing import compute_factors, convert
from steer2edit.errors import InvalidValueError, MismatchError
from steer2edit.method.hyperparameters import EVERYTHING, GATED_RULES, Hyperparameters
from steer2edit.method.rule import SiteFactors, joined
from steer2edit.models import LanguageModel, encode_responses, span_means
from steer2edit.steering.contrast import Contrast, ContrastSet
from steer2edit.steering.extract import extract
from tiny_chat import tiny_chat_model

SIZES = Experts(routed=2, width=2, shared=1)


def three_parts() -> list[SiteFactors]:
    u, own = torch.tensor([1.0, 0.0]), [([1, -1], [0.8, 0.1]), ([1, 1], [-0.6, 0.5]), ([-1], [0.3])]
    return [SiteFactors(u, torch.tensor(k).float(), torch.tensor(g)) for k, g in own]


# ρ = 0.5, α = 0.4: λ = sign(g) (|g| − 0.2) / 0.3 = [2, 0, −4/3, 1, 1/3], a = λ k
LAMBDA = torch.tensor([2, 0, -4 / 3, 1, 1 / 3])
ROW = torch.tensor([2, 0, -4 / 3, 1, -1 / 3])


class TestJoinedByHand:
    def test_experts_stand_side_by_side(self) -> None:
        (edit,) = joined(three_parts(), SIZES).edits([0.5], [0.4])
        assert torch.allclose(edit.magnitude, LAMBDA)
        assert torch.allclose(edit.row, ROW)
        assert edit.importance.tolist() == pytest.approx([0.8, 0.1, -0.6, 0.5, 0.3])
        assert edit.experts == SIZES

    def test_an_expert_that_is_left_out(self) -> None:
        parts = three_parts()
        parts[1] = replace(parts[1], input_directions=torch.zeros_like(parts[1].input_directions))
        (edit,) = joined(parts, SIZES).edits([0.5], [0.4])
        assert torch.allclose(edit.row, torch.tensor([2, 0, 0, 0, -1 / 3]))
        assert torch.allclose(edit.magnitude, torch.tensor([2, 0, 0, 0, 1 / 3]))


@pytest.mark.parametrize("family", MIXTURES)
def test_the_edit_is_the_papers_edit_of_each_expert(family: str) -> None:
    """Expert by expert, from the stored parameter and by the paper's definitions, with one v for all of them."""
    model = tiny_model(family)
    vectors = random_vectors(model)
    edit = convert(model, vectors, Hyperparameters(0.2, 0.3, 0.4))
    for site, module in model.sites.items():
        if module.experts is None:
            continue
        means = vectors.sites[site]
        down = model.network.get_parameter(f"{module.name}.down_proj")
        count, width = module.sizes.routed, module.sizes.width
        weights = [w.T if down.shape[1] == width else w for w in down]
        weights += [model.network.get_parameter(f"{p.name}.weight") for p in module.plain]
        start = 0
        for weight in weights:
            columns = slice(start, start := start + weight.shape[1])
            dense = dense_edit(weight, means.steering_vector, means.input.midpoint[columns], 1, 0.3, 0.4)
            ours = edit.sites[site].part(columns)
            assert abs(float64(ours.dense()) - dense.dense).max() < 1e-4
            assert abs(float64(ours.importance) - dense.g).max() < 1e-5
        assert start == module.shape[1]
        assert len(weights) == count + len(module.plain)


LOUD, QUIET = "abcdefg", "uvwxyz"
EXPERT, NEURON = 2, 5


def contrast() -> ContrastSet:
    """Responses of a few letters each; no letter is in both classes."""
    pairs = {
        letters: tuple((f"{n}?", "".join(letters[(n + i) % len(letters)] for i in range(9))) for n in range(6))
        for letters in (LOUD, QUIET)
    }
    return ContrastSet("planted", {"train": Contrast(pairs[LOUD], pairs[QUIET])}, {})


def planted() -> tuple[LanguageModel, Tensor]:
    """A model in which one neuron of one expert of layer 1 alone tells the classes apart, and what it writes."""
    model = tiny_chat_model("mixtral")
    loud, quiet, p = torch.linalg.qr(torch.randn(32, 3, generator=torch.Generator().manual_seed(5))).Q.T
    layer = model.network.model.layers[1]
    with torch.no_grad():
        embedding = model.network.get_input_embeddings().weight.mul_(0.1)
        train = contrast().train
        tokens = [
            {i for _, text in pairs for i in model.tokenizer(text)["input_ids"]}
            for pairs in (train.positive, train.negative)
        ]
        assert not tokens[0] & tokens[1]
        for ids, direction in zip(tokens, (loud, quiet), strict=True):
            embedding[sorted(ids)] = 3 * direction
        for site, module in model.sites.items():  # what comes before leaves the embeddings readable
            if site.layer < 2:
                for projection in module.projections:
                    projection.weight.mul_(0.02)
        layer.mlp.gate.weight.copy_(torch.stack([quiet, loud + quiet, loud, -loud - quiet]) * 2)
        for projection in model.sites[Site(1, "mlp")].projections:
            projection.weight.sub_(torch.outer(p, p @ projection.weight))
        layer.mlp.experts.gate_up_proj[EXPERT, NEURON] = loud
        layer.mlp.experts.gate_up_proj[EXPERT, 48 + NEURON] = loud
        layer.mlp.experts.down_proj[EXPERT][:, NEURON] = p
    return model, p


def test_a_planted_expert_is_found_from_text() -> None:
    model, p = planted()
    vectors = extract(model, contrast())
    site = Site(1, "mlp")
    tokens = vectors.sites[site].tokens
    assert tokens.positive[EXPERT] > 30
    assert tokens.negative[EXPERT] < 10
    edit = convert(model, vectors, Hyperparameters(None, 0.5, 0.6))
    assert cosine_similarity(edit.sites[site].output_direction, p, dim=0) > 0.95
    (component, magnitude, importance), *_ = [c for c in edit.top_components(500) if c[0].site == site]
    index = EXPERT * 48 + NEURON
    assert component == Component(site, index)
    assert str(component) == "L1.E2.N5"
    assert importance > 0.95
    assert magnitude == pytest.approx((importance - 0.3) / 0.2, rel=1e-4)
    others = edit.sites[site].importance.clone()
    others[index] = 0
    assert others.abs().max() < 0.3  # of the site, the threshold ρα = 0.3 leaves the planted neuron alone
    assert edit.sites[site].magnitude.count_nonzero() == 1


def test_experts_with_too_few_tokens_are_left_out_and_listed() -> None:
    model, _ = planted()
    vectors = extract(model, contrast())
    site = Site(1, "mlp")
    seen = vectors.sites[site].seen
    assert seen[3] < 32 <= min(seen[:3])
    edit = convert(model, vectors, Hyperparameters(None, 0.1, 0.0))
    listed = edit.metadata["experts_left_out"]
    assert listed["min_tokens"] == 32
    assert listed["sites"]["L1.mlp"] == {"E3": int(seen[3])}
    assert not edit.sites[site].part(slice(3 * 48, 4 * 48)).row.any()
    assert not edit.sites[site].magnitude[3 * 48 :].any()
    with_all = convert(model, vectors, Hyperparameters(None, 0.1, 0.0), min_tokens=1)
    assert "L1.mlp" not in with_all.metadata.get("experts_left_out", {"sites": {}})["sites"]
    assert with_all.sites[site].part(slice(3 * 48, 4 * 48)).row.any()
    assert torch.equal(with_all.sites[site].row[: 3 * 48], edit.sites[site].row[: 3 * 48])
    with pytest.raises(InvalidValueError, match="--min-expert-tokens"):
        convert(model, vectors, Hyperparameters(None, 0.1, 0.0), min_tokens=10_000)


def token_means(model: LanguageModel, site: Site, pairs: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """(mean input of every expert over its tokens [e, m], how many they are [e]), response by response."""
    sizes = model.sites[site].sizes
    total, count = torch.zeros(sizes.routed, sizes.width), torch.zeros(sizes.routed)
    for response in encode_responses(model, pairs):
        (batch,) = span_means(model, [response])
        means = batch.sites[site]
        tokens = means.tokens[0]
        total += means.input[0].view_as(total) * tokens[:, None]
        count += tokens
    return total / count.clamp(min=1)[:, None], count


def test_an_expert_that_one_class_never_reached_has_the_others_mean() -> None:
    """An exact zero of an expert that was reached is a mean like any other: ReLU has many."""
    model = tiny_chat_model("mixtral", hidden_act="relu", num_experts_per_tok=1, num_local_experts=8)
    train = contrast().train
    vectors = extract(model, contrast())
    gaps = zeros = 0
    for site, module in model.sites.items():
        if module.experts is None:
            continue
        (positive, seen), (negative, seen_too) = (token_means(model, site, p) for p in (train.positive, train.negative))
        found = vectors.sites[site].input
        wanted = [
            torch.where((seen > 0)[:, None], positive, negative),
            torch.where((seen_too > 0)[:, None], negative, positive),
        ]
        for mean, expected in zip((found.positive, found.negative), wanted, strict=True):
            assert torch.allclose(mean.view_as(expected), expected, atol=1e-5)
        gaps += int(((seen > 0) != (seen_too > 0)).sum())
        both = (seen > 0) & (seen_too > 0)
        zeros += int(((positive == 0) & (negative > 0.01))[both].sum())
    assert gaps  # the case occurs
    assert zeros  # and what must not be taken for it


def test_edits_of_effects_leave_experts_with_too_few_tokens_out_as_well() -> None:
    """By hand: one neuron's ŝ per column; an expert that saw too few tokens gets no part of the row."""
    model = tiny_model("mixtral")
    vectors = random_vectors(model)
    site = Site(2, "mlp")
    sites = {
        s: replace(m, effects=SiteEffects(m.steering_vector, *(torch.rand(3, len(m.input.positive)) + 0.1), 0.9))
        for s, m in vectors.sites.items() if m.input
    }  # fmt: skip
    tokens = ClassMeans(torch.tensor([20.0, 31, 0, 16]), torch.tensor([12.0, 0, 31.0, 16]))
    sites[site] = replace(sites[site], tokens=tokens)
    edit = convert(model, SteeringVectors(sites, vectors.metadata), EVERYTHING, GATED_RULES)
    assert edit.metadata["experts_left_out"]["sites"][str(site)] == {"E1": 31, "E2": 31}
    own, effects = edit.sites[site], sites[site].effects
    kept = torch.tensor([True, False, False, True]).repeat_interleave(len(own.row) // 4)
    assert torch.equal(own.row != 0, kept)
    expected = effects.gated / (effects.drift + effects.drift.mean())  # ρ = 1, α = 0
    assert torch.allclose(own.row[kept], expected[kept])
    assert torch.allclose(own.magnitude, effects.attribute * own.row)  # λ_i = s_i a_i, and g_i = λ_i / |a_i|
    assert torch.allclose(own.importance[kept], effects.attribute[kept])
    assert own.experts == model.sites[site].sizes


def test_vectors_that_do_not_know_the_routing_are_refused() -> None:
    model = tiny_model("mixtral")
    vectors = random_vectors(model)
    sites = {site: SiteMeans(means.output, means.input) for site, means in vectors.sites.items()}
    with pytest.raises(MismatchError, match=r"L0\.mlp is a mixture of experts, and these vectors do not say how many"):
        compute_factors(model, SteeringVectors(sites, vectors.metadata))


def test_the_threshold_counts_both_classes() -> None:
    model = tiny_model("mixtral")
    vectors = random_vectors(model)
    tokens = ClassMeans(torch.tensor([20.0, 31, 0, 16]), torch.tensor([12.0, 0, 31.0, 16]))
    sites = {s: SiteMeans(m.output, m.input, tokens) if m.tokens else m for s, m in vectors.sites.items()}
    edit = convert(model, SteeringVectors(sites, vectors.metadata), Hyperparameters(0.2, 0.2, 0.2))
    assert edit.metadata["experts_left_out"]["sites"]["L2.mlp"] == {"E1": 31, "E2": 31}
