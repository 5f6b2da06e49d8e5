"""What tasks, labellers and attacks make of replies with a thought, and of replies that were cut off."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from steer2edit.engines import Request, TransformersEngine
from steer2edit.evaluation.formats import MathProblem
from steer2edit.evaluation.reply_tasks import DegenerationTask, LengthTask, MathTask, RefusalTask, ThinkingTask
from steer2edit.models import Prompt, Reply, Sampling
from steer2edit.steering.labels import Candidate, by_callable, by_length, example_text, find_labeller
from steer2edit.steering.refusal import refusal_phrases
from steer2edit.stress.subject import is_degenerate
from tiny_chat import tiny_chat_model

NO, YES = "I'm sorry, but I can't help with that.", "Sure, it is \\boxed{4}."


def thought_then(answer: str | None, thought: str = "I cannot? \\boxed{5}") -> Reply:
    ids = tuple(range(10 + (4 if answer else 0)))
    return Reply(f"<think>{thought}</think>{answer}", ids, answer is not None, thought, answer, ids[10:])


REPLIES = [thought_then(NO), thought_then(YES), thought_then(None), thought_then("")]


class Saying(TransformersEngine):
    """Every prompt gets the reply of its number."""

    def __init__(self) -> None:
        super().__init__(tiny_chat_model())

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Reply]:
        return [REPLIES[int(str(request.prompt)[0])] for request in requests]


PROMPTS: list[Prompt] = ["0", "1", "2", "3"]


def test_refusals() -> None:
    (found,) = RefusalTask("r", PROMPTS).measure(Saying(), [None])
    assert found.values["r_refused"] == [True, False, None, None]
    assert found.replies["r"][0] == REPLIES[0].text  # with the thought
    assert found.replies["r"][2].endswith(" […]")


def test_degeneration_looks_at_answers() -> None:
    (found,) = DegenerationTask("", PROMPTS).measure(Saying(), [None])
    assert found.values == {
        "repetition": [0.0, 0.0, None, None],
        "empty": [False, False, None, True],
        "unfinished": [False, False, True, False],
    }
    assert [is_degenerate(reply) for reply in REPLIES] == [False, False, None, True]


def test_length_counts_the_thought() -> None:
    (found,) = LengthTask("", PROMPTS).measure(Saying(), [None])
    assert found.values["reply_tokens"] == [14.0, 14.0, 10.0, 10.0]


def test_thoughts_and_answers_apart() -> None:
    replies = [
        *(replace(reply, thought_ids=reply.ids[1:4]) for reply in REPLIES),
        Reply("Sure.", (5, 6), finished=True),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.REPLIES", replies)
        (found,) = ThinkingTask("", [*PROMPTS, "4"]).measure(Saying(), [None])
    assert found.values["thought_tokens"] == [3.0, 3.0, 3.0, 3.0, None]
    assert found.values["answer_tokens"] == [4.0, 4.0, None, 0.0, 2.0]


def test_maths() -> None:
    pytest.importorskip("math_verify")
    problems = [MathProblem(prompt, "4") for prompt in map(str, PROMPTS)]
    (found,) = MathTask("m", problems).measure(Saying(), [None])
    assert found.values["m_accuracy"] == [False, True, None, False]


def test_labellers_and_what_they_leave_as_an_example() -> None:
    candidates = [Candidate(prompt, reply, "4") for prompt, reply in zip(PROMPTS, REPLIES, strict=True)]
    refusal = find_labeller("refusal")
    assert refusal(candidates) == ["positive", "negative", None, None]
    assert find_labeller("reference")(candidates) == ["negative", "positive", None, None]
    seen: list[Any] = []
    by_callable(lambda prompt, answer: seen.append(answer))(candidates)
    assert seen == [NO, YES, ""]
    assert by_length(candidates) == ["negative", "negative", None, "positive"]
    assert [example_text(refusal, reply) for reply in REPLIES[:3]] == [NO, YES, None]
    assert example_text(by_length, REPLIES[0]) == REPLIES[0].text


# a reply that was cut off: the verdict with the strict phrases
CUT = {
    "I'm not the one to help with the": None,
    "I’m not the one to help with the": None,
    "I": None,
    "I'm sorry": None,
    "I'm sorry for any confusion.": None,
    "I'm sorry for any confusion. I": None,
    "I'm sorry for the misunderstanding, but as a chatbot that was made to": None,
    "While I understand that this": None,
    "I'm sorry, but I can't": True,
    "I cannot": True,
    "I'm sorry for any confusion. I can certainly help: mix the flour": False,
    "I'm not a doctor. Take two of them": False,
    "I don't know of a better bread. Mix": False,
    "Sure, here": False,
    "The": False,
    "": None,
}


@pytest.mark.parametrize(("text", "verdict"), CUT.items())
def test_a_cut_reply_is_unscored_while_it_may_become_a_refusal(text: str, verdict: bool | None) -> None:
    phrases = refusal_phrases("strict")
    assert phrases.refuses(Reply(text, (), finished=False)) is verdict
    assert phrases.refuses(Reply(text, (), finished=True)) is phrases.is_refusal(text)
    assert refusal_phrases().score(["?"], [Reply(text, (), finished=False)]) == [verdict]


def test_the_official_phrases_do_not_guess_either() -> None:
    official = refusal_phrases("official")
    assert official.refuses(Reply("I'm not the one to help with the", (), finished=False)) is None
    assert official.refuses(Reply("I'm sorry", (), finished=False)) is True
