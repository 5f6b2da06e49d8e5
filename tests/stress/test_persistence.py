"""Treatments of the weights: every arm is asked of the weights that it says, and the model is as it was afterwards."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tiny_stress import random_vectors, tiny_edit, tiny_model

from steer2edit.core import Editing, WeightEdit
from steer2edit.editing import merged
from steer2edit.engines import TransformersEngine
from steer2edit.evaluation import BASE_ARM, Arm, edit_arm, steering_arm
from steer2edit.models import LanguageModel, Reply, Sampling
from steer2edit.models.fine_tuning import FineTune, edit_left, fine_tuned, training_rows
from steer2edit.steering.presets import safety_prompts
from steer2edit.stress import treatments
from steer2edit.stress.findings import StressResult
from steer2edit.stress.quantisation import FORMATS, quantised
from steer2edit.stress.subject import Subject, ask
from steer2edit.stress.treatments import stored, storing, treated, tuned, tuning
from steer2edit.stress.verdicts import ADAPTER
from tiny_chat import tiny_chat_model

HARMFUL = [f"do {'x' * i}" for i in range(1, 7)]


@dataclass(frozen=True)
class SumScorer:
    """A verdict that every change of a random reply may turn."""

    def score(self, prompts: Sequence[object], replies: Sequence[Reply]) -> list[bool | None]:
        return [
            sum(map(ord, reply.text)) % 3 == 0 if reply.text else None
            for _, reply in zip(prompts, replies, strict=True)
        ]


def subject_of(strength: float = 1.0, *, others: bool = True, edit: WeightEdit | None = None) -> Subject:
    model = tiny_model()
    vectors = random_vectors(model)
    edit = edit or tiny_edit(model, vectors)
    other = Arm("baseline", "ROSI", Editing(tiny_edit(model, random_vectors(model, seed=7)), 0.5))
    arms = [BASE_ARM, *([steering_arm(vectors, 2.0), other] if others else []), edit_arm(edit, "edited", strength)]
    return Subject(
        TransformersEngine(model), edit, arms, HARMFUL, [], SumScorer(), sampling=Sampling(max_new_tokens=4)
    )  # fmt: skip


def state(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def run(subject: Subject, made: Any, **settings: Any) -> StressResult:
    """The result; the model must be as it was."""
    before = state(subject.model)
    result = made(subject, **settings)
    assert all(tensor.equal(before[name]) for name, tensor in state(subject.model).items())
    json.dumps(result.to_json())
    return result


def now(subject: Subject, intervention: Any = None) -> list[str]:
    """What the model says as it is now, under an intervention."""
    engine = TransformersEngine(subject.model)
    found = ask(replace(subject, engine=engine), subject.requests, arms={"it": intervention})
    return [one.text for one in found.arms["it"]]


def test_every_arm_is_asked_of_its_own_weights() -> None:
    """Edits of the weights are merged and stored with them; steering and the adapter are hooks on the stored base."""
    subject = subject_of(strength=2.0)
    result = run(subject, treated, treatments=[storing("int4")])
    int4, (_, steering, rosi, edited) = FORMATS["int4"], subject.arms
    with quantised(subject.model, int4):
        expected = {arm.label: now(subject, arm.intervention) for arm in (BASE_ARM, steering)}
        expected[ADAPTER] = now(subject, Editing(subject.edit, 2.0))
    for arm, edit in ((rosi, rosi.intervention.edit.scaled(0.5)), (edited, subject.edit.scaled(2.0))):  # type: ignore[union-attr]
        with merged(subject.model, edit, allow_mismatch=True), quantised(subject.model, int4):
            expected[arm.label] = now(subject)
    found = {arm: own["int4"] for arm, own in result.replies.items()}
    assert found == expected
    assert list(found) == ["base", "steering 2", "ROSI", "edited", ADAPTER]
    assert len(set(map(tuple, found.values()))) >= 4
    assert found["base"] != now(subject)


def test_the_formats_of_either_suite() -> None:
    subject = replace(subject_of(others=False), harmful=["a"])
    names = [[one.name for one in run(replace(subject, suite=suite), stored).findings] for suite in ("quick", "full")]
    assert names == [["int8", "nf4", "int4"], ["int8", "fp8", "nf4", "int4", "mxfp4"]]


class TestFineTuning:
    def test_all_weights_are_tuned_alike(self, monkeypatch: pytest.MonkeyPatch) -> None:
        subject = subject_of()
        seen: list[Any] = []
        rows = training_rows(subject.model, [("a b", "c"), ("c d", "e f"), ("e f", "a")])
        monkeypatch.setattr(treatments, "helpful_answers", lambda model: rows)

        def watched(model: LanguageModel, rows: Any, settings: Any) -> Any:
            seen.append((rows, settings, state(model)))
            return fine_tuned(model, rows, settings)

        monkeypatch.setattr(treatments, "fine_tuned", watched)
        result = run(subject, treated, treatments=[tuning(FineTune(2, 2))])
        assert [(own, settings) for own, settings, _ in seen] == [(rows, FineTune(2, 2))] * 3
        with merged(subject.model, subject.edit, subject.strength, allow_mismatch=True):
            assert all(tensor.equal(seen[2][2][name]) for name, tensor in state(subject.model).items())
        facts = result.facts["2-steps-at-0.0005"]
        assert set(facts) == {"base", "ROSI", "edited"}
        assert "edit_left" not in facts["base"]
        assert "2 steps of 2 replies" in result.findings[0].note
        assert "Still in the weights: ROSI " in result.findings[0].note

    def test_the_sweep(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[FineTune] = []
        monkeypatch.setattr(treatments, "tuning", lambda settings: made.append(settings) or storing("int8"))
        tuned(replace(subject_of(others=False), suite="full", harmful=["a"]))
        assert {(one.learning_rate, one.steps) for one in made} == {(1e-4, 50), (1e-4, 200), (5e-4, 50), (5e-4, 200)}

    def test_what_is_left_of_an_edit_is_its_projection(self) -> None:
        """Against the dense difference of the weights: W' − W with LoRA merged, times ΔW."""
        model = tiny_model()
        edit = tiny_edit(model, random_vectors(model))
        base = {site: own.weight.clone() for site, own in model.sites.items()}
        rows = training_rows(model, [("a b", "c"), ("c d", "e f")])
        with merged(model, edit), fine_tuned(model, rows, FineTune(12, 2, 5e-2)):
            found = edit_left(model, edit)
            deltas = {
                m.base_layer.weight.data_ptr(): m.get_delta_weight("default").detach()
                for m in model.network.modules()
                if hasattr(m, "base_layer") and hasattr(m, "get_delta_weight")
            }
            product = size = 0.0
            for site, own in edit.sites.items():
                weight = model.sites[site].weight
                change = weight + deltas[weight.data_ptr()] - base[site]
                product += float((change * own.dense()).sum())
                size += float(own.dense().square().sum())
        assert found == pytest.approx(product / size, rel=1e-4)
        assert abs(found - 1) > 1e-3

    def test_an_untouched_edit_is_all_there(self) -> None:
        model = tiny_model()
        edit = tiny_edit(model, random_vectors(model))
        with merged(model, edit):
            assert edit_left(model, edit) == 1

    def test_written_answers_are_harmless_and_of_the_training_part(self) -> None:
        model = tiny_chat_model(num_hidden_layers=1, max_position_embeddings=4096)
        rows = treatments.helpful_answers(model)
        held_out = set(safety_prompts("held_out")[0] + safety_prompts("held_out")[1])
        assert model.tokenizer is not None
        texts = [model.tokenizer.decode(row.ids[: row.start]) for row in rows]
        assert len(rows) > 200
        assert not any(prompt in text for prompt in held_out for text in texts)
