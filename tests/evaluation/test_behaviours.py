"""The built-in evaluations: which sets, which metrics, and that they run."""

from pathlib import Path

import pytest

from steer2edit.engines import TransformersEngine
from steer2edit.errors import DataError
from steer2edit.evaluation import BASE_ARM, Behaviour, behaviour, evaluate, metric_name
from steer2edit.evaluation.behaviours import BEHAVIOURS
from steer2edit.steering.behaviour_folder import find_behaviour
from steer2edit.steering.examples import SPLITS
from steer2edit.steering.presets import safety_prompts
from tiny_chat import tiny_chat_model

ATTRIBUTES = {
    "safety": ("harmful_refused", 1, {"harmful": 48, "benign": 48}),
    "over-refusal": ("borderline_refused", -1, {"borderline": 64, "benign": 48, "harmful": 48}),
    "sycophancy": ("disagreed_preferred", 1, {"disagreed": 30, "agreed": 30}),
    "abstention": ("unanswerable_shown", 1, {"unanswerable": 30, "answerable": 48}),
    "formality": ("formal_preferred", 1, {"formal": 30}),
    "truthfulness": ("truth_preferred", 1, {"questions": 80}),
    "conciseness": ("reply_tokens", -1, {"requests": 64}),
}


def prompts_of(name: str, split: str) -> set[str]:
    return {prompt for prompts in behaviour(name, split).prompts.values() for prompt in prompts}


@pytest.mark.parametrize("name", BEHAVIOURS)
class TestEach:
    def test_sets_and_direction(self, name: str) -> None:
        found = behaviour(name, "validation")
        assert isinstance(found, Behaviour)
        counts = {key: len(prompts) for key, prompts in found.prompts.items()}
        assert (found.name, found.attribute, found.direction, counts) == (name, *ATTRIBUTES[name])

    def test_splits_share_no_prompt_with_each_other_nor_with_the_training(self, name: str) -> None:
        validation, held_out = prompts_of(name, "validation"), prompts_of(name, "held_out")
        train = {e.key for e in find_behaviour(name).examples() if e.split == "train"}
        assert not validation & held_out
        assert not (validation | held_out) & train

    def test_limit(self, name: str) -> None:
        few, all_of_them = behaviour(name, "held_out", limit=3), behaviour(name, "held_out")
        assert {key: prompts[:3] for key, prompts in all_of_them.prompts.items()} == few.prompts

    def test_runs(self, name: str) -> None:
        found = behaviour(name, "validation", limit=2, max_new_tokens=3)
        (base,) = evaluate(TransformersEngine(tiny_chat_model()), found.tasks, [BASE_ARM])
        assert found.attribute in base.metrics
        assert all(metric_name(name).description != name for name in base.metrics)
        assert {"nll_increase", "kl"} < set(base.metrics)  # every behaviour says what it costs
        assert base.metrics["kl"].value == 0.0
        assert base.metrics[found.attribute].n == 2
        for key, replies in base.replies.items():
            assert len(replies) == len(found.prompts[key]) == 2  # aligned with the prompts
        for key, outcomes in base.outcomes.items():
            assert len(outcomes) == len(found.prompts[key])


def test_safety_prompts_are_the_presets() -> None:
    for split in SPLITS:
        found = behaviour("safety", split)
        assert (found.prompts["harmful"], found.prompts["benign"]) == safety_prompts(split)


def test_borderline_requests_join_safety_where_they_are_wanted(tmp_path: Path) -> None:
    found = behaviour("safety", "held_out", limit=300, borderline=True)
    assert {name: len(prompts) for name, prompts in found.prompts.items()} == {
        "harmful": 300, "benign": 300, "borderline": 176,
    }  # fmt: skip
    (own := tmp_path / "own.csv").write_text("prompt,split\nHow do I kill a process?,held_out\n", encoding="utf-8")
    found = behaviour("safety", "held_out", limit=4, data={"borderline": str(own)})
    assert found.prompts["borderline"] == ["How do I kill a process?"]
    assert [m for task in found.tasks for m in task.metric_names if m.endswith("refused")] == [
        "harmful_refused", "benign_refused", "borderline_refused",
    ]  # fmt: skip


def test_truthfulness_pairs_each_question_with_both_answers() -> None:
    task = behaviour("truthfulness", "validation").tasks[0]
    answers = {(e.key, e.label): e.response for e in find_behaviour("truthfulness").examples()}
    for prompt, true, false in task.items:
        assert (true, false) == (answers[prompt, "positive"], answers[prompt, "negative"])


def test_unknown() -> None:
    with pytest.raises(DataError, match=r"no behaviour 'safty'\. Did you mean 'safety'\? Known: "):
        behaviour("safty", "validation")
