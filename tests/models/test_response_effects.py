"""First-order effects against the slope of the score along an edit that is really in the weights, for every family."""

import pytest
import torch

from families import ALL_FAMILIES, tiny_model
from steer2edit.core import Site, SiteEdit, Steering, SteeringVectors, WeightEdit
from steer2edit.editing import intervened, merged
from steer2edit.errors import InvalidValueError
from steer2edit.models import EncodedResponse, LanguageModel
from steer2edit.models.effects import Score, ended, first_tokens, response_effects, sampled_tokens, whole_response

RESPONSES = [
    EncodedResponse((3, 17, 9, 4, 30, 8, 11), 3),
    EncodedResponse((5, 6, 7, 21, 14), 2),
    EncodedResponse((12, 40, 2, 33, 19, 27), 4),
]


def directions(model: LanguageModel) -> dict[Site, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = {site: torch.randn(module.shape[0], generator=generator) for site, module in model.sites.items()}
    return {site: u / u.norm() for site, u in drawn.items()}


def scores(model: LanguageModel, count: int) -> torch.Tensor:
    """log p of each response's first tokens, one response after another, without any hook."""
    found = []
    for response in RESPONSES:
        with torch.inference_mode():
            logits = model.network(input_ids=torch.tensor([response.ids])).logits[0].double()
        wanted = response.response_ids[:count]
        rows = logits[response.start - 1 : response.start - 1 + len(wanted)].log_softmax(-1)
        found.append(rows.gather(1, torch.tensor(wanted)[:, None]).sum())
    return torch.stack(found)


def precise_model(family: str) -> LanguageModel:
    model = tiny_model(family)
    model.network.double()
    if any(module.experts for module in model.sites.values()):
        model.network.set_experts_implementation("batched_mm")  # the other has no float64
    return model


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_effects_are_the_slope_along_an_edit(family: str) -> None:
    model = precise_model(family)
    u = directions(model)
    found: dict[Site, torch.Tensor] = {site: torch.zeros(len(RESPONSES), m.shape[1]) for site, m in model.sites.items()}
    for batch in response_effects(model, RESPONSES, u, first_tokens(2)):
        for site, effects in batch.sites.items():
            found[site][batch.rows] = effects
    generator = torch.Generator().manual_seed(1)
    for site, module in model.sites.items():
        a = torch.randn(module.shape[1], generator=generator)
        count = module.component_count
        edit = WeightEdit({site: SiteEdit(u[site], a, torch.ones(count), torch.ones(count), module.sizes)})
        # norms in float32 want a large step, kinks (ReLU, routing) a small one
        slopes = (slope(model, edit, step) for step in (1e-3, 1e-4))
        predicted = found[site].double() @ a.double()
        assert any(torch.allclose(predicted, s, rtol=3e-3, atol=1e-3) for s in slopes), site
        assert float(predicted.abs().max()) > 1e-2  # otherwise the comparison would show nothing


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_gradients_are_the_slope_along_steering(family: str) -> None:
    """A shift of what a site writes, at every position; of a mixture up to what its block multiplies experts by."""
    model = precise_model(family)
    found: dict[Site, torch.Tensor] = {site: torch.zeros(len(RESPONSES), m.shape[0]) for site, m in model.sites.items()}
    for batch in response_effects(model, RESPONSES, dict.fromkeys(model.sites), first_tokens(2)):
        for site, gradients in batch.sites.items():
            found[site][batch.rows] = gradients
    generator = torch.Generator().manual_seed(1)
    for site, module in model.sites.items():
        slopes, predicted = [], []
        for _ in range(3):
            z = torch.randn(module.shape[0], generator=generator)
            vectors = SteeringVectors.from_mapping({site: z})
            ends = []
            for step in (1e-4, -1e-4):
                with intervened(model, [Steering(vectors, step)]):
                    ends.append(scores(model, 2))
            slopes.append((ends[0] - ends[1]) / 2e-4)
            predicted.append(found[site].double() @ z.double())
        measured, expected = torch.stack(slopes).flatten(), torch.stack(predicted).flatten()
        if module.experts is not None:
            expected = expected * (measured @ expected) / expected.square().sum()
        assert torch.allclose(expected, measured, rtol=1e-2, atol=3e-3 * float(measured.abs().max())), site
        assert float(measured.abs().max()) > 1e-2  # otherwise the comparison would show nothing


def slope(model: LanguageModel, edit: WeightEdit, step: float) -> torch.Tensor:
    with merged(model, edit, step):
        above = scores(model, 2)
    with merged(model, edit, -step):
        below = scores(model, 2)
    return (above - below) / (2 * step)


END = 1


@pytest.mark.parametrize(("score", "share", "by"), [(whole_response, None, "token"), (first_tokens(1), 0.5, "sum")])
def test_other_scores_have_the_slope_along_an_edit_of_all_sites(score: Score, share: float | None, by: str) -> None:
    model = tiny_model()
    model.network.double()
    responses = RESPONSES if share is None else [ended(response, END, share) for response in RESPONSES]
    u = directions(model)
    generator = torch.Generator().manual_seed(1)
    rows = {site: torch.randn(module.shape[1], generator=generator) for site, module in model.sites.items()}
    ones = {site: torch.ones(module.component_count) for site, module in model.sites.items()}
    edit = WeightEdit({site: SiteEdit(u[site], a, ones[site], ones[site]) for site, a in rows.items()})

    def score_at(step: float) -> torch.Tensor:
        with merged(model, edit, step):
            return torch.stack([log_likelihood(model, response, by) for response in responses])

    predicted = torch.zeros(len(responses), dtype=torch.float64)
    for batch in response_effects(model, responses, u, score):
        predicted[batch.rows] = sum(effects.double() @ rows[site].double() for site, effects in batch.sites.items())
    slope = (score_at(1e-4) - score_at(-1e-4)) / 2e-4
    assert torch.allclose(predicted, slope, rtol=3e-3, atol=1e-3)
    assert float(predicted.abs().min()) > 1e-2


def log_likelihood(model: LanguageModel, response: EncodedResponse, by: str) -> torch.Tensor:
    """log p of the whole response, token after token, without any hook; its mean by token, or its sum."""
    with torch.inference_mode():
        logits = model.network(input_ids=torch.tensor([response.ids])).logits[0].double().log_softmax(-1)
    found = torch.stack([logits[t - 1, response.ids[t]] for t in range(response.start, len(response.ids))])
    return found.mean() if by == "token" else found.sum()


def test_a_model_that_gradients_cannot_be_taken_of_is_refused() -> None:
    """As of weights in a format whose kernels have no backward pass: the score does not depend on anything."""
    model = tiny_model("llama")
    with pytest.raises(InvalidValueError, match=r"effects need gradients, and .* gives none"):
        list(response_effects(model, RESPONSES, directions(model), lambda found, _: found.detach().sum()))
    assert all(parameter.requires_grad for parameter in model.network.parameters())


def test_responses_may_be_scored_several_times_in_one_pass() -> None:
    model = tiny_model("llama")
    u = directions(model)
    once = list(response_effects(model, RESPONSES, u, first_tokens(2)))
    twice = list(response_effects(model, RESPONSES, u, first_tokens(2), times=2))
    assert [batch.time for batch in twice] == [0, 1] * len(once)
    for batch, again in zip((b for b in once for _ in range(2)), twice, strict=True):
        assert batch.rows == again.rows
        for site, effects in batch.sites.items():
            assert torch.allclose(effects, again.sites[site], atol=1e-6)


def test_an_ended_response_is_scored_at_its_end_only() -> None:
    response = EncodedResponse((3, 17, 9, 4, 30, 8, 11), 3)
    assert ended(response, END) == EncodedResponse((3, 17, 9, 4, 30, 8, 11, END), 7)
    assert ended(response, END, 0.5) == EncodedResponse((3, 17, 9, 4, 30, END), 5)
    assert ended(response, END, 0.01) == EncodedResponse((3, 17, 9, 4, END), 4)


def test_nothing_of_the_model_changes() -> None:
    model = tiny_model()
    before = [(p.clone(), p.requires_grad) for p in model.network.parameters()]
    list(response_effects(model, RESPONSES, directions(model), first_tokens(1)))
    for (value, wanted), parameter in zip(before, model.network.parameters(), strict=True):
        assert torch.equal(value, parameter)
        assert parameter.requires_grad == wanted
        assert parameter.grad is None
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.network.modules()]
    assert sum(hooks) == 0


def test_squares_of_sampled_effects_are_the_curvature_of_the_drift() -> None:
    """E[(aᵀe)²] = 2 KL(base ‖ edited) per token, to second order in a: here from 400 draws, at one site."""
    model = tiny_model()
    model.network.double()
    site = next(iter(model.sites))
    u = {site: directions(model)[site]}
    a = torch.randn(model.sites[site].shape[1], generator=torch.Generator().manual_seed(2))
    response = RESPONSES[0]
    draw = sampled_tokens(torch.Generator().manual_seed(3))
    squares = [
        float(batch.sites[site][row] @ a) ** 2
        for _ in range(20)
        for batch in response_effects(model, [response] * 20, u, draw)
        for row in range(len(batch.rows))
    ]
    count = model.sites[site].component_count
    edit = WeightEdit({site: SiteEdit(u[site], a, torch.ones(count), torch.ones(count))})

    def distributions() -> torch.Tensor:
        with torch.inference_mode():
            logits = model.network(input_ids=torch.tensor([response.ids])).logits[0]
        return logits[response.span.start : response.span.stop].log_softmax(-1)

    base, step = distributions(), 1e-3
    with merged(model, edit, step):
        kl = torch.nn.functional.kl_div(distributions(), base, log_target=True, reduction="sum") / len(response.span)
    curvature = 2 * float(kl) / step**2
    mean = sum(squares) / len(squares)
    error = (sum((s - mean) ** 2 for s in squares) / len(squares)) ** 0.5 / len(squares) ** 0.5
    assert abs(mean - curvature) < 4 * error
    assert error < 0.1 * curvature
