"""Log-probabilities against the naive way: one response at a time, all logits, float64."""

import pytest
import torch

from families import FAMILIES, tiny_model
from steer2edit.models import EncodedResponse, span_log_probabilities, token_log_probabilities

RESPONSES = [
    EncodedResponse(tuple(range(3, 20)), 5),
    EncodedResponse((7, 90, 4, 4, 31), 4),
    EncodedResponse(tuple(range(80, 50, -1)), 1),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_equal_the_naive_computation(family: str) -> None:
    model = tiny_model(family)
    found = span_log_probabilities(model, RESPONSES)
    for response, rows in zip(RESPONSES, found, strict=True):
        with torch.inference_mode():
            logits = model.network(input_ids=torch.tensor([response.ids])).logits[0]
        wanted = logits.double().log_softmax(dim=-1)[response.start - 1 : len(response.ids) - 1]
        assert rows.dtype == torch.float32
        assert rows.shape == wanted.shape
        assert float((rows.double() - wanted).abs().max()) < 1e-4
        own = token_log_probabilities(rows, response)
        by_hand = [wanted[i, token].item() for i, token in enumerate(response.ids[response.start :])]
        assert own.tolist() == pytest.approx(by_hand, abs=1e-4)


def test_batch_composition_does_not_matter() -> None:
    model = tiny_model()
    together = span_log_probabilities(model, RESPONSES)
    for response, rows in zip(RESPONSES, together, strict=True):
        (alone,) = span_log_probabilities(model, [response])
        assert float((alone - rows).abs().max()) < 1e-5


def test_float32_from_a_half_precision_model() -> None:
    model = tiny_model()
    model.network.to(torch.bfloat16)
    (rows,) = span_log_probabilities(model, RESPONSES[:1])
    assert rows.dtype == torch.float32
    # normalised in float32: probabilities sum to 1 far better than bfloat16's 2^-8
    assert float((rows.double().exp().sum(dim=-1) - 1).abs().max()) < 1e-5


def test_each_token_takes_its_own_column() -> None:
    table = torch.tensor([[-0.1, -0.2, -0.3], [-1.0, -2.0, -3.0]])
    response = EncodedResponse((0, 2, 1), 1)
    assert token_log_probabilities(table, response).tolist() == pytest.approx([-0.3, -2.0])
