"""Tasks by name: which sets they use, what they report, and what a wrong name says."""

import json
from pathlib import Path
from typing import Any

import pytest

from steer2edit.engines import TransformersEngine
from steer2edit.errors import DataError, InvalidValueError
from steer2edit.evaluation import (
    BASE_ARM,
    TASK_KINDS,
    DriftTask,
    TaskSettings,
    behaviour,
    build_tasks,
    evaluate,
    find_scorer,
    metric_name,
)
from steer2edit.evaluation.behaviours import BEHAVIOURS
from steer2edit.evaluation.judge import REFUSAL_QUESTION, Judge
from steer2edit.evaluation.likelihood_tasks import ChoiceTask, PreferenceTask, TruthChoiceTask
from steer2edit.evaluation.reply_tasks import MathTask, RefusalTask
from steer2edit.models import Reply
from steer2edit.settings.shared import SCORERS
from steer2edit.steering.presets import safety_prompts
from steer2edit.steering.refusal import refusal_phrases
from tiny_chat import tiny_chat_model

METRICS = {
    "refusal": {"harmful_refused": "harmful"},
    "over-refusal": {
        "borderline_refused": "borderline",
        "benign_refused": "benign",
        "harmful_refused": "harmful",
        "nll_increase": "benign",
        "kl": "benign",
    },
    "xstest": {"borderline_refused": 16},
    "truthfulqa": {"truth_preferred": "questions", "truth_margin": "questions"},
    "truthfulqa-mc": {"truth_mc1": "questions", "truth_mc2": "questions"},
    "gsm8k": {"arithmetic_accuracy": 16, "arithmetic_finished": 16},
    "math": {"school_maths_accuracy": 12, "school_maths_finished": 12},
    "commonsenseqa": {"common_sense_accuracy": 16, "common_sense_accuracy_sum": 16},
    "mmlu": {"general_knowledge_accuracy": 16, "general_knowledge_accuracy_sum": 16},
    "mmlu-letters": {"general_knowledge_letters_accuracy": 16, "general_knowledge_letters_accuracy_sum": 16},
    "length": {"reply_tokens": "requests", "finished": "requests"},
    "thinking": {"thought_tokens": "requests", "answer_tokens": "requests"},
    "drift": {"nll_increase": "benign", "kl": "benign"},
    "degeneration": {"repetition": "benign", "empty": "benign", "unfinished": "benign"},
    "safety": {"harmful_refused": "harmful", "benign_refused": "benign", "nll_increase": "benign", "kl": "benign"},
    "sycophancy": {
        "disagreed_preferred": "disagreed",
        "disagreed_margin": "disagreed",
        "agreed_preferred": "agreed",
        "agreed_margin": "agreed",
        "nll_increase": "benign",
        "kl": "benign",
    },
    "abstention": {
        "unanswerable_shown": "unanswerable",
        "answerable_shown": "answerable",
        "nll_increase": "benign",
        "kl": "benign",
    },
    "formality": {
        "formal_preferred": "formal",
        "formal_margin": "formal",
        "nll_increase": "benign",
        "kl": "benign",
    },
    "truthfulness": {
        "truth_preferred": "questions",
        "truth_margin": "questions",
        "nll_increase": "benign",
        "kl": "benign",
    },
    "conciseness": {"reply_tokens": "requests", "finished": "requests", "nll_increase": "benign", "kl": "benign"},
}
"""Metrics of every task without data, and how many items they rest on: a number, or the preset's set."""


def built_in(name: str, split: Any) -> dict[str, int]:
    sets = {key: len(own) for preset in BEHAVIOURS for key, own in behaviour(preset, split).prompts.items()}
    assert all(sets.values())
    return {metric: sets[size] if isinstance(size, str) else size for metric, size in METRICS[name].items()}


def sizes(specs: list[str], **settings: Any) -> dict[str, int]:
    return {name: len(task) for task in build_tasks(specs, TaskSettings(**settings)) for name in task.metric_names}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "AdvBench.csv"
    path.write_text("goal,target\n" + "".join(f"do {i},Sure\n" for i in range(9)))
    return path


class TestBuiltIn:
    def test_names(self) -> None:
        assert set(TASK_KINDS) == set(METRICS)

    @pytest.mark.parametrize("name", METRICS)
    def test_metrics_and_sizes(self, name: str) -> None:
        for split in ("validation", "held_out"):
            assert sizes([name], split=split) == built_in(name, split)

    @pytest.mark.parametrize("name", METRICS)
    def test_splits_are_apart(self, name: str) -> None:
        validation, held_out = (
            {str(q) for task in build_tasks([name], TaskSettings(split)) for own in task.asked.values() for q in own}
            for split in ("validation", "held_out")
        )
        assert validation
        assert not validation & held_out

    @pytest.mark.parametrize("name", METRICS)
    def test_runs(self, name: str) -> None:
        tasks = build_tasks([name], TaskSettings(limit=1, max_new_tokens=2))
        (base,) = evaluate(TransformersEngine(tiny_chat_model(max_position_embeddings=2048)), tasks, [BASE_ARM])
        assert set(base.metrics) == set(METRICS[name])
        assert all(len(values) == 1 for values in base.values.values())

    def test_built_in_sets_are_not_called_after_published_ones(self) -> None:
        published = ("advbench", "xstest", "truthfulqa", "gsm8k", "commonsenseqa", "mmlu", "math_")
        assert not [name for metrics in METRICS.values() for name in metrics if name.startswith(published)]

    def test_harmful_requests_are_the_presets(self) -> None:
        (task,) = build_tasks(["refusal"])
        assert task.asked == {"harmful": safety_prompts("validation")[0]}


class TestData:
    def test_refusal(self, prompts: Path) -> None:
        (task,) = build_tasks([f"refusal={prompts}"], TaskSettings(limit=4, max_new_tokens=7))
        assert isinstance(task, RefusalTask)
        assert (task.name, task.sampling.max_new_tokens) == ("advbench", 7)
        assert list(task.items) == ["do 0", "do 1", "do 2", "do 3"]

    def test_shuffle(self, prompts: Path) -> None:
        def asked(seed: int | None) -> list[str]:
            (task,) = build_tasks([f"refusal={prompts}"], TaskSettings(shuffle=seed))
            return [str(p) for p in task.asked["advbench"]]

        assert asked(None) == [f"do {i}" for i in range(9)]
        assert asked(1) == asked(1) != asked(2)
        assert sorted(asked(1)) == asked(None) != asked(1)

    @pytest.mark.parametrize(("task", "kind"), [("length", "reply_tokens"), ("drift", "kl"), ("degeneration", "empty")])
    def test_sets_are_called_after_their_file(self, task: str, kind: str, prompts: Path) -> None:
        assert f"advbench_{kind}" in sizes([f"{task}={prompts}"])

    def test_xstest(self, tmp_path: Path) -> None:
        path = tmp_path / "xstest.csv"
        path.write_text("prompt,type\na,homonyms\nb,homonyms\nc,contrast_homonyms\n")
        assert sizes([f"xstest={path}"]) == {"xstest_safe_refused": 2, "xstest_unsafe_refused": 1}
        assert sizes([f"xstest={path}"], limit=1) == {"xstest_safe_refused": 1, "xstest_unsafe_refused": 1}

    def test_truthfulqa(self, tmp_path: Path) -> None:
        path = tmp_path / "t.jsonl"
        row = {"question": "Q", "best_answer": "B", "correct_answers": ["B", "C"], "incorrect_answers": ["W", "V"]}
        path.write_text(json.dumps(row))
        preference, choice = build_tasks([f"truthfulqa={path}", f"truthfulqa-mc={path}"])
        assert preference == PreferenceTask("truthfulqa", [("Q", "B", "W")])  # the first false answer, as the paper
        assert isinstance(choice, TruthChoiceTask)
        assert choice.metric_names == ("truthfulqa_mc1", "truthfulqa_mc2")

    def test_questions(self, tmp_path: Path) -> None:
        (tmp_path / "g.jsonl").write_text(json.dumps({"question": "Q", "answer": "#### 4"}))
        (tmp_path / "m.jsonl").write_text(json.dumps({"problem": "Q", "solution": "\\boxed{4}"}))
        (tmp_path / "u.csv").write_text("Q,a,b,c,d,B\n")
        files = {"gsm8k": "g.jsonl", "math": "m.jsonl", "mmlu": "u.csv"}
        gsm8k, maths, mmlu = build_tasks([f"{name}={tmp_path / file}" for name, file in files.items()])
        assert isinstance(gsm8k, MathTask)
        assert isinstance(maths, MathTask)
        assert isinstance(mmlu, ChoiceTask)
        assert [task.name for task in (gsm8k, maths, mmlu)] == ["gsm8k", "math", "mmlu"]
        assert [p.answer for p in (*gsm8k.items, *maths.items)] == ["4", "4"]
        assert mmlu.items[0].answer == 1

    def test_split_of_the_data(self, tmp_path: Path) -> None:
        path = tmp_path / "p.jsonl"
        rows = [{"prompt": "a", "split": "validation"}, {"prompt": "b", "split": "train"}]
        path.write_text("\n".join(map(json.dumps, rows)))
        assert sizes([f"refusal={path}"]) == {"p_refused": 1}
        with pytest.raises(DataError, match=r"no rows of the split 'held_out' \(found train: 1, validation: 1\)"):
            build_tasks([f"refusal={path}"], TaskSettings("held_out"))


class TestSeveral:
    def test_what_two_share_is_measured_once(self) -> None:
        tasks = build_tasks(["safety", "refusal", "drift", "safety", "truthfulness"])
        assert [type(task) for task in tasks] == [RefusalTask, RefusalTask, DriftTask, PreferenceTask]

    def test_two_files(self, prompts: Path, tmp_path: Path) -> None:
        other = tmp_path / "malicious.txt"
        other.write_text("a\nb\n")
        assert sizes([f"refusal={prompts}", f"refusal={other}"]) == {"advbench_refused": 9, "malicious_refused": 2}

    def test_names_that_collide(self, prompts: Path, tmp_path: Path) -> None:
        other = tmp_path / "sub" / "advbench.txt"
        other.parent.mkdir()
        other.write_text("a\n")
        with pytest.raises(DataError, match=r"would both be reported as 'advbench_refused'\. Leave one out, or rename"):
            build_tasks([f"refusal={prompts}", f"refusal={other}"])

    def test_the_same_data_for_several_tasks(self, prompts: Path) -> None:
        specs = [f"{task}={prompts}" for task in ("refusal", "length", "drift", "degeneration")]
        assert len(build_tasks(specs)) == 4


class TestBadNames:
    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("gsm8", r"there is no task 'gsm8'\. Did you mean 'gsm8k'\? Known: abstention, commonsenseqa, conc"),
            ("overrefusal=x.csv", r"there is no task 'overrefusal'\. Did you mean 'over-refusal'\?"),
            ("", r"there is no task ''\. Known:"),
            ("safety=x.csv", r"the task 'safety' has its own data and takes none, got 'x\.csv'"),
            ("mmlu=", r"'mmlu=' names no data: give mmlu=FILE"),
            ("mmlu=absent.csv", r"there is no file absent\.csv"),
        ],
    )
    def test_task(self, spec: str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            build_tasks([spec])

    def test_scorer(self) -> None:
        with pytest.raises(InvalidValueError, match=r"unknown scorer 'offical'\. Did you mean 'official'\?"):
            find_scorer("offical")
        with pytest.raises(InvalidValueError, match=r"needs an endpoint and a model: --judge-url and --judge-model"):
            find_scorer("judge")

    def test_shuffle_of_a_behaviour(self) -> None:
        with pytest.raises(InvalidValueError, match=r"the behaviour 'safety' keeps its own order"):
            build_tasks(["safety"], TaskSettings(shuffle=0))

    def test_limit(self) -> None:
        with pytest.raises(InvalidValueError, match=r"limit must be >= 1, got 0"):
            TaskSettings(limit=0)


def test_scorers() -> None:
    judge = Judge("http://localhost:1/v1", "m", REFUSAL_QUESTION)
    found = {name: find_scorer(name, judge) for name in SCORERS}
    official = refusal_phrases("official")
    assert found == {"strict": refusal_phrases(), "official": official, "judge": judge}
    # the official list counts an apology anywhere, the strict one a refusal only
    assert [found[name].score(["a"], [Reply("Hello! I can help.", (), True)]) for name in ("strict", "official")] == [
        [False],
        [True],
    ]
    for name in ("refusal", "safety"):
        task = build_tasks([name], TaskSettings(scorer=official))[0]
        assert isinstance(task, RefusalTask)
        assert task.scorer == official
    assert behaviour("safety", "validation").tasks[0].scorer == refusal_phrases()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "brief", "short", "scale", "against_base"),
    [
        ("harmful_refused", "harmful refused", "Harmful requests refused", "share", False),
        ("advbench_refused", "advbench refused", "Advbench requests refused", "share", False),
        ("xstest_safe_refused", "xstest safe refused", "Xstest safe requests refused", "share", False),
        ("truth_preferred", "truth preferred", "Truth preferred", "share", False),
        ("truthfulqa_margin", "truthfulqa margin", "Preference margin, truthfulqa", "difference", False),
        ("gsm8k_accuracy", "gsm8k accuracy", "Gsm8k accuracy", "share", False),
        ("mmlu_accuracy_sum", "mmlu accuracy (sum)", "Mmlu accuracy (sum)", "share", False),
        ("gsm8k_finished", "gsm8k finished", "Replies that ended, gsm8k", "share", False),
        ("a_unfinished", "a unfinished", "Replies cut off, a", "share", False),
        ("alpaca_kl", "alpaca KL to base", "KL to the base, alpaca", "amount", True),
        ("nll_increase", "NLL increase", "NLL increase", "difference", True),
        ("arc.acc_norm", "arc.acc norm", "arc.acc norm", "amount", False),
    ],
)
def test_names_of_metrics(name: str, brief: str, short: str, scale: str, against_base: bool) -> None:
    found = metric_name(name)
    assert (found.brief, found.short, found.scale, found.against_base) == (brief, short, scale, against_base)


def test_every_metric_of_every_task_has_a_name() -> None:
    for kind in TASK_KINDS:
        for task in build_tasks([kind]):
            for name in task.metric_names:
                assert metric_name(name).description != name.replace("_", " "), name
