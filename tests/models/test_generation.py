"""Generation against a loop written out: one prompt at a time, no padding, no cache, the largest logit next."""

from dataclasses import replace

import pytest
import torch

from steer2edit.errors import DataError, InvalidValueError
from steer2edit.models import LanguageModel, Reply, Sampling, TokenBudget, encode_prompts, generate
from tiny_chat import tiny_chat_model, tiny_tokenizer

PROMPTS = ["Hi", "How do I bake a loaf of bread at home?", "Tell me a joke.", "?"]
FAMILIES = ["llama", "gemma2", "gpt2", "opt", "falcon"]


def naive_greedy(model: LanguageModel, prompt: str, count: int) -> list[int]:
    (ids,) = encode_prompts(model, [prompt])
    made: list[int] = []
    with torch.inference_mode():
        for _ in range(count):
            logits = model.network(input_ids=torch.tensor([ids + made]), use_cache=False).logits
            made.append(int(logits[0, -1].argmax()))
    return made


def set_end(model: LanguageModel, *ends: int) -> None:
    model.network.generation_config.eos_token_id = list(ends)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_the_loop(family: str) -> None:
    model = tiny_chat_model(family)
    set_end(model, 0)
    replies = generate(model, PROMPTS, Sampling(max_new_tokens=8))
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        wanted = naive_greedy(model, prompt, 8)
        wanted = wanted[: wanted.index(0)] if 0 in wanted else wanted
        assert reply.ids == tuple(wanted)
    assert len({reply.ids for reply in replies}) > 2  # they can be told apart


def test_batches_do_not_matter_and_order_is_kept() -> None:
    model = tiny_chat_model()
    together = generate(model, PROMPTS, Sampling(8))
    assert generate(model, PROMPTS, Sampling(8), budget=TokenBudget(1)) == together
    assert generate(model, PROMPTS[::-1], Sampling(8)) == together[::-1]
    assert [generate(model, [prompt], Sampling(8))[0] for prompt in PROMPTS] == together


class TestEnding:
    def test_a_reply_ends_before_the_end_token(self) -> None:
        model = tiny_chat_model()
        set_end(model, 0)
        first, second = (naive_greedy(model, prompt, 8) for prompt in PROMPTS[:2])
        stop = next(i for i in range(2, 7) if first[i] not in first[:i] and first[i] not in second)
        set_end(model, first[stop])
        one, other = generate(model, PROMPTS[:2], Sampling(8))
        assert one.ids == tuple(first[:stop])
        assert one.finished
        assert other.ids == tuple(second)
        assert not other.finished
        assert one.text == model.tokenizer.decode(first[:stop], skip_special_tokens=True).strip()

    def test_end_at_the_last_allowed_token_counts_as_finished(self) -> None:
        model = tiny_chat_model()
        set_end(model, 0)
        ids = naive_greedy(model, "Hi", 8)
        stop = next(i for i in range(2, 8) if ids[i] not in ids[:i])
        set_end(model, ids[stop])
        (exact,) = generate(model, ["Hi"], Sampling(stop + 1))
        (short,) = generate(model, ["Hi"], Sampling(stop))
        assert (exact.ids, exact.finished) == (tuple(ids[:stop]), True)
        assert (short.ids, short.finished) == (tuple(ids[:stop]), False)

    def test_a_model_may_have_several_end_tokens(self) -> None:
        model = tiny_chat_model()
        set_end(model, 0)
        first, second = (naive_greedy(model, prompt, 4) for prompt in PROMPTS[:2])
        set_end(model, first[0], second[0])
        assert [(r.text, r.ids, r.finished) for r in generate(model, PROMPTS[:2], Sampling(4))] == [("", (), True)] * 2

    def test_the_tokenizer_names_the_end_where_the_model_does_not(self) -> None:
        tokenizer = tiny_tokenizer()
        model = tiny_chat_model(tokenizer=tokenizer)
        set_end(model, 0)
        first = naive_greedy(model, "Hi", 4)[0]
        model.network.generation_config.eos_token_id = None
        assert len(generate(model, ["Hi"], Sampling(4))[0].ids) == 4
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(first)
        assert generate(model, ["Hi"], Sampling(4)) == [Reply("", (), True)]

    def test_no_end_token_at_all(self) -> None:
        tokenizer = tiny_tokenizer(pad=False)
        tokenizer.eos_token = None
        model = tiny_chat_model(tokenizer=tokenizer)
        model.network.generation_config.eos_token_id = None
        replies = generate(model, PROMPTS[:2], Sampling(5))
        assert [(len(reply.ids), reply.finished) for reply in replies] == [(5, False)] * 2


class TestSampling:
    hot = Sampling(max_new_tokens=8, temperature=1.5, seed=7)

    def test_seeded(self) -> None:
        model = tiny_chat_model()
        once = generate(model, PROMPTS, self.hot)
        assert generate(model, PROMPTS, self.hot) == once
        assert generate(model, PROMPTS, replace(self.hot, seed=8)) != once
        assert generate(model, PROMPTS, replace(self.hot, temperature=0.0)) != once

    @pytest.mark.parametrize("temperature", [0.0, 1.5])
    def test_global_random_state_is_untouched(self, temperature: float) -> None:
        model = tiny_chat_model()
        torch.manual_seed(123)
        before = torch.get_rng_state()
        generate(model, PROMPTS, replace(self.hot, temperature=temperature))
        assert torch.equal(torch.get_rng_state(), before)

    def test_the_global_random_state_does_not_matter(self) -> None:
        model = tiny_chat_model()
        torch.manual_seed(1)
        once = generate(model, PROMPTS, self.hot)
        torch.manual_seed(2)
        assert generate(model, PROMPTS, self.hot) == once

    @pytest.mark.parametrize("recommended", [None, 20])
    def test_draws_from_the_whole_distribution(self, recommended: int | None) -> None:
        # 365 almost equally likely tokens: of 150 draws some 120 differ, where a top 50 would give at most 50;
        # one of them ends a reply, so there are several
        model = self.almost_uniform()
        model.network.generation_config.top_k = recommended
        replies = generate(model, ["Hi"] * 4, Sampling(150, temperature=1.0))
        assert len({token for reply in replies for token in reply.ids}) > 80

    def almost_uniform(self) -> LanguageModel:
        """The same, almost uniform distribution after every token."""
        model = tiny_chat_model()
        set_end(model)
        with torch.no_grad():
            model.network.model.embed_tokens.weight.copy_(torch.ones(32))
            model.network.lm_head.weight.mul_(1e-4)
        return model

    def test_top_p_cuts_the_tail(self) -> None:
        model = tiny_chat_model()
        set_end(model, 0)
        ids = naive_greedy(model, "Hi", 6)
        (reply,) = generate(model, ["Hi"], Sampling(6, temperature=1.0, top_p=1e-6))
        assert reply.ids == tuple(ids)  # only the likeliest token is left


def test_greedy_takes_the_largest_logit_whatever_the_checkpoint_recommends() -> None:
    model = tiny_chat_model()
    plain = generate(model, PROMPTS, Sampling(8))
    config = model.network.generation_config
    config.do_sample, config.repetition_penalty = True, 3.0
    assert generate(model, PROMPTS, Sampling(8)) == plain


class TestBadInput:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"max_new_tokens": 0}, "max_new_tokens must be >= 1, got 0"),
            ({"temperature": -0.1}, "temperature must be >= 0"),
            ({"top_p": 0.0}, r"top_p in \(0, 1\]"),
            ({"top_p": 1.1}, r"top_p in \(0, 1\]"),
        ],
    )
    def test_settings(self, settings: dict, message: str) -> None:
        with pytest.raises(InvalidValueError, match=message):
            Sampling(**settings)

    def test_no_room_for_the_reply(self) -> None:
        model = tiny_chat_model(max_position_embeddings=32)
        with pytest.raises(DataError, match="context of 'tiny-llama' is 32"):
            generate(model, ["Hi"], Sampling(31))

    def test_empty_prompt(self) -> None:
        with pytest.raises(DataError, match="must not be empty"):
            generate(tiny_chat_model(), ["Hi", ""])

    def test_no_prompts(self) -> None:
        assert generate(tiny_chat_model(), []) == []
