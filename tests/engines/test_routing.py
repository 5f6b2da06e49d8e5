"""Two engines as one: steering on the second, everything else on the first, in the order that was asked for."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from steer2edit.core import ClassMeans, Editing, Intervention, SiteMeans, Steering, SteeringVectors
from steer2edit.editing import convert
from steer2edit.engines import Engine, Request, RoutingEngine, TransformersEngine
from steer2edit.errors import InvalidValueError
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import EncodedResponse, LanguageModel, Reply, Sampling, encode_responses
from tiny_chat import tiny_chat_model

GREEDY = Sampling(max_new_tokens=5)


class EditsOnly(TransformersEngine):
    """As vLLM: refuses steering."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Reply]:
        _refuse(request.intervention for request in requests)
        return super().generate(requests, sampling)

    def score(self, responses: Sequence[EncodedResponse], interventions: Sequence[Intervention], **how: Any) -> Any:
        _refuse(interventions)
        return super().score(responses, interventions, **how)


class Silent(TransformersEngine):
    """Must not be asked."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Reply]:
        raise AssertionError("asked without work")


def _refuse(interventions: Any) -> None:
    if any(isinstance(intervention, Steering) for intervention in interventions):
        raise InvalidValueError("edits only")


def interventions_of(model: LanguageModel) -> list[Intervention]:
    generator = torch.Generator().manual_seed(0)

    def means(size: int) -> ClassMeans:
        return ClassMeans(torch.randn(size, generator=generator), torch.randn(size, generator=generator))

    vectors = SteeringVectors({s: SiteMeans(means(p.shape[0]), means(p.shape[1])) for s, p in model.sites.items()})
    edit = convert(model, vectors, Hyperparameters(0.2, 0.2, 0.1))
    return [Steering(vectors, 0.3), None, Editing(edit), Steering(vectors, -0.3), Editing(edit, -0.5)]


def test_the_same_as_one_engine_that_can_do_both() -> None:
    model = tiny_chat_model()
    whole = TransformersEngine(model)
    engine = RoutingEngine(EditsOnly(model), whole)
    assert isinstance(engine, Engine)
    interventions = interventions_of(model)
    requests = [Request(prompt, i) for prompt in ("Hi", "How are you?") for i in interventions]
    assert engine.generate(requests, GREEDY) == whole.generate(requests, GREEDY)
    responses = encode_responses(model, [("Hi", "Yes."), ("Why?", "No reason.")])
    scores = engine.score(responses, interventions), whole.score(responses, interventions)
    for found, wanted in zip(*scores, strict=True):
        for one, other in zip(found, wanted, strict=True):
            assert (one.nll, one.kl) == pytest.approx((other.nll, other.kl), abs=1e-4)
    with pytest.raises(InvalidValueError, match="edits only"):
        EditsOnly(model).generate(requests, GREEDY)


def test_an_engine_without_work_is_not_asked() -> None:
    model = tiny_chat_model()
    engine = RoutingEngine(TransformersEngine(model), Silent(model))
    assert len(engine.generate([Request("Hi")], GREEDY)) == 1
    assert engine.generate([], GREEDY) == []
