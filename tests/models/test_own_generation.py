"""Replies are defined by `Sampling`: of what a checkpoint recommends nothing counts but its end tokens."""

import copy

import pytest
from transformers import GenerationConfig

from steer2edit.models import LanguageModel, Sampling, generate
from steer2edit.models.generation import generating
from tiny_chat import tiny_chat_model

PROMPTS = ["Hi", "How do I bake a loaf of bread at home?"]
GREEDY, DRAWN = Sampling(8), Sampling(8, temperature=1.5, seed=3)
# whatever a checkpoint can say, also what only some decoding methods read, and what a later version may bring
RECOMMENDED = [
    {"stop_strings": ["e", "a"]},
    {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True},
    {"num_return_sequences": 2, "num_beams": 2},
    {"num_return_sequences": 2, "do_sample": True},
    {"do_sample": True, "temperature": 0.3, "top_k": 2, "top_p": 0.3, "min_p": 0.2, "typical_p": 0.5},
    {"repetition_penalty": 3.0, "no_repeat_ngram_size": 1},
    {"min_length": 400, "max_length": 3},
    {"min_new_tokens": 8, "max_time": 0.0},
    {"forced_eos_token_id": 5, "forced_bos_token_id": 6},
    {"sequence_bias": [[[7], 50.0]], "bad_words_ids": [[8]]},
    {"exponential_decay_length_penalty": [1, 9.0], "guidance_scale": 3.0},
    {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_hidden_states": True},
    {"cache_implementation": "static", "use_cache": False},
    {"prompt_lookup_num_tokens": 3},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"a_setting_of_next_year": 1},
]


def recommending(**settings: object) -> LanguageModel:
    model = tiny_chat_model()
    model.network.generation_config = GenerationConfig(eos_token_id=0, **settings)
    return model


@pytest.fixture(scope="module")
def plain() -> dict[Sampling, list]:
    return {sampling: generate(recommending(), PROMPTS, sampling) for sampling in (GREEDY, DRAWN)}


@pytest.mark.parametrize("settings", RECOMMENDED, ids=lambda settings: next(iter(settings)))
def test_recommendations_change_nothing(settings: dict, plain: dict) -> None:
    model = recommending(**settings)
    before = model.network.generation_config
    kept = copy.deepcopy(before.to_dict())
    for sampling, replies in plain.items():
        assert generate(model, PROMPTS, sampling) == replies
    assert model.network.generation_config is before
    assert before.to_dict() == kept


@pytest.mark.parametrize("source", ["suppress_tokens", "begin_suppress_tokens"])
def test_the_likeliest_token_may_not_be_suppressed(source: str, plain: dict) -> None:
    first = [reply.ids[0] for reply in plain[GREEDY]]
    assert generate(recommending(**{source: first}), PROMPTS, GREEDY) == plain[GREEDY]


def test_the_recommendations_come_back_after_an_error() -> None:
    model = recommending(num_beams=3)
    before = model.network.generation_config
    with pytest.raises(ZeroDivisionError), generating(model):
        1 / (model.network.generation_config.num_beams or 0)
    assert model.network.generation_config is before
