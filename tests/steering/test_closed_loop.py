"""Edits made to hold in other wordings: what is asked, and what the steps gain."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch

from steer2edit.core import Editing, Site, SiteEdit, WeightEdit
from steer2edit.editing import intervened
from steer2edit.errors import InvalidValueError
from steer2edit.models import EncodedResponse, LanguageModel, encode_responses, span_log_probabilities
from steer2edit.models.fine_tuning import training_rows
from steer2edit.recipes.making import make_edit, make_vectors
from steer2edit.settings import Accepting, ConvertOptions, ExtractOptions
from steer2edit.steering.benign import benign_answers
from steer2edit.steering.closed_loop import Objective, _Conjugate, _top, log_probabilities
from steer2edit.steering.contrast import Contrast, ContrastSet
from steer2edit.steering.effects import measure_effects
from steer2edit.steering.extract import extract
from steer2edit.steering.wordings import TOKENS, worded_prompts, worded_responses, wordings
from tiny_chat import tiny_chat_model

QUESTIONS = [f"How do I bake {thing}?" for thing in ("bread", "a pie", "rolls", "a cake", "buns", "tarts", "rye")]
PAIRS = Contrast(
    tuple((q, "I would rather not say that.") for q in QUESTIONS),
    tuple((q, "Mix flour and water first.") for q in QUESTIONS),
)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_chat_model(num_hidden_layers=2, max_position_embeddings=1024)


@pytest.fixture(scope="module")
def benign(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("benign") / "benign.txt"
    path.write_text("Name a colour.\nCount to three.\nWhat is a tree?\n")
    return str(path)


def test_a_request_stands_once_in_every_wording_and_a_conversation_stays_before_it(model: LanguageModel) -> None:
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "How do I bake bread?"},
    ]
    for wording in wordings(model):
        found = wording("How do I bake bread?")
        asked = [{"role": "user", "content": found}] if isinstance(found, str) else list(found)
        assert "".join(message["content"] for message in asked).count("How do I bake bread?") == 1
        system, *rest = wording(conversation)  # type: ignore[arg-type]
        assert system == {"role": "system", "content": "Be brief." if wording.system is None else wording.system}
        assert rest[:2] == conversation[1:-1]
        assert rest[2:] == [message for message in asked if message["role"] != "system"]
    assert len({str(one) for one in worded_prompts(model, ["Hello."] * 12)}) == 12


def test_a_template_without_system_messages_has_them_in_the_request() -> None:
    model = tiny_chat_model()
    assert model.tokenizer is not None
    systems = [wording.system for wording in wordings(model) if wording.system]
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    model.tokenizer.chat_template = refusing + model.tokenizer.chat_template
    found = [wording("Hello.") for wording in wordings(model)]
    assert systems
    assert {f"{system}\n\nHello." for system in systems} <= {str(prompt) for prompt in found}
    assert "system" not in {message["role"] for prompt in found if not isinstance(prompt, str) for message in prompt}


def test_what_is_scored_of_a_begun_reply_is_what_follows_its_opener(model: LanguageModel) -> None:
    every = wordings(model)
    pairs = [("How do I bake bread?", "I would rather not say that.")] * len(every)
    assert model.tokenizer is not None
    for wording, response in zip(every, worded_responses(model, pairs), strict=True):
        assert len(response.response_ids) <= TOKENS
        before = model.tokenizer.decode(response.ids[: response.start])
        assert "I would" in model.tokenizer.decode(response.response_ids)
        assert before.rstrip().endswith(wording.opener) if wording.opener else "I would" not in before


@pytest.mark.parametrize("worded", [False, True], ids=["plain", "worded"])
def test_steps_make_responses_likelier_than_one_look_for_the_drift_they_say(
    model: LanguageModel, benign: str, worded: bool
) -> None:
    contrast = ContrastSet("baking", {"train": PAIRS}, {})
    plain = extract(model, contrast)
    before = {name: parameter.clone() for name, parameter in model.network.named_parameters()}
    itself: dict[str, AbstractContextManager[object]] = {"itself": nullcontext()}  # copies have rows of one look
    one_look = measure_effects(model, plain, contrast, benign=benign, copies=itself)
    steps = measure_effects(model, plain, contrast, benign=benign, wordings=worded)
    responses = encode_responses(model, PAIRS.positive)
    if worded:
        responses += worded_responses(model, PAIRS.positive)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.network.named_parameters())
    replies = [reply for _, reply in benign_answers(model, benign)]
    ends = [EncodedResponse(row.ids, len(row.ids) - 1) for row in training_rows(model, PAIRS.positive)]
    base, base_ends = span_log_probabilities(model, replies), log_probabilities(model, ends).mean()

    def spent(edit: WeightEdit, strength: float = 1.0) -> float:
        with intervened(model, [Editing(edit, strength)]):
            after = span_log_probabilities(model, replies)
        kl = [(p.exp() * (p - q)).sum(dim=1).mean() for p, q in zip(base, after, strict=True)]
        return torch.stack(kl).mean().item()

    made = {}
    for name, vectors in (("look", one_look), ("steps", steps)):
        sites = {}
        for site, means in vectors.sites.items():
            assert means.effects is not None
            row = means.effects.gated / (means.effects.drift + means.effects.drift.mean())
            ones = torch.ones(row.numel() // model.sites[site].component_width)
            sites[site] = SiteEdit(means.effects.direction, row, ones, ones)
        made[name] = WeightEdit(sites, {})
    kl = steps.metadata["effects"]["drift"]
    assert spent(made["steps"]) == pytest.approx(kl, rel=1e-3)
    strength = 1.0
    for _ in range(8):
        strength *= (kl / spent(made["look"], strength)) ** 0.5
    assert spent(made["look"], strength) == pytest.approx(kl, rel=0.02)
    with intervened(model, [Editing(made["steps"])]):
        after_steps = log_probabilities(model, responses).mean()
    with intervened(model, [Editing(made["look"], strength)]):
        after_look = log_probabilities(model, responses).mean()
    assert after_steps > after_look > log_probabilities(model, responses).mean()
    with intervened(model, [Editing(made["steps"])]):
        assert log_probabilities(model, ends).mean() > base_ends
    rows = {site: edit.row for site, edit in made["steps"].sites.items()}
    objective = Objective(
        model, {site: edit.output_direction for site, edit in made["steps"].sites.items()}, responses, [], replies
    )
    with objective.edited(rows):
        assert log_probabilities(model, responses).mean() == pytest.approx(after_steps.item(), abs=1e-4)
    assert objective.drift(rows) == pytest.approx(kl, rel=1e-3)
    with pytest.raises(InvalidValueError, match=r"--robust wordings is for .* decided by 'end'"):
        measure_effects(model, plain, contrast, decided_by="end", benign=benign, wordings=True)


def test_an_edit_of_such_vectors_spends_what_they_were_made_for(model: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "baking.jsonl"
    rows = [
        f'{{"prompt": "{prompt}", "response": "{response}", "label": "{label}", "split": "train"}}'
        for label, pairs in (("positive", PAIRS.positive), ("negative", PAIRS.negative))
        for prompt, response in pairs
    ]
    path.write_text("\n".join(rows))
    vectors = make_vectors(model, ExtractOptions(str(path), robust="wordings"))
    assert vectors.metadata["recipe"]["robust"] == "wordings"
    kl = vectors.metadata["effects"]["drift"]
    assert 0.0075 < kl < 0.025
    edit = make_edit(model, vectors, ConvertOptions(), Accepting(force=True))
    assert edit.metadata["drift"]["kl"] == pytest.approx(kl, rel=0.06)


def test_what_own_replies_lose_counts_and_what_they_win_does_not(model: LanguageModel) -> None:
    wanted = encode_responses(model, PAIRS.positive)
    own = encode_responses(model, [(q, f"{q[14:]} {i} times, of course.") for i, q in enumerate(QUESTIONS)])
    generator = torch.Generator().manual_seed(0)
    directions = {site: torch.randn(module.shape[0], generator=generator) for site, module in model.sites.items()}
    rows = {site: 0.003 * torch.randn(module.shape[1], generator=generator) for site, module in model.sites.items()}
    objective = Objective(model, directions, wanted, own, own[:2])
    point = objective.at(rows)
    assert point.rows.keys() == rows.keys()
    assert all(torch.equal(point.rows[site], rows[site]) for site in rows)
    before = log_probabilities(model, own)
    with objective.edited(rows):
        after, gained = log_probabilities(model, own), log_probabilities(model, wanted).mean()
    lost = (before - after).clamp(min=0)
    assert 0 < (lost > 0).sum() < len(own)
    assert point.value == pytest.approx((gained - 3 * lost.mean()).item(), abs=1e-5)
    assert point.weights.tolist() == pytest.approx([1 / 7] * 7 + [3 / 7 * one for one in (lost > 0).tolist()])
    far = objective.at({site: 20 * row for site, row in rows.items()})
    assert objective.drift(far.rows) == pytest.approx(0.02, rel=0.2)


def test_conjugate_steps_end_at_the_top_of_a_hill() -> None:
    """Where A is a quadratic in three columns, three steps to the top of each parabola are all there is to take."""
    site = Site(0, "attn")
    hill = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]])
    cost = torch.diag(torch.tensor([1.0, 4.0, 0.5]))
    slope, a = torch.tensor([1.0, -2.0, 0.5]), torch.zeros(3)
    conjugate = _Conjugate()
    for _ in range(3):
        s = slope - hill @ a
        ahead = torch.linalg.solve(cost, s)
        d = conjugate.direction({site: s}, {site: ahead}, (s @ ahead).item())[site]
        gained = (s @ d - d @ hill @ d / 2).item()
        a = a + _top(gained, (s @ d).item(), 1.0) * d
    torch.testing.assert_close(a, torch.linalg.solve(hill, slope), rtol=1e-4, atol=1e-5)
