"""The part of a response that is averaged: its thought, its answer, its first tokens."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from naive_capture import activations
from steer2edit.cli import app
from steer2edit.engines import TransformersEngine
from steer2edit.errors import DataError, InvalidValueError
from steer2edit.evaluation.reply_tasks import ThinkingTask
from steer2edit.models import EncodedResponse, LanguageModel, Sampling, encode_responses, generate, load_model
from steer2edit.steering.contrast import Contrast, ContrastSet
from steer2edit.steering.extract import extract
from tiny_chat import CHAT_TEMPLATE, tiny_chat_model, tiny_tokenizer

THINKING = CHAT_TEMPLATE.replace("assistant\n{%", "assistant\n<think>\n{%")


def thinking_model(template: str = THINKING) -> LanguageModel:
    return tiny_chat_model(tokenizer=tiny_tokenizer(template=template), num_hidden_layers=1)


def said(model: LanguageModel, encoded: EncodedResponse) -> str:
    """The tokens that the positions of the span predict."""
    return str(model.tokenizer.decode([encoded.ids[i + 1] for i in encoded.span]))


@pytest.mark.parametrize(("template", "response"), [
    (THINKING, "Hm, two.</think>Sure."),  # the template has begun the thought
    (CHAT_TEMPLATE, "<think>Hm, two.</think>Sure."),
])  # fmt: skip
def test_thought_and_answer(template: str, response: str) -> None:
    model = thinking_model(template)
    parts = {part: encode_responses(model, [("Hi", response)], part)[0] for part in ("response", "thought", "answer")}
    assert said(model, parts["thought"]) == "Hm, two."
    assert said(model, parts["answer"]) == "Sure."
    assert parts["response"].part is None
    assert said(model, parts["response"]) == response
    assert len({part.ids for part in parts.values()}) == 1


def test_the_first_tokens() -> None:
    model = thinking_model()
    (whole,), (two,), (all_of_it,) = (
        encode_responses(model, [("Hi", "Hm.</think>Sure.")], part) for part in ("response", "2", "999")
    )
    assert list(two.span) == list(whole.span)[:2]
    assert all_of_it.span == whole.span


def test_without_a_thought_the_response_is_the_answer() -> None:
    model = thinking_model(CHAT_TEMPLATE)
    (whole,), (answer,) = (encode_responses(model, [("Hi", "Sure.")], part) for part in ("response", "answer"))
    assert answer.span == whole.span
    with pytest.raises(DataError, match=r"the response 'Sure\.'\.\.\. has no thought.*take the whole"):
        encode_responses(model, [("Hi", "Sure.")], "thought")


def test_a_thought_that_does_not_end_has_no_answer() -> None:
    (thought,) = encode_responses(thinking_model(), [("Hi", "Hm, two")], "thought")
    assert said(thinking_model(), thought) == "Hm, two"
    with pytest.raises(DataError, match=r"has no answer.*--max-new-tokens"):
        encode_responses(thinking_model(CHAT_TEMPLATE), [("Hi", "<think>Hm, two")], "answer")


def test_a_template_that_begins_a_thought_leaves_answers_where_they_are() -> None:
    model = thinking_model()
    (answer,), (whole,) = (encode_responses(model, [("Hi", "Sure.")], part) for part in ("answer", "response"))
    assert answer.span == whole.span
    assert "<think>" not in model.tokenizer.decode(whole.ids)


@pytest.mark.parametrize("part", ["prompt", "0", "-1", "1.5", ""])
def test_no_such_part(part: str) -> None:
    with pytest.raises(InvalidValueError, match="a span must be response, thought, answer, or a number of tokens"):
        encode_responses(thinking_model(), [("Hi", "Sure.")], part)


PAIRS = {
    "positive": [("one", "Two.</think>Yes"), ("two", "I can.</think>No.")],
    "negative": [("one", "I can, but I'm sorry.\nTwo.</think>Yes"), ("four", "Here is what I can do.</think>four")],
}


def mean_inputs(model: LanguageModel, pairs: Sequence[tuple[str, str]], part: str) -> torch.Tensor:
    means = []
    for encoded in encode_responses(model, pairs, part):
        inputs, _ = activations(model, encoded.ids)
        means.append(inputs[next(iter(model.sites))][encoded.span.start : encoded.span.stop].double().mean(dim=0))
    return torch.stack(means).mean(dim=0)


@pytest.mark.parametrize("part", ["thought", "answer", "1"])
def test_vectors_are_of_that_part_and_say_so(part: str) -> None:
    model = thinking_model()
    contrast = ContrastSet("by hand", {"train": Contrast(tuple(PAIRS["positive"]), tuple(PAIRS["negative"]))}, {})
    vectors = extract(model, contrast, span=part)
    assert vectors.metadata["span_part"] == part
    found = next(iter(vectors.sites.values())).input
    for name in ("positive", "negative"):
        assert torch.allclose(getattr(found, name).double(), mean_inputs(model, PAIRS[name], part).double(), atol=1e-5)


def test_efficient_reasoning_from_generated_thoughts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Short against long thoughts of the model itself, an edit of them, and the length of thoughts under it."""
    monkeypatch.chdir(tmp_path)
    model = thinking_model()
    model.network.save_pretrained("model")
    model.tokenizer.save_pretrained("model")
    Path("asked.jsonl").write_text("\n".join(json.dumps({"prompt": f"Why {i}?"}) for i in range(40)))
    commands = [
        ["extract", "model", "--contrast", "asked.jsonl", "--labeller", "length", "--span", "thought",
         "--temperature", "1", "--max-new-tokens", "12", "--out", "v.safetensors"],
        ["convert", "model", "v.safetensors", "--rho-mlp", "0.01", "--force", "--out", "edit"],
        ["evaluate", "model", "--edit", "edit", "--task", "thinking=asked.jsonl", "--limit", "2", "--max-new-tokens",
         "4", "--json"],
    ]  # fmt: skip
    for command in commands:
        capsys.readouterr()
        app(command, standalone_mode=False)
    results = json.loads(capsys.readouterr().out)
    assert "thought_tokens" in json.dumps(results)


@pytest.mark.slow
def test_smollm2_thinks_where_its_template_begins_to() -> None:
    template = Path(__file__).parents[2] / "docs" / "smollm2-thinking.jinja"
    model = load_model("smollm2", dtype="float32", chat_template=str(template))
    prompts = ["A book costs 4 dollars. What do 3 books cost?", "I had 10 coins and lost 4. How many are left?"]
    replies = generate(model, prompts, Sampling(max_new_tokens=64))
    assert all(reply.finished and reply.thought and reply.answer for reply in replies)
    for prompt, reply in zip(prompts, replies, strict=True):
        thought, answer = (encode_responses(model, [(prompt, reply.text)], part)[0] for part in ("thought", "answer"))
        assert said(model, thought).strip() == reply.thought
        assert said(model, answer).strip() == reply.answer
        assert len(thought.span) > len(answer.span) > 0
    (found,) = ThinkingTask("", prompts, Sampling(max_new_tokens=64)).measure(TransformersEngine(model), [None])
    assert found.values["thought_tokens"] == [float(len(reply.thought_ids)) for reply in replies]
