import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_stress import random_vectors, tiny_edit, tiny_model

from steer2edit.core import Editing, WeightEdit
from steer2edit.editing import merged
from steer2edit.engines import RememberingEngine, TransformersEngine
from steer2edit.evaluation import BASE_ARM, edit_arm
from steer2edit.models import LanguageModel, Reply, Sampling
from steer2edit.steering import safety_prompts
from steer2edit.stress.findings import StressResult
from steer2edit.stress.persistence import treatments
from steer2edit.stress.persistence.fine_tuning import training_rows
from steer2edit.stress.persistence.gain_left import GainLeft
from steer2edit.stress.persistence.quantisation import quantised, weight_format
from steer2edit.stress.persistence.treatments import (
    FULL_FORMATS,
    cast,
    conciseness_edit,
    linear_merge_error,
    merged_back,
    merged_with_another,
    norm,
    saved,
    stored,
    tuned,
)
from steer2edit.stress.rehearsal import Rehearsal
from steer2edit.stress.subject import Subject
from steer2edit.stress.weight_attacks.direction_removal import random_like
from tiny_chat import tiny_chat_model

HARMFUL = [f"do {'x' * i}" for i in range(1, 7)]
BENIGN = [f"is {'y' * i}" for i in range(1, 4)]


@dataclass(frozen=True)
class SumScorer:
    """A verdict that every change of a random reply may turn."""

    def score(self, prompts: Sequence[object], replies: Sequence[Reply]) -> list[bool | None]:
        return [
            sum(map(ord, reply.text)) % 3 == 0 if reply.text else None
            for _, reply in zip(prompts, replies, strict=True)
        ]


def subject_of(
    folder: Path, model: LanguageModel | None = None, strength: float = 1.0, edit: WeightEdit | None = None
) -> Subject:
    model = model or tiny_model()
    edit = edit or tiny_edit(model, random_vectors(model))
    arms = [BASE_ARM, edit_arm(edit, "edited", strength)]
    engine = RememberingEngine(TransformersEngine(model), [arm.intervention for arm in arms])
    return Subject(
        engine, edit, arms, HARMFUL, BENIGN, SumScorer(), folder, sampling=Sampling(max_new_tokens=4)
    )  # fmt: skip


def state(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def run(treatment: Any, subject: Subject, **settings: Any) -> StressResult:
    """The result; the model must be as it was, and the rehearsal must have counted what was asked."""
    before = state(subject.model)
    result = treatment(subject, **settings)
    assert all(tensor.equal(before[name]) for name, tensor in state(subject.model).items())
    plain = ("base", "edit")  # those are remembered
    asked = sum(len(texts) for arm, own in result.replies.items() if arm not in plain for texts in own.values())
    assert isinstance(subject.engine, RememberingEngine)
    rehearsal = Rehearsal(subject, subject.engine.replies)
    assert rehearsal.cost(partial(treatment, **settings)).replies == asked
    json.dumps(result.to_json())
    return result


def replies(result: StressResult, arm: str) -> Any:
    return result.replies[arm]


def now(subject: Subject, strength: float | None = None) -> Any:
    """What the model says as it is now, under the edit at a strength if there is one."""
    gain = GainLeft(subject)
    found = gain.ask({"it": None if strength is None else Editing(subject.edit, strength)})
    return {name: replies.texts["it"] for name, replies in found.items()}


def test_what_is_saved_and_loaded_says_the_same(tmp_path: Path) -> None:
    subject = subject_of(tmp_path)
    result = run(saved, subject)
    with merged(subject.model, subject.edit):
        in_memory = now(subject)
    assert replies(result, "edit, adapter") == replies(result, "edit")
    assert replies(result, "edit, checkpoint") == in_memory != replies(result, "base")
    assert result.facts["adapter_as_saved"]
    assert result.facts["checkpoint_matrices_that_differ"] == 0
    assert [finding.name for finding in result.findings] == [
        "adapter/harmful", "adapter/benign", "checkpoint/harmful", "checkpoint/benign",
    ]  # fmt: skip


def test_what_does_not_survive_on_disk_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(tmp_path)
    load, save = treatments.load_edit, treatments.save_checkpoint
    monkeypatch.setattr(treatments, "load_edit", lambda path: load(path).scaled(0.0))
    monkeypatch.setattr(
        treatments, "save_checkpoint", lambda model, edit, path, **options: save(model, edit, path, strength=0.5)
    )
    result = run(saved, subject)
    assert not result.facts["adapter_as_saved"]
    assert "NOT those" in result.findings[0].note
    assert replies(result, "edit, adapter") == replies(result, "base")
    assert result.facts["checkpoint_matrices_that_differ"] == 4
    assert "4 edited matrices differ" in result.findings[2].note


def test_casts_compute_in_the_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(tmp_path)
    seen = []
    ask = treatments.GainLeft.ask

    def watched(gain: GainLeft, arms: Any, *changes: Any, **more: Any) -> Any:
        def note(model: LanguageModel) -> Any:
            seen.extend([] if gain.subject.counter else [model.dtype])
            return nullcontext()

        return ask(gain, arms, *changes, note, **more)

    monkeypatch.setattr(treatments.GainLeft, "ask", watched)
    result = run(cast, subject)
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float16, torch.float16]
    assert list(result.findings[0].values) == ["base", "edit", "edit, bfloat16", "base, bfloat16"]


def test_quantised_models_are_asked_anew_and_in_every_way(tmp_path: Path) -> None:
    subject = subject_of(tmp_path)
    ways = {"int4": ("rounded", "requantised", "adapter")}
    result = run(stored, subject, quick=ways)
    with quantised(subject.model, weight_format("int4")):
        base, adapter = now(subject), now(subject, 1.0)
    with quantised(subject.model, weight_format("int4"), subject.edit):
        rounded = now(subject)
    with quantised(subject.model, weight_format("int4"), subject.edit, "requantised"):
        requantised = now(subject)
    assert replies(result, "base, int4") == base != replies(result, "base")  # not what the engine remembers
    assert replies(result, "edit, int4/adapter") == adapter
    assert replies(result, "edit, int4/rounded") == rounded
    assert replies(result, "edit, int4/requantised") == requantised


def test_the_full_suite_has_every_format(tmp_path: Path) -> None:
    subject = replace(subject_of(tmp_path), suite="full", harmful=["a"], benign=["b"])
    assert set(FULL_FORMATS) == {"int8", "fp8", "int4", "nf4", "mxfp4"}
    # base and edit as they are, the base in each format, and the edit in each way
    assert Rehearsal(subject).cost(stored).replies == 2 * (2 + 5 + 3 * 3 + 2 * 2)


def test_an_adapter_is_asked_only_where_it_is_wanted(tmp_path: Path) -> None:
    result = run(stored, subject_of(tmp_path), quick={"int8": ("rounded",)})
    assert set(result.replies) == {"base", "edit", "edit, int8/rounded", "base, int8"}


def test_another_edit_is_in_the_same_weights(tmp_path: Path) -> None:
    subject = subject_of(tmp_path)
    result = run(merged_with_another, subject)
    other = random_like(subject.edit, seed=0)
    with merged(subject.model, other, allow_mismatch=True):
        base = now(subject)
        with merged(subject.model, subject.edit):
            both = now(subject)
    assert replies(result, "base, random") == base
    assert replies(result, "edit, random") == both


def test_the_norm_by_hand() -> None:
    model = tiny_model()
    edit = tiny_edit(model, random_vectors(model))
    dense = torch.cat([one.dense().flatten() for one in edit.sites.values()])
    assert norm(edit) == pytest.approx(dense.norm().item(), rel=1e-5)


def test_a_conciseness_edit_has_the_blocks_and_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(treatments, "_CONCISENESS_PROMPTS", 2)
    model = tiny_chat_model(num_hidden_layers=1, max_position_embeddings=2048)
    edit = tiny_edit(model, random_vectors(model))
    other = conciseness_edit(model, edit)
    assert other.sites.keys() == edit.sites.keys()
    assert norm(other) == pytest.approx(norm(edit), rel=1e-5)
    heads = WeightEdit({site: one for site, one in edit.sites.items() if site.block == "attn"}, edit.metadata)
    assert {site.block for site in conciseness_edit(model, heads).sites} == {"attn"}


def test_a_merge_back_is_the_edit_at_that_strength(tmp_path: Path) -> None:
    subject = subject_of(tmp_path)
    result = run(merged_back, subject, ratios=(0.25, 1.0))
    assert replies(result, "edit, 0.25") == now(subject, 0.25)
    assert replies(result, "edit, 1") == replies(result, "edit")
    assert result.facts["linear_merge_error"]["0.25"] < 1e-5


def test_real_merged_weights_say_what_the_edit_at_that_strength_says(tmp_path: Path) -> None:
    subject = subject_of(tmp_path)
    model, ratio = subject.model, 0.5
    before = state(model)
    with merged(model, subject.edit):
        edited = state(model)
    model.network.load_state_dict({name: ratio * edited[name] + (1 - ratio) * before[name] for name in before})
    by_weights = now(subject)
    model.network.load_state_dict(before)
    assert by_weights == now(subject, ratio)
    assert by_weights != now(subject)


def test_the_error_of_a_merge_by_hand() -> None:
    """W = 1 and ΔW = 2⁻⁷ in bfloat16, whose step is 2⁻⁷ there: half of it is a tie, which goes to 1 (even)."""
    model = tiny_model()
    model.network.to(torch.bfloat16)
    edit = tiny_edit(model, random_vectors(model))
    site = next(iter(edit.sites))
    own = edit.sites[site]
    u, row = torch.zeros_like(own.output_direction), torch.zeros_like(own.row)
    u[0], row[0] = 1.0, 2**-7
    model.sites[site].weight.zero_()
    model.sites[site].weight[0, 0] = 1.0
    small = WeightEdit({site: replace(own, output_direction=u, row=row)})
    assert linear_merge_error(model, small, 0.5) == 1.0
    assert linear_merge_error(model, small, 1.0) == 0.0
    assert linear_merge_error(model, small.scaled(0.0), 0.5) == 0.0


def test_both_models_are_fine_tuned_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(tmp_path)
    seen: list[Any] = []
    tune = treatments.fine_tuned
    answers = training_rows(subject.model, [("a b", "c"), ("c d", "e f"), ("e f", "a")])
    monkeypatch.setattr(treatments, "helpful_answers", lambda model: answers)

    def watched(model: LanguageModel, rows: Any, settings: Any) -> Any:
        seen.append((rows, settings, state(model)))
        return tune(model, rows, settings)

    monkeypatch.setattr(treatments, "fine_tuned", watched)
    result = run(tuned, subject, quick_steps=2)
    (rows, settings, base), (other_rows, other_settings, edited) = seen
    assert rows == other_rows
    assert settings == other_settings
    with merged(subject.model, subject.edit):
        assert all(tensor.equal(edited[name]) for name, tensor in state(subject.model).items())
    assert any(not base[name].equal(edited[name]) for name in base)
    assert list(result.findings[0].values) == ["base", "edit", "edit, tuned", "base, tuned"]
    assert result.facts["fine_tune"]["steps"] == 2
    assert "2 steps of 4" in result.findings[0].note


def test_written_answers_are_harmless_and_of_the_training_part() -> None:
    model = tiny_chat_model(num_hidden_layers=1, max_position_embeddings=4096)
    rows = treatments.helpful_answers(model)
    held_out = set(safety_prompts("held_out")[0] + safety_prompts("held_out")[1])
    assert model.tokenizer is not None
    texts = [model.tokenizer.decode(row.ids[: row.start]) for row in rows]
    assert len(rows) > 200
    assert not any(prompt in text for prompt in held_out for text in texts)


def test_the_strength_of_the_arm_is_the_edits(tmp_path: Path) -> None:
    subject = subject_of(tmp_path, strength=2.0)
    assert norm(GainLeft(subject).edit) == pytest.approx(2 * norm(subject.edit))
    result = run(merged_back, subject, ratios=(0.5,))
    assert replies(result, "edit") == now(subject, 2.0)
    assert replies(result, "edit, 0.5") == now(subject, 1.0)


def test_an_edit_of_nothing_is_open(tmp_path: Path) -> None:
    model = tiny_model()
    nothing = tiny_edit(model, random_vectors(model)).scaled(0.0)
    result = run(merged_back, subject_of(tmp_path, model, edit=nothing), ratios=(0.5,))
    assert result.findings[0].outcome == "open"
    assert "not distinguishable from zero" in result.findings[0].sentence


def test_the_quick_suite_asks_fewer_benign_requests(tmp_path: Path) -> None:
    subject = replace(subject_of(tmp_path), harmful=["a b"] * 40, benign=["c d"] * 40)
    made = {suite: GainLeft(replace(subject, suite=suite)) for suite in ("quick", "full")}
    sizes = {suite: {name: len(own) for name, own in gain.prompts.items()} for suite, gain in made.items()}
    assert sizes == {"quick": {"harmful": 20, "benign": 12}, "full": {"harmful": 40, "benign": 40}}
