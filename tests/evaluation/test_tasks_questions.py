"""Multiple choice, MC1/MC2, exact match and degeneration on models whose probabilities and replies are known."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scripted_model import ScriptedModel

from steer2edit.core import Steering
from steer2edit.engines import TransformersEngine
from steer2edit.errors import DataError, InvalidValueError
from steer2edit.evaluation import DriftTask, Task, evaluate, merged_measurements
from steer2edit.evaluation.formats import ChoiceQuestion, MathProblem, TruthQuestion, last_boxed
from steer2edit.evaluation.likelihood_tasks import ChoiceTask, PreferenceTask, TruthChoiceTask
from steer2edit.evaluation.reply_tasks import (
    DegenerationTask,
    LengthTask,
    MathTask,
    RefusalTask,
    is_right,
    repeated_share,
)
from steer2edit.evaluation.task import BASE_ARM
from steer2edit.models import LanguageModel, Prompt, Reply, Sampling
from tiny_chat import END, chatml, tiny_chat_model

# "!" begins "Yes", weakly; "." "7", weakly; "#" never ends; "~" ends at once. Steering lures to "8", from "!" and ".".
SCRIPT = {
    "!": ("Y", 0.5), "Y": ("e", 2.0), "e": ("s", 2.0), "s": (END, 2.0),
    ".": ("7", 0.5), "7": (END, 2.0), "8": (END, 2.0),
    "#": ("x", 2.0), "x": ("x", 2.0),
    "~": (END, 2.0),
}  # fmt: skip
SCRIPTED = ScriptedModel(SCRIPT, lure=("8", 1.5))
ENGINE = TransformersEngine(SCRIPTED.model)
STEERED = Steering(SCRIPTED.vectors(), 0.5)
BROKEN = Steering(SCRIPTED.vectors(), 1e39)
SAMPLING = Sampling(max_new_tokens=6)


def log_probability(text: str, strength: float = 0.0) -> float:
    """Of a text behind "!", in total."""
    return -len(text) * SCRIPTED.nll("!" + text, strength)


class TestChoice:
    def test_length_is_normalised_and_is_not(self) -> None:
        # each further letter of "Yes" is nearly certain: the mean rises, the sum falls
        assert log_probability("Yes") < log_probability("Y")
        assert log_probability("Yes") / 3 > log_probability("Y")
        questions = [ChoiceQuestion("q!", ("Y", "Yes", "x"), index) for index in range(3)]
        (base,) = ChoiceTask("knowledge", questions).measure(ENGINE, [None])
        assert base.values == {
            "knowledge_accuracy": [False, True, False],
            "knowledge_accuracy_sum": [True, False, False],
        }

    def test_interventions(self) -> None:
        base, steered = ChoiceTask("k", [ChoiceQuestion("q!", ("Y", "8"), 1)]).measure(ENGINE, [None, STEERED])
        assert log_probability("8") < log_probability("Y")
        assert log_probability("8", 0.5) > log_probability("Y", 0.5)
        assert (base.values["k_accuracy"], steered.values["k_accuracy"]) == ([False], [True])

    def test_a_tie_is_not_right(self) -> None:
        (base,) = ChoiceTask("k", [ChoiceQuestion("q!", ("x", "z"), 0)]).measure(ENGINE, [None])
        assert base.values["k_accuracy"] == [False]

    def test_the_same_choice_twice_does_not_count_against_itself(self) -> None:
        (base,) = ChoiceTask("k", [ChoiceQuestion("q!", ("Y", "Y", "x"), 1)]).measure(ENGINE, [None])
        assert base.values["k_accuracy"] == [True]

    def test_broken_is_unscored(self) -> None:
        (broken,) = ChoiceTask("k", [ChoiceQuestion("q!", ("Y", "x"), 0)]).measure(ENGINE, [BROKEN])
        assert broken.values == {"k_accuracy": [None], "k_accuracy_sum": [None]}
        assert (broken.metrics["k_accuracy"].n, broken.metrics["k_accuracy"].unscored) == (0, 1)

    def test_letters(self) -> None:
        # what is asked ends with ".", and behind that "B" is scripted: the second of two equal texts is right
        scripted = ScriptedModel({".": ("B", 2.0)}, lure=("A", 1.0))
        questions = [ChoiceQuestion("q", ("same", "same", "other"), index) for index in (0, 1, 2)]
        (base,) = ChoiceTask("k", questions, "letter").measure(TransformersEngine(scripted.model), [None])
        assert base.values["k_accuracy"] == [False, True, False]

    def test_against_a_plain_forward_pass(self) -> None:
        model = tiny_chat_model(seed=3)
        questions = [
            ChoiceQuestion(f"question {i}", ("12 to 13", "4", "a long one with more", "0"), i % 4) for i in range(8)
        ]
        (found,) = ChoiceTask("k", questions).measure(TransformersEngine(model), [None])
        for index, question in enumerate(questions):
            scores = [dense(model, question.question, choice) for choice in question.choices]
            best, best_sum = (max(range(4), key=[s[key] for s in scores].__getitem__) for key in (0, 1))
            assert found.values["k_accuracy"][index] == (best == question.answer)
            assert found.values["k_accuracy_sum"][index] == (best_sum == question.answer)
        assert 0 < sum(map(bool, found.values["k_accuracy_sum"])) < 8  # some right, some wrong


def dense(model: LanguageModel, prompt: str, response: str) -> tuple[float, float]:
    """(mean, sum) of the response's log-probabilities: the whole text through the network, in float64."""
    assert model.tokenizer is not None
    head = model.tokenizer(chatml(prompt), add_special_tokens=False)["input_ids"]
    ids = model.tokenizer(chatml(prompt) + response, add_special_tokens=False)["input_ids"]
    assert ids[: len(head)] == head
    with torch.no_grad():
        logits = model.network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    own = [logits[position - 1, ids[position]].item() for position in range(len(head), len(ids))]
    return sum(own) / len(own), sum(own)


class TestTruthChoice:
    QUESTIONS = (
        TruthQuestion("q!", "Y", ("x", "Yx"), ("Y", "Yes"), ("x", "Yx", "8")),
        TruthQuestion("q!", "x", ("Y",), ("x",), ("Y",)),
    )

    @pytest.mark.parametrize("strength", [0.0, 0.5])
    def test_by_hand(self, strength: float) -> None:
        intervention = Steering(SCRIPTED.vectors(), strength) if strength else None
        (found,) = TruthChoiceTask("t", self.QUESTIONS).measure(ENGINE, [intervention])
        p = {text: math.exp(log_probability(text, strength)) for text in ("Y", "Yes", "x", "Yx", "8")}
        true, false = p["Y"] + p["Yes"], p["x"] + p["Yx"] + p["8"]
        assert found.values["t_mc1"] == [p["Y"] > max(p["x"], p["Yx"]), False]
        expected = [true / (true + false), p["x"] / (p["x"] + p["Y"])]
        assert found.values["t_mc2"] == pytest.approx(expected, rel=1e-4)

    def test_probabilities_that_underflow(self) -> None:
        # behind "z" all 365 tokens are as likely, so 150 of them have exp(−150 · 5.9), which is 0 in any float
        long = "z" * 150
        assert math.exp(-149 * SCRIPTED.nll("zz")) == 0
        question = TruthQuestion("q#", long, (long[:-1] + "y",), (long,), (long[:-1] + "y",))
        (found,) = TruthChoiceTask("t", [question]).measure(ENGINE, [None])
        assert found.values["t_mc2"] == pytest.approx([0.5], abs=1e-3)

    def test_broken_is_unscored(self) -> None:
        (broken,) = TruthChoiceTask("truth", self.QUESTIONS).measure(ENGINE, [BROKEN])
        assert broken.values == {"truth_mc1": [None, None], "truth_mc2": [None, None]}

    def test_mc2_is_a_mean_and_mc1_a_rate(self) -> None:
        (found,) = TruthChoiceTask("truth", self.QUESTIONS).measure(ENGINE, [None])
        assert found.metrics["truth_mc1"].value == 0.5
        assert found.metrics["truth_mc2"].value == pytest.approx(np.mean(found.values["truth_mc2"]))


class TestMaths:
    PROBLEMS = (MathProblem("a", "7"), MathProblem("b", "8"), MathProblem("c", None), MathProblem("d", "\\frac{14}{2}"))

    def test_known_outcomes(self) -> None:
        base, steered = MathTask("maths", self.PROBLEMS, SAMPLING).measure(ENGINE, [None, STEERED])
        assert base.replies == {"maths": ["7"] * 4}
        assert base.values == {"maths_accuracy": [True, False, None, True], "maths_finished": [True] * 4}
        assert steered.values["maths_accuracy"] == [False, True, None, False]
        assert (base.metrics["maths_accuracy"].n, base.metrics["maths_accuracy"].unscored) == (3, 1)

    def test_a_reply_that_is_cut_off_is_wrong(self) -> None:
        (base,) = MathTask("maths", self.PROBLEMS, Sampling(max_new_tokens=1)).measure(ENGINE, [None])
        assert base.replies == {"maths": ["7 […]"] * 4}
        assert base.values == {"maths_accuracy": [False, False, None, False], "maths_finished": [False] * 4}

    @pytest.mark.parametrize(
        ("answer", "reply", "right"),
        [
            ("18", "She has 18 dollars left.", True),
            ("18", "She has 18 apples and 2 pears, 20 in all.", False),
            ("1,200", "so it is \\boxed{1200}", True),
            ("1200", "$1,200.00", True),
            ("\\frac{1}{2}", "\\boxed{0.5}", True),
            ("x^2 + x - 6", "\\boxed{(x+3)(x-2)}", True),
            ("5", "\\boxed{4}, no, it is \\boxed{5}", True),
            ("4", "\\boxed{4}, no, it is \\boxed{5}", False),
            ("5", "It is \\boxed{5}, because 2 + 4 = 6.", True),
            ("6\\sqrt{2}", "\\boxed{\\sqrt{72}}", True),
            ("-3", "The answer is -3.", True),
            ("-3", "The answer is 3.", False),
            ("7", "", False),
            ("7", "I do not know.", False),
            ("", "7", None),
        ],
    )
    def test_answers(self, answer: str, reply: str, right: bool | None) -> None:
        assert is_right(answer, reply) is right

    def test_an_expression_that_cannot_be_worked_out_is_wrong(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("steer2edit.evaluation.reply_tasks.SECONDS", 1)
        assert is_right("5", "\\boxed{9^{9^{9^{9}}}}") is False

    @pytest.mark.parametrize(
        ("text", "boxed"),
        [
            ("\\boxed{1} and \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
            ("\\boxed {3}", "3"),
            ("\\boxed{3} then \\boxed{4", "3"),
            ("\\boxed{ }", None),
            ("3", None),
        ],
    )
    def test_last_boxed(self, text: str, boxed: str | None) -> None:
        assert last_boxed(text) == boxed

    def test_without_math_verify(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from steer2edit.evaluation.reply_tasks import math_verify_functions

        math_verify_functions.cache_clear()
        monkeypatch.setitem(__import__("sys").modules, "math_verify", None)
        with pytest.raises(InvalidValueError, match=r"needs the package math-verify.*pip install math-verify"):
            is_right("1", "1")
        math_verify_functions.cache_clear()


class TestDegeneration:
    def test_known_outcomes(self) -> None:
        (base,) = DegenerationTask("", ["a!", "b#", "c~"], SAMPLING).measure(ENGINE, [None])
        assert base.replies == {"degeneration": ["Yes", "xxxxxx […]", ""]}
        # six equal tokens have three 4-grams, one of them distinct; three tokens have none
        assert base.values == {
            "repetition": [None, pytest.approx(2 / 3), None],
            "empty": [False, False, True],
            "unfinished": [False, True, False],
        }

    @pytest.mark.parametrize(
        ("ids", "share"),
        [
            ((1, 2, 3), None),
            ((1, 2, 3, 4), 0.0),
            ((1, 2, 3, 4, 1, 2, 3, 4), 1 / 5),  # 1234 2341 3412 4123 1234
            ((5,) * 10, 6 / 7),
        ],
    )
    def test_repeated_share(self, ids: Sequence[int], share: float | None) -> None:
        assert repeated_share(ids) == (None if share is None else pytest.approx(share))


TASKS: tuple[Task, ...] = (
    RefusalTask("harmful", ["a!", "b#", "c~"], SAMPLING),
    LengthTask("", ["a!", "b#", "c~"], SAMPLING),
    LengthTask("mine", ["a!", "b#", "c~"], SAMPLING),
    DriftTask("", ["a!", "b#", "c~"], SAMPLING),
    DriftTask("mine", ["a!", "b#", "c~"], SAMPLING),
    PreferenceTask("mine", [("q!", "Y", "x"), ("q!", "x", "Y"), ("q#", "x", "y")]),
    ChoiceTask("k", [ChoiceQuestion("q!", ("Y", "x", "8"), i) for i in range(3)]),
    TruthChoiceTask("truth", [*TestTruthChoice.QUESTIONS, TestTruthChoice.QUESTIONS[0]]),
    MathTask("maths", TestMaths.PROBLEMS[:3], SAMPLING),
    DegenerationTask("mine", ["a!", "b#", "c~"], SAMPLING),
)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{type(task).__name__}-{task.metric_names[0]}")
class TestEveryTask:
    def test_names_its_metrics(self, task: Task) -> None:
        assert isinstance(task, Task)
        for measurement in task.measure(ENGINE, [None, STEERED]):
            assert tuple(measurement.values) == task.metric_names
            assert all(len(values) == len(task) == 3 for values in measurement.values.values())

    def test_replies_stand_beside_what_was_asked(self, task: Task) -> None:
        (measurement,) = task.measure(ENGINE, [None])
        assert set(measurement.replies) <= set(task.asked)
        for asked in task.asked.values():
            assert len(asked) == 3

    def test_parts_make_the_whole(self, task: Task) -> None:
        whole = task.measure(ENGINE, [None, STEERED])
        parts = [
            task.part(slice(0, 1)).measure(ENGINE, [None, STEERED]),
            task.part(slice(1, 3)).measure(ENGINE, [None, STEERED]),
        ]
        for index, expected in enumerate(whole):
            merged = merged_measurements([part[index] for part in parts])
            assert merged.replies == expected.replies
            for name, values in expected.values.items():
                assert merged.values[name] == pytest.approx(values, abs=1e-4), name


class Counting:
    """A scorer that counts its calls, and refuses everything with an "s" in it."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[Prompt], list[str]]] = []

    def score(self, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> list[bool | None]:
        texts = [reply.text for reply in replies]
        self.calls.append((list(prompts), texts))
        return [None if not text else "s" in text for text in texts]


def test_a_scorer_is_asked_once_about_all_arms() -> None:
    scorer = Counting()
    base, steered = RefusalTask("r", ["a!", "b~"], SAMPLING, scorer).measure(ENGINE, [None, STEERED])
    assert scorer.calls == [(["a!", "b~", "a!", "b~"], ["Yes", "", "8", ""])]
    assert (base.values, steered.values) == ({"r_refused": [True, None]}, {"r_refused": [False, None]})


def test_conditions_hold_the_new_metrics() -> None:
    (base,) = evaluate(ENGINE, [TASKS[6], TASKS[8]], [BASE_ARM])
    assert set(base.metrics) == {"k_accuracy", "k_accuracy_sum", "maths_accuracy", "maths_finished"}
    assert base.metrics["maths_accuracy"].n == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChoiceQuestion("q", ("a",), 0), "needs 2 to 10 choices, got 1"),
        (lambda: ChoiceQuestion("q", ("a", "b"), 2), "index must be 0 to 1, got 2"),
        (lambda: ChoiceQuestion(" ", ("a", "b"), 0), "must not be empty"),
        (lambda: TruthQuestion("q", "b", ("w",), ("b",), ()), "at least one true and one false"),
        (lambda: MathProblem("", "1"), "the problem must not be empty"),
    ],
)
def test_bad_items(make: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()  # type: ignore[operator]
