"""One batch of rows under different interventions equals separate runs, one row at a time."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch

from families import DENSE, random_site_means
from next_tokens import next_token_log_probabilities
from steer2edit.core import Editing, Intervention, Steering, SteeringVectors, WeightEdit
from steer2edit.editing import convert, merged
from steer2edit.engines import Engine, RememberingEngine, Request, ResponseScore, TransformersEngine
from steer2edit.errors import DataError
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import (
    EncodedResponse,
    LanguageModel,
    Reply,
    Sampling,
    encode_prompts,
    encode_responses,
    generate,
)
from steered import steered
from tiny_chat import tiny_chat_model

OTHERS = ("qwen3_moe", "gpt_oss", "llama4_text", "qwen3_next", "lfm2_moe", "granitemoehybrid", "falcon_h1")
DENSE_TRANSFORMERS = tuple(family for family in DENSE if family not in OTHERS)
GREEDY = Sampling(max_new_tokens=6)
PROMPTS = ["Hi", "How do I bake a loaf of bread at home?"]
PAIRS = [("Hi", "I'm sorry, but I can't help with that."), ("Why?", "Because."), ("A longer question?", "x")]


def vectors_for(model: LanguageModel, seed: int = 1) -> SteeringVectors:
    generator = torch.Generator().manual_seed(seed)
    return SteeringVectors({site: random_site_means(module, generator) for site, module in model.sites.items()})


def edit_for(
    model: LanguageModel, vectors: SteeringVectors, rho_attn: float | None, rho_mlp: float | None
) -> WeightEdit:
    return convert(model, vectors, Hyperparameters(rho_attn, rho_mlp, 0.1))


def interventions_for(model: LanguageModel) -> list[Intervention]:
    """The base, steering at two strengths, edits that share u, one that does not, and one at another strength."""
    vectors, others = vectors_for(model), vectors_for(model, seed=2)
    both = edit_for(model, vectors, 0.2, 0.2)
    return [
        None,
        Steering(vectors, 0.2),
        Steering(vectors, -0.4),
        Editing(both),
        Editing(both, -0.5),
        Editing(edit_for(model, vectors, 0.4, None)),
        Editing(edit_for(model, others, None, 0.3)),
    ]


@cache
def few(family: str) -> tuple[LanguageModel, list[Intervention]]:
    """A model of the family and an intervention of each kind, for what is asked of every family."""
    model = tiny_chat_model(family)
    vectors, others = vectors_for(model), vectors_for(model, seed=2)
    both, one = edit_for(model, vectors, 0.2, 0.2), edit_for(model, others, 0.3, None)
    return model, [None, Steering(vectors, -0.4), Editing(both), Editing(one, -0.5)]


class alone:  # noqa: N801 - a context manager
    """The intervention in another way than the engine's: in the weights, or by `steered`."""

    def __init__(self, model: LanguageModel, intervention: Intervention) -> None:
        if isinstance(intervention, Steering):
            self.context = steered(model, intervention.vectors, intervention.strength)
        elif isinstance(intervention, Editing):
            self.context = merged(model, intervention.edit, intervention.strength)
        else:
            self.context = torch.no_grad()

    def __enter__(self) -> None:
        self.context.__enter__()

    def __exit__(self, *error: object) -> None:
        self.context.__exit__(*error)


def naive_log_probabilities(model: LanguageModel, response: EncodedResponse) -> torch.Tensor:
    with torch.inference_mode():
        logits = model.network(input_ids=torch.tensor([response.ids])).logits[0].double()
    return logits.log_softmax(dim=-1)[response.start - 1 : len(response.ids) - 1]


class TestGeneration:
    @pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox", "falcon", "opt", *OTHERS])
    def test_a_mixed_batch_equals_separate_runs(self, family: str) -> None:
        model, interventions = few(family)
        requests = [Request(p, i) for i in interventions for p in PROMPTS]
        together = TransformersEngine(model).generate(requests, GREEDY)
        base = together[: len(PROMPTS)]
        for index, (request, reply) in enumerate(zip(requests, together, strict=True)):
            with alone(model, request.intervention):
                (wanted,) = generate(model, [request.prompt], GREEDY)
            assert reply == wanted, f"request {index}"
        assert sum(reply.ids != base[i % 2].ids for i, reply in enumerate(together)) > 3  # interventions matter

    def test_batch_sizes_do_not_matter(self) -> None:
        model = tiny_chat_model()
        requests = [Request(p, i) for p in PROMPTS for i in interventions_for(model)]
        together = TransformersEngine(model).generate(requests, GREEDY)
        for tokens in (1, 130):
            assert TransformersEngine(model, generation_tokens=tokens).generate(requests, GREEDY) == together
        assert TransformersEngine(model).generate(requests[::-1], GREEDY)[::-1] == together

    def test_one_intervention_for_all_rows(self) -> None:
        model = tiny_chat_model()
        for intervention in interventions_for(model):
            found = TransformersEngine(model).generate([Request(p, intervention) for p in PROMPTS], GREEDY)
            with alone(model, intervention):
                assert found == generate(model, PROMPTS, GREEDY)

    def test_the_model_is_left_as_it_was(self) -> None:
        model = tiny_chat_model()
        state = {name: value.clone() for name, value in model.network.state_dict().items()}
        TransformersEngine(model).generate([Request("Hi", i) for i in interventions_for(model)], GREEDY)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.network.modules())
        assert all(torch.equal(value, state[name]) for name, value in model.network.state_dict().items())

    def test_bad_prompts(self) -> None:
        engine = TransformersEngine(tiny_chat_model(max_position_embeddings=40))
        with pytest.raises(DataError, match="must not be empty"):
            engine.generate([Request("Hi"), Request(" ")], GREEDY)
        with pytest.raises(DataError, match="context of 'tiny-llama' is 40"):
            engine.generate([Request("q" * 30)], GREEDY)

    def test_nothing_to_do(self) -> None:
        engine = TransformersEngine(tiny_chat_model())
        assert engine.generate([], GREEDY) == []
        assert engine.score([], [None]) == [[]]


class TestScores:
    @pytest.mark.parametrize("family", [*DENSE_TRANSFORMERS, *OTHERS])
    def test_equal_a_computation_by_hand(self, family: str) -> None:
        model, interventions = few(family)
        responses = encode_responses(model, PAIRS[:2])
        scores = TransformersEngine(model).score(responses, interventions)
        base = [naive_log_probabilities(model, response) for response in responses]
        for intervention, row in zip(interventions, scores, strict=True):
            with alone(model, intervention):
                changed = [naive_log_probabilities(model, response) for response in responses]
            for response, score, before, after in zip(responses, row, base, changed, strict=True):
                own = [after[i, token].item() for i, token in enumerate(response.response_ids)]
                assert score.tokens == len(own)
                assert score.nll == pytest.approx(-sum(own) / len(own), abs=1e-4)
                assert score.log_probability == pytest.approx(sum(own), abs=1e-4 * len(own))
                by_hand = float((before.exp() * (before - after)).sum(dim=-1).mean())
                assert score.kl == pytest.approx(by_hand, abs=1e-4)
        assert all(score.kl == 0 for score in scores[0])  # exactly: the base against itself
        assert all(score.kl > 1e-5 for row in scores[1:] for score in row)

    def test_batch_sizes_do_not_matter(self) -> None:
        model = tiny_chat_model()
        responses = encode_responses(model, PAIRS)
        interventions = interventions_for(model)
        together = TransformersEngine(model).score(responses, interventions)
        singly = TransformersEngine(model, scoring_tokens=1).score(responses, interventions)
        for row, other in zip(together, singly, strict=True):
            assert [s.nll for s in row] == pytest.approx([s.nll for s in other], abs=1e-5)
            assert [s.kl for s in row] == pytest.approx([s.kl for s in other], abs=1e-5)

    def test_order_is_kept(self) -> None:
        model = tiny_chat_model()
        responses = encode_responses(model, PAIRS)
        (forward,), (backward,) = (
            TransformersEngine(model).score(rows, [None]) for rows in (responses, responses[::-1])
        )
        assert len({round(s.nll, 3) for s in forward}) == len(PAIRS)
        assert [s.nll for s in backward[::-1]] == pytest.approx([s.nll for s in forward], abs=1e-5)

    def test_nll_is_per_token(self) -> None:
        assert ResponseScore(log_probability=-6.0, tokens=3, kl=0.0).nll == 2.0


def test_it_is_an_engine() -> None:
    model = tiny_chat_model()
    engine = TransformersEngine(model)
    assert isinstance(engine, Engine)
    assert engine.model is model


def test_the_first_row_does_not_decide() -> None:
    """Steering before editing, editing before steering, the base in between: every order gives the same replies."""
    model = tiny_chat_model("gpt2")
    interventions = interventions_for(model)
    engine = TransformersEngine(model)

    def ids(chosen: Sequence[Intervention]) -> dict[int, tuple[int, ...]]:
        replies = engine.generate([Request("Hi", i) for i in chosen], GREEDY)
        return {id(i): reply.ids for i, reply in zip(chosen, replies, strict=True)}

    wanted = ids(interventions)
    for shift in range(1, len(interventions)):
        assert ids(interventions[shift:] + interventions[:shift]) == wanted


@pytest.mark.parametrize("family", [*DENSE_TRANSFORMERS, *OTHERS])
def test_the_next_token_equals_a_computation_by_hand(family: str) -> None:
    model, interventions = few(family)
    encoded = encode_prompts(model, PROMPTS)
    for intervention in interventions:
        with alone(model, intervention), torch.inference_mode():
            found = next_token_log_probabilities(model, encoded)
            for ids, distribution in zip(encoded, found, strict=True):
                logits = model.network(input_ids=torch.tensor([ids])).logits[0, -1].double()
                assert torch.allclose(distribution.double(), logits.log_softmax(dim=-1), atol=1e-4)


class TestWithoutDivergence:
    def test_log_probabilities_are_the_same(self) -> None:
        model = tiny_chat_model()
        responses, interventions = encode_responses(model, PAIRS), interventions_for(model)
        engine = TransformersEngine(model)
        plain = engine.score(responses, interventions, kl=False)
        for row, with_kl in zip(plain, engine.score(responses, interventions), strict=True):
            for one, other in zip(row, with_kl, strict=True):
                assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)
                assert math.isnan(one.kl)
                assert not math.isnan(other.kl)

    def test_no_interventions(self) -> None:
        model = tiny_chat_model()
        assert TransformersEngine(model).score(encode_responses(model, PAIRS), []) == []


class CountingEngine(TransformersEngine):
    """Counts the requests it is asked for."""

    asked = 0

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Reply]:
        self.asked += len(requests)
        return super().generate(requests, sampling)


class TestRemembering:
    def test_the_base_is_asked_once(self) -> None:
        model = tiny_chat_model()
        inner = CountingEngine(model)
        engine = RememberingEngine(inner)
        requests = [Request(p, i) for i in interventions_for(model) for p in PROMPTS]
        wanted = TransformersEngine(model).generate(requests, GREEDY)
        assert engine.generate(requests, GREEDY) == wanted
        assert inner.asked == len(requests)
        assert engine.generate(requests, GREEDY) == wanted
        assert inner.asked == 2 * len(requests) - len(PROMPTS)
        assert engine.generate([Request(p) for p in PROMPTS] * 2, GREEDY) == wanted[: len(PROMPTS)] * 2
        assert inner.asked == 2 * len(requests) - len(PROMPTS)

    def test_of_other_interventions_too_where_they_are_named(self) -> None:
        """By the edit or the vectors themselves and the strength, in whatever object they come."""
        model = tiny_chat_model()
        inner = CountingEngine(model)
        arms = interventions_for(model)
        engine = RememberingEngine(inner, arms)
        requests = [Request(p, i) for i in arms for p in PROMPTS]
        wanted = engine.generate(requests, GREEDY)
        assert wanted == TransformersEngine(model).generate(requests, GREEDY)
        again = [Request(p, i and replace(i)) for i in arms for p in PROMPTS]
        assert RememberingEngine(inner, arms, engine.replies).generate(again, GREEDY) == wanted
        assert inner.asked == len(requests)
        for arm in filter(None, arms):
            engine.generate([Request("Hi", replace(arm, strength=0.3))] * 2, GREEDY)
        assert inner.asked == len(requests) + 2 * (len(arms) - arms.count(None))

    def test_what_another_process_knew(self) -> None:
        inner = CountingEngine(tiny_chat_model())
        engine = RememberingEngine(inner)
        known = engine.generate([Request("Hi")], GREEDY)
        other = RememberingEngine(inner, replies=engine.replies)
        assert other.generate([Request("Hi")], GREEDY) == known
        assert inner.asked == 1

    def test_other_lengths_and_sampling_are_other_answers(self) -> None:
        inner = CountingEngine(tiny_chat_model())
        engine = RememberingEngine(inner)
        longer, sampled = Sampling(max_new_tokens=9), Sampling(max_new_tokens=6, temperature=1.0)
        for sampling in (GREEDY, longer, sampled):
            assert engine.generate([Request("Hi")], sampling) == inner.generate([Request("Hi")], sampling)
        asked = inner.asked
        engine.generate([Request("Hi")], sampled)
        assert inner.asked == asked + 1  # what is drawn is never remembered
