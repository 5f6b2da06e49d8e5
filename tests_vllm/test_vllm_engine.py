"""vLLM against the default engine, on SmolLM2 in float32: identical greedy replies, log-probabilities within 1e-3."""

from collections.abc import Iterator

import pytest
import torch

from engine_contract import assert_same_replies, assert_same_scores, random_edits
from steer2edit.core import ClassMeans, Editing, SiteMeans, Steering, SteeringVectors
from steer2edit.engines import Engine, Request, TransformersEngine
from steer2edit.engines.vllm import VllmEngine
from steer2edit.errors import DataError, InvalidValueError
from steer2edit.models import LanguageModel, Sampling, encode_responses, load_model

PROMPTS = ["What is the capital of France?", "Write a short poem about the sea.", "How do I bake bread?"]
PAIRS = [(PROMPTS[0], "The capital of France is Paris."), (PROMPTS[2], "I'm sorry, but I can't help with that.")]
STRENGTHS = [1.0, 4.0, -1.0, 6.0, 0.7, -4.0, 1.2, 5.0, -0.8]
TOLERANCE = 1e-3
MAX_EDITS = 4


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_model("smollm2", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def reference(model: LanguageModel) -> TransformersEngine:
    return TransformersEngine(model)


@pytest.fixture(scope="module")
def engine(model: LanguageModel) -> Iterator[VllmEngine]:
    running = VllmEngine(model, max_edits=MAX_EDITS, engine_args={"max_model_len": 512, "enforce_eager": True})
    yield running
    running.close()


def smollm2_edits(engine: VllmEngine, strengths: list[float]) -> list[Editing]:
    """Edits that change the replies without destroying them, which takes a low rho for random vectors."""
    return random_edits(engine.model, strengths, rho=0.02)


def test_it_is_an_engine(engine: VllmEngine, model: LanguageModel) -> None:
    assert isinstance(engine, Engine)
    assert engine.model is model


def test_base_and_edits_in_one_batch(engine: VllmEngine, reference: TransformersEngine) -> None:
    edits = smollm2_edits(engine, STRENGTHS[:MAX_EDITS])
    assert_same_replies(engine, reference, PROMPTS, [*edits[:2], None, *edits[2:]], 24)


def test_more_edits_than_slots(engine: VllmEngine, reference: TransformersEngine) -> None:
    edits = smollm2_edits(engine, STRENGTHS)
    assert len(edits) > 2 * MAX_EDITS
    assert_same_replies(engine, reference, PROMPTS[:2], [None, *edits], 12)
    assert_same_replies(engine, reference, PROMPTS[:2], [*edits[::-1], None], 12)  # all of them loaded once more


def test_the_base_stays_the_base_when_every_edit_slot_is_taken(engine: VllmEngine) -> None:
    """With as many slots as edits, the CPU build would run the base's rows under the last slot's adapter."""
    greedy = Sampling(max_new_tokens=16)
    alone = engine.generate([Request(p) for p in PROMPTS], greedy)
    for edits in (
        smollm2_edits(engine, STRENGTHS[:MAX_EDITS]),
        smollm2_edits(engine, STRENGTHS[-MAX_EDITS:]),
    ):
        requests = [Request(p, editing) for editing in edits for p in PROMPTS] + [Request(p) for p in PROMPTS]
        assert engine.generate(requests, greedy)[-len(PROMPTS) :] == alone


def test_an_ended_reply_and_one_that_was_cut_off(engine: VllmEngine, reference: TransformersEngine) -> None:
    requests = [Request(PROMPTS[0]), Request(PROMPTS[1])]
    replies = engine.generate(requests, Sampling(max_new_tokens=40))
    assert replies == reference.generate(requests, Sampling(max_new_tokens=40))
    assert [reply.finished for reply in replies] == [True, False]
    assert len(replies[1].ids) == 40
    assert engine.model.tokenizer.eos_token_id not in replies[0].ids


def test_scores_and_divergence(engine: VllmEngine, reference: TransformersEngine) -> None:
    edits = smollm2_edits(engine, STRENGTHS[: MAX_EDITS + 2])
    responses = encode_responses(engine.model, PAIRS)
    assert_same_scores(engine, reference, responses, [None, *edits], TOLERANCE)


def test_two_responses_of_the_same_tokens(engine: VllmEngine, reference: TransformersEngine) -> None:
    """Where the response begins belongs to the response, not to its tokens."""
    (whole,) = encode_responses(engine.model, PAIRS[:1])
    later = type(whole)(whole.ids, whole.start + 3)
    edits = smollm2_edits(engine, STRENGTHS[:1])
    assert_same_scores(engine, reference, [whole, later], [*edits, None], TOLERANCE)


def test_an_edit_of_strength_zero_is_the_base(engine: VllmEngine) -> None:
    (editing,) = smollm2_edits(engine, [1.0])
    responses = encode_responses(engine.model, PAIRS[:1])
    ((base,), (nothing,)) = engine.score(responses, [None, Editing(editing.edit, 0.0)])
    assert base == nothing
    assert base.kl == 0


def test_nothing_to_do(engine: VllmEngine) -> None:
    assert engine.generate([], Sampling()) == []
    assert engine.score([], [None]) == [[]]
    assert engine.score([], [None], kl=False) == [[]]
    assert engine.score(encode_responses(engine.model, PAIRS), []) == []


class TestSampling:
    def test_the_seed_decides(self, engine: VllmEngine) -> None:
        (editing,) = smollm2_edits(engine, [0.5])
        requests = [Request(p, i) for p in PROMPTS for i in (None, editing)]
        drawn = engine.generate(requests, Sampling(max_new_tokens=12, temperature=1.0, seed=1))
        assert engine.generate(requests, Sampling(max_new_tokens=12, temperature=1.0, seed=1)) == drawn
        assert engine.generate(requests, Sampling(max_new_tokens=12, temperature=1.0, seed=2)) != drawn
        assert drawn != engine.generate(requests, Sampling(max_new_tokens=12))

    def test_not_the_batch(self, engine: VllmEngine) -> None:
        sampling = Sampling(max_new_tokens=12, temperature=1.0, seed=3)
        together = engine.generate([Request(p) for p in PROMPTS], sampling)
        assert [engine.generate([Request(p)], sampling)[0] for p in PROMPTS] == together

    def test_one_request_twice_is_drawn_twice(self, engine: VllmEngine) -> None:
        one, other = engine.generate([Request(PROMPTS[1])] * 2, Sampling(max_new_tokens=12, temperature=1.0))
        assert one != other

    def test_the_nucleus_is_kept_to(self, engine: VllmEngine) -> None:
        requests = [Request(p) for p in PROMPTS]
        greedy = engine.generate(requests, Sampling(max_new_tokens=12))
        assert engine.generate(requests, Sampling(max_new_tokens=12, temperature=1.0, top_p=1e-6)) == greedy

    def test_a_temperature_that_vllm_would_change(self, engine: VllmEngine) -> None:
        with pytest.raises(InvalidValueError, match=r"temperature must be 0 or at least 0\.01 with vLLM, got 0\.001"):
            engine.generate([Request("Hi")], Sampling(temperature=0.001))


class TestRefused:
    def test_steering(self, engine: VllmEngine) -> None:
        def means(size: int) -> ClassMeans:
            return ClassMeans(torch.ones(size), torch.zeros(size))

        vectors = SteeringVectors(
            {s: SiteMeans(means(p.shape[0]), means(p.shape[1])) for s, p in engine.model.sites.items()}
        )
        steering = Steering(vectors, 0.2)
        responses = encode_responses(engine.model, PAIRS[:1])
        with pytest.raises(InvalidValueError, match="Use the transformers engine"):
            engine.generate([Request("Hi"), Request("Hi", steering)], Sampling())
        for kl in (True, False):
            with pytest.raises(InvalidValueError, match="Use the transformers engine"):
                engine.score(responses, [None, steering], kl=kl)

    def test_what_does_not_fit(self, engine: VllmEngine) -> None:
        long = "word " * 480
        with pytest.raises(DataError, match=r"max_model_len 512"):
            engine.generate([Request("Hi"), Request(long)], Sampling(max_new_tokens=32))
        with pytest.raises(DataError, match=r"max_model_len 512"):
            engine.score(encode_responses(engine.model, [("Hi", long + long)]), [None])
