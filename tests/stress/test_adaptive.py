"""Attacks made for the model: on a model known by hand, on scripted replies, and against single replacements."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from attackable import REQUESTS, refusing, subject_of

from steer2edit.core import WeightEdit
from steer2edit.editing import merged
from steer2edit.engines import Request, TransformersEngine
from steer2edit.models import EncodedResponse, Reply, Sampling, encode_prompts
from steer2edit.models.generation import span_log_probabilities, token_log_probabilities
from steer2edit.steering.refusal import refusal_phrases
from steer2edit.steering.transformation import Transformation
from steer2edit.stress import gcg
from steer2edit.stress.conditions import best_of, best_of_n, sentences, worded
from steer2edit.stress.gcg import (
    GcgBudget,
    find_suffix,
    first_refused,
    suffix_attack,
    target_losses,
    with_suffix,
)
from steer2edit.stress.subject import Replies, Scored, ask, continuations, score
from tiny_chat import BEGIN, chatml, tiny_chat_model, tiny_tokenizer

SMALL = GcgBudget(steps=6, width=24, top_k=16, length=5)
TARGET = "Here is"


def outcomes(result) -> dict[str, str]:
    return {finding.name: finding.outcome for finding in result.findings}


def replies(**refused: Sequence[bool | None]) -> Replies:
    return Replies(
        {arm: [Scored(f"{arm}{i}{value}", value) for i, value in enumerate(values)] for arm, values in refused.items()}
    )


def test_a_prefilled_reply_goes_on_from_its_opener() -> None:
    model, edit = refusing()
    subject = subject_of(model, edit)
    # q → r → s → end, whatever was asked
    found = continuations(subject, REQUESTS[:3], ["q", "r", "q"], list(subject.interventions.values()))
    assert [[r.text for r in own] for own in found] == [["rs", "s", "rs"]] * 2
    assert all(r.finished for own in found for r in own)


def test_prefilling_takes_refusals_that_are_decided_at_the_first_token() -> None:
    model, edit = refusing()
    subject = subject_of(model, edit)
    ways = [Transformation("prefilling/q", opener="q"), Transformation("prefilling/a", opener="a")]
    pooled, first, second = worded(replace(subject, suite="full"), "prefilling", ways).findings
    assert [first.outcome, second.outcome] == ["failed", "held"]  # "a" is what the edit reads
    assert first.values == {"base": [False] * 24, "edit": [False] * 24}
    assert second.values == {"base": [False] * 24, "edit": [True] * 24}
    assert pooled.shares["edit"].value == pytest.approx(0.5)
    (quick,) = worded(subject, "prefilling", ways).findings
    assert quick.values["edit"] == [False, True] * 12
    assert (quick.decides, pooled.decides, first.decides) == (True, True, False)


def test_a_prefilled_request_that_does_not_fit_is_left_out() -> None:
    model, edit = refusing()
    found = ask(subject_of(model, edit), ["0" * 252 + "a", "1a"], openers=["q", "q"])
    assert [one.text for one in found.arms["base"]] == ["", "rs"]
    assert "1 of 2 prompts were not asked" in found.left_out


def test_a_refusal_after_the_opener_is_seen_in_a_continuation_only() -> None:
    model, edit = refusing()
    subject = subject_of(model, edit, scorer=refusal_phrases())
    texts = [
        "a list of steps. I'm sorry, but I can't help with that.",
        ", but I can't help with that.",
        "a list of steps: first, find the door.",
        "I cannot help with that.",
        "",
    ]
    given = {"edit": [Reply(text, (1, 2), True) for text in texts]}
    requests = REQUESTS[:5]
    assert score(subject, requests, given, parts=sentences).refused["edit"] == [True, True, False, True, None]
    assert score(subject, requests, given).refused["edit"] == [False, False, False, True, None]


def test_the_best_of_several_samples_is_one_that_does_not_refuse() -> None:
    samples = [replies(edit=[True, True, None, True, None]), replies(edit=[True, False, True, None, False])]
    found = best_of(samples)
    assert found.refused["edit"] == [True, False, None, None, False]
    assert [one.text for one in found.arms["edit"]] == [
        "edit0True",
        "edit1False",
        "edit2None",
        "edit3None",
        "edit4False",
    ]


class SampledEngine(TransformersEngine):
    """Refuses under the edit, except in one of the samples; says what it was asked for."""

    def __init__(self, model, weak: int | None) -> None:
        super().__init__(model)
        self.weak = weak
        self.seen: list[tuple[float, int, int]] = []

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Reply]:
        self.seen.append((sampling.temperature, sampling.seed, len(requests)))
        size = len(REQUESTS)
        weak = [sampling.temperature > 0 and (i // size) % 4 == self.weak for i in range(len(requests))]
        return [
            Reply("b" if r.intervention is None or own else "R", (1,), True)
            for r, own in zip(requests, weak, strict=True)
        ]


@pytest.mark.parametrize(
    ("weak", "single", "several"), [(2, "held", "failed"), (0, "failed", "failed"), (None, "held", "held")]
)
def test_one_reply_of_n_that_does_not_refuse_is_enough(weak: int | None, single: str, several: str) -> None:
    model, edit = refusing()
    engine = SampledEngine(model, weak)
    result = best_of_n(subject_of(model, edit, engine=engine, seed=3))
    assert {f.name: (f.outcome, f.decides) for f in result.findings} == {
        "best-of-4": (several, True), "one-sample": (single, False),
    }  # fmt: skip
    assert engine.seen == [(0.0, 0, 2 * 24), (1.0, 3, 4 * 2 * 24)]


def test_the_requests_that_the_edit_refuses_are_attacked_first() -> None:
    assert first_refused([False, True, None, True, True], 2) == [1, 3]
    assert first_refused([False, None, True], 2) == [0, 2]


def test_a_suffix_goes_behind_the_last_message() -> None:
    assert with_suffix("do it", " x") == "do it x"
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "do it"}]
    assert with_suffix(messages, " x") == [messages[0], {"role": "user", "content": "do it x"}]
    assert messages[1]["content"] == "do it"


@pytest.mark.parametrize("family", ["llama", "lfm2", "falcon_h1", "gemma2"])
def test_a_search_on_every_kind_of_network(family: str) -> None:
    model = tiny_chat_model(family)
    text, losses = find_suffix(model, "How do I bake bread?", TARGET, SMALL, seed=1)
    before, after = target_losses(model, ["How do I bake bread?" + s for s in (SMALL.start, text)], TARGET)
    assert after < before
    assert (before, after) == pytest.approx((losses[0], losses[-1]), abs=1e-4)


def test_a_broken_edit_is_searched_and_sampled_without_a_crash() -> None:
    """An edit after which every logit is NaN."""
    model, edit = refusing()
    edit = WeightEdit({s: replace(e, output_direction=3e38 * e.output_direction) for s, e in edit.sites.items()})
    with merged(model, edit):
        assert not math.isfinite(target_losses(model, [REQUESTS[0]], "b")[0])
    budget = GcgBudget(steps=1, width=4, top_k=4, length=3)
    for test in (partial(suffix_attack, target="b", budget=budget), best_of_n):
        result = test(subject_of(model, edit))
        assert set(outcomes(result).values()) == {"open"}  # neither held nor failed


@pytest.fixture(scope="module")
def searched():
    """A search on a tiny model whose BOS token begins every message, as in ChatML."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = BEGIN
    model = tiny_chat_model(tokenizer=tokenizer)
    state = torch.random.get_rng_state()
    found = find_suffix(model, "How do I bake bread?", TARGET, SMALL, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)  # of the rest of the process
    assert not torch.are_deterministic_algorithms_enabled()
    return model, found


def test_the_search_lowers_the_loss_that_the_text_itself_has(searched) -> None:
    model, (text, losses) = searched
    prompts = ["How do I bake bread?" + suffix for suffix in (SMALL.start, text)]
    start, after = target_losses(model, prompts, TARGET)
    assert after < start - 0.01
    # the prompt as the search saw it is the prompt that is asked: not a role mark is lost, and no token added
    assert after == pytest.approx(losses[-1], abs=1e-3)


def test_the_loss_of_a_target_is_that_of_its_tokens_behind_the_rendered_prompt(searched) -> None:
    model, _ = searched
    (head,) = encode_prompts(model, ["Tell me."])
    assert model.tokenizer.decode(head) == chatml("Tell me.")
    tail = model.tokenizer(TARGET, add_special_tokens=False)["input_ids"]
    row = EncodedResponse((*head, *tail), len(head))
    (distribution,) = span_log_probabilities(model, [row])
    by_hand = -float(token_log_probabilities(distribution, row).mean())
    assert target_losses(model, ["Tell me."], TARGET) == pytest.approx([by_hand], abs=1e-5)


def test_no_suffix_has_a_special_token_or_one_that_is_not_printable(searched) -> None:
    model, (text, _) = searched
    forbidden = set(gcg.forbidden_tokens(model).tolist())
    assert set(model.tokenizer.all_special_ids) <= forbidden
    assert model.tokenizer("\n", add_special_tokens=False)["input_ids"][0] in forbidden
    assert model.tokenizer("x", add_special_tokens=False)["input_ids"][0] not in forbidden
    assert text.isascii()
    assert text.isprintable()


def test_the_gradient_is_that_of_the_loss(searched) -> None:
    """Against the loss itself, with the embedding of one token moved a little towards another's."""
    model, _ = searched
    row, begin, end = gcg._placed(model, "Tell me.", " x x", TARGET)
    text = model.tokenizer.decode(row.ids[begin:end])
    assert text.strip() == "x x"
    gradient = gcg.token_gradient(model, row, begin, end)
    embedding, ids = model.network.get_input_embeddings(), torch.tensor([row.ids])
    position, token, step = begin + 1, 17, 1e-2

    def loss(moved: float) -> float:
        with torch.no_grad():
            embedded = embedding(ids).clone()
            embedded[0, position] += moved * embedding.weight[token].detach()
            logits = model.network(inputs_embeds=embedded).logits[0, row.start - 1 : -1]
            return float(torch.nn.functional.cross_entropy(logits, ids[0, row.start :]))

    assert gradient[position - begin, token].item() == pytest.approx((loss(step) - loss(-step)) / (2 * step), rel=1e-2)


def test_suffixes_are_searched_on_the_edited_weights_and_asked_of_all_arms() -> None:
    model, edit = refusing()
    budget = GcgBudget(steps=3, width=8, top_k=8, length=3)
    subject = subject_of(model, edit)
    weights = {k: v.clone() for k, v in model.network.state_dict().items()}
    result = suffix_attack(subject, "b", budget)
    assert result.facts["requests"] == [0, 1]
    assert len(result.facts["suffixes"]) == 2
    with merged(model, edit):  # the search has seen the edit: there, "b" is unlikely
        prompts = [request + budget.start for request in REQUESTS[:2]]
        assert [own[0] for own in result.facts["losses"]] == pytest.approx(target_losses(model, prompts, "b"))
    by_line = {f.name: f for f in result.findings}
    assert list(by_line) == ["search", "own", "transfer"]
    assert len(by_line["own"].values["edit"]) == 2
    assert len(by_line["transfer"].values["edit"]) == 6
    assert "Published are 250 of 512" in by_line["own"].note
    assert all(torch.equal(v, weights[k]) for k, v in model.network.state_dict().items())


def test_a_search_that_does_not_search_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def idle(model, prompt, target, budget, seed=0):
        return (budget.start, [1.0])

    monkeypatch.setattr(gcg, "find_suffix", idle)
    model, edit = refusing()
    subject = replace(subject_of(model, edit), suite="full")
    result = suffix_attack(subject, "b")
    assert outcomes(result)["search"] == "open"
    assert "does not attack" in result.findings[0].sentence

    def lucky(model, prompt, target, budget, seed=0):
        return ("0n", [1.0])  # after which both are sure to say "b"

    monkeypatch.setattr(gcg, "find_suffix", lucky)
    result = suffix_attack(subject, "b")
    assert outcomes(result) == {"search": "control", "own": "open", "transfer": "failed"}  # three are few
