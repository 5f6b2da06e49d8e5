"""Reading vLLM's flat lists, which put a position's own token first and then the tokens by probability."""

import math
from types import SimpleNamespace

import pytest
import torch

from steer2edit.engines.vllm_package import own_score, whole_distributions
from steer2edit.errors import ModelError

P, Q = [0.5, 0.125, 0.25, 0.125], [0.125, 0.0625, 0.75, 0.0625]


def flat(*positions: tuple[list[int], list[float]]) -> SimpleNamespace:
    """The first position of a prompt predicts nothing and is empty."""
    starts, tokens, values = [0], [], []
    for ids, log_probabilities in positions:
        starts.append(len(tokens))
        tokens += ids
        values += log_probabilities
    return SimpleNamespace(start_indices=starts, token_ids=tokens, logprobs=values)


def position(own: int, probabilities: list[float]) -> tuple[list[int], list[float]]:
    order = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])
    ids = [own, *order]
    return ids, [math.log(probabilities[i]) for i in ids]


def test_whole_distributions_in_the_order_of_the_vocabulary() -> None:
    answer = flat(position(3, [0.25] * 4), position(3, P), position(0, Q))
    torch.testing.assert_close(whole_distributions(answer, 2, 4).exp(), torch.tensor([P, Q]))
    assert whole_distributions(answer, 2, 4).dtype == torch.float32


def test_anything_less_than_the_whole_vocabulary_is_refused() -> None:
    top_three = ([3, 0, 2, 1], [math.log(x) for x in (0.125, 0.5, 0.25, 0.125)])
    with pytest.raises(ModelError, match="4 log-probabilities for 1 positions and a vocabulary of 4"):
        whole_distributions(flat(top_three), 1, 4)
    twice = ([0, 0, 2, 1, 1], [math.log(x) for x in (0.5, 0.5, 0.25, 0.125, 0.125)])  # enough of them, but no 3
    with pytest.raises(ModelError, match="not whole distributions"):
        whole_distributions(flat(twice), 1, 4)


def test_own_score_sums_the_own_tokens() -> None:
    score = own_score(flat(position(0, P), position(3, P), position(2, Q)), 2)
    assert score.log_probability == pytest.approx(math.log(0.125) + math.log(0.75))
    assert score.tokens == 2
    assert math.isnan(score.kl)
