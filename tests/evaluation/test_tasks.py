"""Tasks on a model whose every reply and probability is known by hand."""

import pytest
from scripted_model import ScriptedModel

from steer2edit.core import Steering
from steer2edit.engines import Request, TransformersEngine
from steer2edit.evaluation import DriftTask, Task
from steer2edit.evaluation.likelihood_tasks import PreferenceTask, base_answers
from steer2edit.evaluation.reply_tasks import LengthTask, RefusalTask
from steer2edit.evaluation.statistics import mean, rate
from steer2edit.models import EncodedResponse, Sampling, encode_prompts
from steer2edit.steering.refusal import RefusalPhrases
from tiny_chat import END

# "?" begins a refusal "N.", "!" help "Yes", "~" the end at once, "#" a reply that never ends. Steering lures to "N",
# from "!" and "~" alone: there the weight is small.
SCRIPT = {
    "?": ("N", 2.0), "N": (".", 2.0), ".": (END, 2.0),
    "!": ("Y", 0.5), "Y": ("e", 2.0), "e": ("s", 2.0), "s": (END, 2.0),
    "~": (END, 0.5),
    "#": ("x", 2.0), "x": ("x", 2.0),
}  # fmt: skip
SCRIPTED = ScriptedModel(SCRIPT, lure=("N", 1.5))
ENGINE = TransformersEngine(SCRIPTED.model)
STEERED = Steering(SCRIPTED.vectors(), 0.5)
SAYS_NO = RefusalPhrases("no", openers=("n",))
SAMPLING = Sampling(max_new_tokens=6)


def test_the_script_itself() -> None:
    requests = [Request(f"a{end}", i) for i in (None, STEERED) for end in "?!~#"]
    replies = [(reply.text, reply.finished) for reply in ENGINE.generate(requests, SAMPLING)]
    assert replies[:4] == [("N.", True), ("Yes", True), ("", True), ("xxxxxx", False)]
    assert replies[4:] == [("N.", True), ("N.", True), ("N.", True), ("xxxxxx", False)]


def test_tasks_are_tasks() -> None:
    for task in (
        RefusalTask("a", ["b"]),
        LengthTask("", ["b"]),
        PreferenceTask("truth", [("q", "a", "b")]),
        DriftTask("", ["b"]),
    ):
        assert isinstance(task, Task)


class TestRefusal:
    PROMPTS = ("a?", "b!", "c~", "d?", "e!")

    def test_known_outcomes(self) -> None:
        task = RefusalTask("harmful", self.PROMPTS, SAMPLING, SAYS_NO)
        base, steered = task.measure(ENGINE, [None, STEERED])
        assert base.replies == {"harmful": ["N.", "Yes", "", "N.", "Yes"]}
        assert base.outcomes == {"harmful": [True, False, None, True, False]}
        assert base.metrics == {"harmful_refused": rate([True, False, None, True, False])}
        assert (base.metrics["harmful_refused"].n, base.metrics["harmful_refused"].unscored) == (4, 1)
        assert steered.replies == {"harmful": ["N."] * 5}
        assert steered.outcomes == {"harmful": [True] * 5}
        assert steered.metrics["harmful_refused"].value == 1.0

    def test_strict_phrases_are_the_default(self) -> None:
        (base,) = RefusalTask("harmful", self.PROMPTS, SAMPLING).measure(ENGINE, [None])
        assert base.outcomes == {"harmful": [False, False, None, False, False]}


class TestLength:
    def test_known_outcomes(self) -> None:
        base, steered = LengthTask("", ["a?", "b!", "c~", "d#"], SAMPLING).measure(ENGINE, [None, STEERED])
        assert base.metrics["reply_tokens"] == mean([2.0, 3.0, None, 6.0])  # the end token does not count
        assert base.metrics["finished"] == rate([True, True, True, False])
        assert base.replies == {"requests": ["N.", "Yes", "", "xxxxxx […]"]}
        assert steered.metrics["reply_tokens"] == mean([2.0, 2.0, 2.0, 6.0])


class TestTruth:
    # after "!": "Ye" is likely (weight ½, then 2), "Yx" has one unlikely step, "xx" begins unlikely and then goes on
    QUESTIONS = (("q!", "Ye", "Yx"), ("q!", "Yx", "Ye"), ("q?", "N", "x"))

    def test_known_margins(self) -> None:
        base, steered = PreferenceTask("truth", self.QUESTIONS).measure(ENGINE, [None, STEERED])
        for measurement, strength in ((base, 0.0), (steered, 0.5)):
            margins = [
                SCRIPTED.nll(question[-1] + false, strength) - SCRIPTED.nll(question[-1] + true, strength)
                for question, true, false in self.QUESTIONS
            ]
            assert measurement.metrics["truth_margin"].value == pytest.approx(mean(margins).value, abs=1e-4)
            assert measurement.metrics["truth_margin"].low == pytest.approx(mean(margins).low, abs=1e-3)
            assert measurement.metrics["truth_preferred"] == rate([True, False, True])

    def test_by_hand(self) -> None:
        # "?" → "N" has logit √64 · 2 = 16, the other 364 tokens 0: log p(N) = 16 − log(e¹⁶ + 364), log p(x) = that − 16
        (base,) = PreferenceTask("truth", [("q?", "N", "x")]).measure(ENGINE, [None])
        assert base.metrics["truth_margin"].value == pytest.approx(16.0, abs=1e-3)

    def test_length_is_normalised(self) -> None:
        # "Yes" has the lower total than "Y", as any continuation has, but the higher mean per token
        total_short, total_long = (n * SCRIPTED.nll(text) for n, text in ((1, "!Y"), (3, "!Yes")))
        assert total_long > total_short
        (base,) = PreferenceTask("truth", [("q!", "Yes", "Y")]).measure(ENGINE, [None])
        assert base.metrics["truth_preferred"].value == 1.0


class TestDrift:
    def test_base_answers(self) -> None:
        answers = base_answers(ENGINE, ["a?", "b!", "c~"], SAMPLING)
        (head,) = encode_prompts(SCRIPTED.model, ["b!"])
        assert answers[1] == EncodedResponse((*head, *(SCRIPTED.token(c) for c in "Yes")), len(head))
        assert [SCRIPTED.tokenizer.decode(a.response_ids) for a in answers if a] == ["N.", "Yes"]
        assert answers[2] is None

    def test_known_drift(self) -> None:
        base, steered = DriftTask("", ["a?", "b!"], SAMPLING).measure(ENGINE, [None, STEERED])
        assert base.metrics["nll_increase"] == mean([0.0, 0.0])
        assert base.metrics["kl"] == mean([0.0, 0.0])
        increases = [SCRIPTED.nll(text, 0.5) - SCRIPTED.nll(text) for text in ("?N.", "!Yes")]
        divergences = [SCRIPTED.kl(text, 0.5) for text in ("?N.", "!Yes")]
        assert increases[1] > 0.1  # it can be seen
        assert steered.metrics["nll_increase"].value == pytest.approx(sum(increases) / 2, abs=1e-4)
        assert steered.metrics["kl"].value == pytest.approx(sum(divergences) / 2, abs=1e-4)
        assert steered.metrics["kl"].low == pytest.approx(mean(divergences).low, abs=1e-3)

    def test_no_answer_at_all(self) -> None:
        (base,) = DriftTask("", ["c~"], SAMPLING).measure(ENGINE, [None])
        assert base.metrics["kl"].value is None
        assert base.metrics["kl"].n == 0

    def test_unanswered_prompts_are_counted_as_unscored(self) -> None:
        (base,) = DriftTask("", ["a?", "c~", "b!"], SAMPLING).measure(ENGINE, [None])
        assert (base.metrics["kl"].n, base.metrics["kl"].unscored) == (2, 1)


def test_a_model_that_is_broken_is_unscored() -> None:
    broken = Steering(SCRIPTED.vectors(), 1e39)
    (truth,) = PreferenceTask("truth", [("q?", "N", "x")]).measure(ENGINE, [broken])
    assert truth.metrics["truth_preferred"] == rate([None])
    assert truth.metrics["truth_margin"].value is None
