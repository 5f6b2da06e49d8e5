"""Edits put in place for a further look: that they are the edit, and spend what they are to spend."""

import pytest
import torch
from torch import Tensor

from steer2edit.core import Site, SiteEdit, WeightEdit
from steer2edit.editing import merged
from steer2edit.models import EncodedResponse, LanguageModel, encode_responses, span_log_probabilities
from steer2edit.steering.closed_loop import Loop
from tiny_chat import tiny_chat_model

Parts = tuple[dict[Site, Tensor], dict[Site, Tensor], dict[Site, Tensor]]
QUESTIONS = [f"Name {n} colours." for n in range(1, 9)]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_chat_model()


@pytest.fixture(scope="module")
def answers(model: LanguageModel) -> list[EncodedResponse]:
    return encode_responses(model, [(q, "Red, green and blue.") for q in QUESTIONS])


@pytest.fixture(scope="module")
def parts(model: LanguageModel) -> Parts:
    """u, C + C̄ and ŝ of every site."""
    generator = torch.Generator().manual_seed(0)
    u, cost, effects = {}, {}, {}
    for site, module in model.sites.items():
        d, m = module.shape
        direction = torch.randn(d, generator=generator)
        u[site] = direction / direction.norm()
        cost[site] = torch.rand(m, generator=generator) + 0.5
        effects[site] = torch.randn(m, generator=generator)
    cost[next(iter(cost))][0] = 0.0  # a column that no drift depends on is not edited
    return u, cost, effects


def drift(model: LanguageModel, edit: WeightEdit, answers: list[EncodedResponse]) -> float:
    """KL(base ‖ merged weights), per token."""
    base = span_log_probabilities(model, answers)
    with merged(model, edit):
        found = span_log_probabilities(model, answers)
    return sum(float((b.exp() * (b - f)).sum(-1).mean()) for b, f in zip(base, found, strict=True)) / len(answers)


def dense(parts: Parts, effects: dict[Site, Tensor]) -> WeightEdit:
    u, cost, _ = parts
    rows = {site: torch.where(cost[site] > 0, effects[site] / cost[site], 0) for site in u}
    rows = {site: torch.nan_to_num(row, posinf=0.0, neginf=0.0) for site, row in rows.items()}
    return WeightEdit({site: SiteEdit(u[site], row, row, row) for site, row in rows.items()})


@pytest.mark.parametrize("kl", [0.001, 0.01])
def test_the_edit_spends_the_drift_asked_for(
    model: LanguageModel, answers: list[EncodedResponse],
    parts: Parts, kl: float,
) -> None:  # fmt: skip
    u, cost, effects = parts
    loop = Loop(model, u, cost, answers)
    nothing = {site: torch.zeros_like(s) for site, s in effects.items()}
    found, reached = loop.spending(kl, nothing, effects, 1e-3)
    assert drift(model, dense(parts, found), answers) == pytest.approx(kl, rel=0.2)
    more = {site: torch.flip(s, (0,)) for site, s in effects.items()}
    further, _ = loop.spending(2 * kl, found, more, 1e-3, reached)
    assert drift(model, dense(parts, further), answers) == pytest.approx(2 * kl, rel=0.2)
    share = [float(((further[s] - found[s]) @ more[s]) / (more[s] @ more[s])) for s in found]
    assert max(share) - min(share) < 1e-5  # what was found stays, and the further part joins it


def test_within_the_context_the_model_is_the_edited_one(
    model: LanguageModel, answers: list[EncodedResponse],
    parts: Parts,
) -> None:  # fmt: skip
    u, cost, effects = parts
    with Loop(model, u, cost, answers).edited(effects):
        found = span_log_probabilities(model, answers)
    with merged(model, dense(parts, effects)):
        expected = span_log_probabilities(model, answers)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_a_first_step_that_is_far_too_large_is_taken_back(
    model: LanguageModel, answers: list[EncodedResponse], parts: Parts
) -> None:
    """So large that the logits are not finite: no drift is known there."""
    u, cost, effects = parts
    loop = Loop(model, u, cost, answers)
    nothing = {site: torch.zeros_like(s) for site, s in effects.items()}
    found, _ = loop.spending(0.01, nothing, effects, 1e38)
    assert all(bool(torch.isfinite(row).all()) for row in found.values())
    assert loop.size(nothing) == 0.0
    rows = torch.cat([edit.row for edit in dense(parts, effects).sites.values()])
    assert loop.size(effects) == pytest.approx(float(rows.norm()), rel=1e-5)
