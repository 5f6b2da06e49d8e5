"""The built-in contrast sets: how many rows, which columns, and no prompt in two places."""

import json
from collections import Counter
from importlib.resources import files

import pytest

from steer2edit.errors import DataError
from steer2edit.steering import PRESETS, preset_examples, refusal_phrases, safety_prompts
from steer2edit.steering.contrast import require_disjoint
from steer2edit.steering.examples import SPLITS, Example

SAFETY = {"train": 96, "validation": 48, "held_out": 96}
PAIRED = {"train": 56, "validation": 32, "held_out": 56}


def count(examples: list[Example], label: str) -> dict[str, int]:
    return dict(Counter(e.split for e in examples if e.label == label))


@pytest.mark.parametrize(
    ("name", "counts", "labeller"),
    [
        ("safety", SAFETY, "refusal"),
        ("safety-benign", SAFETY, None),
        ("truthfulness", PAIRED, None),
        ("conciseness", PAIRED, None),
    ],
)
def test_counts_and_splits(name: str, counts: dict[str, int], labeller: str | None) -> None:
    examples, found = preset_examples(name)
    assert found == labeller
    assert count(examples, "positive") == count(examples, "negative") == counts
    require_disjoint(examples, name)
    for label in ("positive", "negative"):
        keys = [" ".join(e.key.lower().split()) for e in examples if e.label == label]
        assert len(set(keys)) == len(keys)  # no prompt twice, whatever its case and spacing
    assert all(isinstance(e.prompt, str) and e.prompt == e.prompt.strip() for e in examples)
    assert all(e.response is None or e.response.strip() for e in examples)


def test_all_presets_are_tested() -> None:
    assert set(PRESETS) == {"safety", "safety-benign", "truthfulness", "conciseness"}
    assert all(description for _, _, description in PRESETS.values())


def test_safety_contrasts_refusals_with_the_models_own_compliance() -> None:
    examples, _ = preset_examples("safety")
    positive = {e.key: e.response for e in examples if e.label == "positive"}
    negative = {e.key: e.response for e in examples if e.label == "negative"}
    assert positive.keys() == negative.keys()  # the same harmful requests
    assert set(negative.values()) == {None}  # the model is to answer
    assert all(refusal_phrases("strict").is_refusal(r or "") for r in positive.values())
    uses = Counter(positive.values())  # the refusals are taken in turn
    lines = files("steer2edit.steering.presets").joinpath("safety/refusals.jsonl").read_text(encoding="utf-8")
    assert set(uses) == {json.loads(line)["response"] for line in lines.splitlines()}
    assert max(uses.values()) - min(uses.values()) <= 1


def test_safety_benign_contrasts_refusals_with_help() -> None:
    examples, _ = preset_examples("safety-benign")
    harmful = {e.key for e in preset_examples("safety")[0]}
    positive = {e.key for e in examples if e.label == "positive"}
    helped = [e for e in examples if e.label == "negative"]
    assert positive == harmful
    assert not {e.key for e in helped} & harmful  # benign requests have answers of their own
    assert not any(refusal_phrases("strict").is_refusal(e.response or "") for e in helped)


@pytest.mark.parametrize("name", ["truthfulness", "conciseness"])
def test_paired_answers_differ(name: str) -> None:
    answers: dict[str, dict[str, str]] = {}
    for e in preset_examples(name)[0]:
        answers.setdefault(e.key, {})[e.label or ""] = e.response or ""
    assert all(
        set(pair) == {"positive", "negative"} and pair["positive"] != pair["negative"] for pair in answers.values()
    )
    if name == "conciseness":
        assert all(len(pair["positive"]) < len(pair["negative"]) for pair in answers.values())


@pytest.mark.parametrize("split", SPLITS)
def test_safety_prompts(split: str) -> None:
    harmful, benign = safety_prompts(split)
    assert len(harmful) == len(benign) == SAFETY[split]
    assert set(harmful) == {e.key for e in preset_examples("safety")[0] if e.split == split}
    others = {p for other in SPLITS if other != split for prompts in safety_prompts(other) for p in prompts}
    assert not others & {*harmful, *benign}
    assert not set(harmful) & set(benign)


def test_unknown_preset() -> None:
    with pytest.raises(DataError, match=r"no preset or file 'saftey'\. Did you mean 'safety'\? Known: concise"):
        preset_examples("saftey")
