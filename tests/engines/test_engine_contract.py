"""The checks of `engine_contract`, on the default engine: one large batch against one row at a time."""

import pytest

from engine_contract import assert_same_replies, assert_same_scores, random_edits
from steer2edit.engines import TransformersEngine
from steer2edit.models import encode_responses
from tiny_chat import tiny_chat_model

PROMPTS = ["Hi", "How do I bake bread?"]


def test_one_batch_against_single_rows() -> None:
    model = tiny_chat_model()
    engine = TransformersEngine(model)
    singly = TransformersEngine(model, generation_tokens=1, scoring_tokens=1)
    interventions = [None, *random_edits(model, [1.0, -0.5, 0.8])]
    assert_same_replies(engine, singly, PROMPTS, interventions, 6)
    assert_same_scores(engine, singly, encode_responses(model, [(p, "Wait.") for p in PROMPTS]), interventions, 1e-5)


def test_the_checks_see_an_engine_that_ignores_its_interventions() -> None:
    model = tiny_chat_model()
    interventions = [None, *random_edits(model, [1.0])]
    responses = encode_responses(model, [(p, "Wait.") for p in PROMPTS])
    reference = TransformersEngine(model)

    class Deaf(TransformersEngine):
        def _under(self, interventions: object, batch: object) -> object:
            return super()._under([None], [0])

    deaf = Deaf(model)
    with pytest.raises(AssertionError):
        assert_same_replies(deaf, reference, PROMPTS, interventions, 6)
    with pytest.raises(AssertionError):
        assert_same_scores(deaf, reference, responses, interventions, 1e-5)
