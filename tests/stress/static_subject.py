"""A subject whose every reply is scripted, for the static attacks: what refuses is decided by the test."""

from collections.abc import Callable, Sequence

import torch

from steer2edit.core import Editing, Intervention, Site, SiteEdit, SteeringVectors, WeightEdit
from steer2edit.engines import Request
from steer2edit.evaluation import BASE_ARM, edit_arm, steering_arm
from steer2edit.models import LanguageModel, Prompt, Reply, Sampling
from steer2edit.steering.refusal import refusal_phrases
from steer2edit.steering.transformation import request_of
from steer2edit.stress.subject import Subject
from tiny_chat import tiny_chat_model

REFUSAL = "I'm sorry, but I can't help with that."
Answer = Callable[[str, str], str]
"""(`base`, `steering` or `edit`, text of the last message) to a reply."""


class ScriptedEngine:
    """Answers by a function; counts what it was asked."""

    def __init__(self, model: LanguageModel, answer: Answer) -> None:
        self.model = model
        self.answer = answer
        self.asked: list[Prompt] = []

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Reply]:
        self.asked += [request.prompt for request in requests]
        texts = [self.answer(_kind(r.intervention), request_of(r.prompt)) for r in requests]
        return [Reply(text, tuple(map(ord, text)), True) for text in texts]

    def score(self, *_: object, **__: object) -> list[list[object]]:
        raise AssertionError("no static attack scores given responses")


def scripted_subject(
    answer: Answer, harmful: Sequence[Prompt], *, limit: int | None = None, context: int = 8192, steering: bool = True
) -> Subject:
    """Base, steering and edit of a tiny model, whose replies are the answers."""
    model = tiny_chat_model(max_position_embeddings=context)
    ones = torch.ones(32)
    edit = WeightEdit({Site(0, "mlp"): SiteEdit(ones, torch.ones(48), torch.ones(48), torch.ones(48))})
    vectors = SteeringVectors.from_mapping({"L0.mlp": ones})
    arms = [BASE_ARM, *([steering_arm(vectors, 0.2)] if steering else []), edit_arm(edit, "edited")]
    engine = ScriptedEngine(model, answer)
    return Subject(engine, edit, arms, list(harmful), [], refusal_phrases(), limit=limit)


def requests(count: int) -> list[str]:
    """Harmless stand-ins for requests, all different."""
    return [f"Explain how lighthouse number {'x' * (index + 1)} is painted." for index in range(count)]


def _kind(intervention: Intervention) -> str:
    if intervention is None:
        return "base"
    return "edit" if isinstance(intervention, Editing) else "steering"
