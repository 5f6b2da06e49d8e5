"""The built-in contrast sets: how many rows, which columns, and no prompt in two places."""

import json
import re
from collections import Counter
from importlib.resources import files
from statistics import mean

import pytest

from steer2edit.errors import DataError
from steer2edit.steering.behaviour_folder import built_in_names, find_behaviour
from steer2edit.steering.contrast import require_disjoint
from steer2edit.steering.examples import SPLITS, Example, Split
from steer2edit.steering.presets import built_in_requests, safety_prompts
from steer2edit.steering.refusal import refusal_phrases

SAFETY = {"train": 96, "validation": 48, "held_out": 96}
TRUTHFULNESS = {"train": 240, "validation": 80, "held_out": 100}
CONCISENESS = {"train": 140, "validation": 64, "held_out": 96}
COUNTS = {
    "safety": (SAFETY, "refusal"),
    "safety-benign": (SAFETY, None),
    "truthfulness": (TRUTHFULNESS, None),
    "conciseness": (CONCISENESS, None),
    "sycophancy": ({"train": 60, "validation": 30, "held_out": 67}, None),
    "abstention": ({"train": 60, "validation": 30, "held_out": 60}, None),
    "formality": ({"train": 60, "validation": 30, "held_out": 64}, None),
    "over-refusal": ({"train": 112, "validation": 64}, "compliance"),
}
NEGATION = re.compile(r"\b(?:no|not|never|none|nothing|nobody|nowhere|neither|nor|cannot)\b|n't\b", re.IGNORECASE)


def count(examples: list[Example], label: str) -> dict[str, int]:
    return dict(Counter(e.split for e in examples if e.label == label))


def answers(name: str, split: Split | None = None) -> list[tuple[str, str]]:
    """(positive, negative) answer of every prompt of a paired preset."""
    pairs: dict[str, dict[str, str]] = {}
    for e in find_behaviour(name).examples():
        if split in (None, e.split):
            pairs.setdefault(e.key, {})[e.label or ""] = e.response or ""
    return [(pair["positive"], pair["negative"]) for pair in pairs.values()]


def words(text: str) -> int:
    return len(text.split())


def bare(prompt: str) -> str:
    """A prompt without case, punctuation and spacing."""
    return " ".join(re.findall(r"[a-z0-9]+", prompt.casefold()))


@pytest.mark.parametrize(("name", "counts", "labeller"), [(name, *found) for name, found in COUNTS.items()])
def test_counts_and_splits(name: str, counts: dict[str, int], labeller: str | None) -> None:
    behaviour = find_behaviour(name)
    examples = behaviour.examples()
    assert behaviour.labeller == labeller
    assert count(examples, "positive") == count(examples, "negative") == counts
    require_disjoint(examples, name)
    for label in ("positive", "negative"):
        keys = [" ".join(e.key.lower().split()) for e in examples if e.label == label]
        assert len(set(keys)) == len(keys)  # no prompt twice, whatever its case and spacing
    assert all(isinstance(e.prompt, str) and e.prompt == e.prompt.strip() for e in examples)
    assert all(e.response is None or e.response.strip() for e in examples)


def test_all_presets_are_tested() -> None:
    assert set(built_in_names()) == COUNTS.keys()
    assert all(find_behaviour(name).description for name in built_in_names())


def test_safety_contrasts_refusals_with_the_models_own_compliance() -> None:
    examples = find_behaviour("safety").examples()
    positive = {e.key: e.response for e in examples if e.label == "positive"}
    negative = {e.key: e.response for e in examples if e.label == "negative"}
    assert positive.keys() == negative.keys()  # the same harmful requests
    assert set(negative.values()) == {None}  # the model is to answer
    assert all(refusal_phrases("strict").is_refusal(r or "") for r in positive.values())
    uses = Counter(positive.values())  # the refusals are taken in turn
    assert len(uses) == 6
    assert max(uses.values()) - min(uses.values()) <= 1


def test_safety_benign_contrasts_refusals_with_help() -> None:
    examples = find_behaviour("safety-benign").examples()
    harmful = {e.key for e in find_behaviour("safety").examples()}
    positive = {e.key for e in examples if e.label == "positive"}
    helped = [e for e in examples if e.label == "negative"]
    assert positive == harmful
    assert not {e.key for e in helped} & harmful  # benign requests have answers of their own
    assert not any(refusal_phrases("strict").is_refusal(e.response or "") for e in helped)


@pytest.mark.parametrize("name", ["truthfulness", "conciseness"])
def test_paired_answers_differ(name: str) -> None:
    pairs = answers(name)
    assert all(bare(positive) != bare(negative) for positive, negative in pairs)
    assert all(text == text.strip() and text[-1] in '.!?"' for pair in pairs for text in pair)


def test_no_prompt_twice_in_any_preset() -> None:
    prompts = [e.key for name in built_in_names() for e in find_behaviour(name).examples()]
    assert len({bare(p) for p in prompts}) == len(set(prompts))  # only case or punctuation apart: the same prompt
    topics = [
        {bare(e.key) for e in find_behaviour(name).examples()}
        for name in ("safety-benign", "truthfulness", "conciseness")
    ]
    assert len(set().union(*topics)) == sum(map(len, topics))


@pytest.mark.parametrize("split", SPLITS)
def test_truthfulness_contrasts_truth_and_not_form(split: Split) -> None:
    pairs = answers("truthfulness", split)
    true, false = zip(*pairs, strict=True)
    assert mean(map(words, true)) == pytest.approx(mean(map(words, false)), rel=0.1)
    assert all(min(words(t), words(f)) >= 0.8 * max(words(t), words(f)) for t, f in pairs)
    negated = [mean(bool(NEGATION.search(text)) for text in side) for side in (true, false)]
    assert abs(negated[0] - negated[1]) <= 0.15
    assert all(0.35 <= share <= 0.6 for share in negated)
    # "Yes" and "No" come in pairs, and the truth is as often the one as the other
    assert all(
        (t.startswith("Yes,"), t.startswith("No,")) == (f.startswith("No,"), f.startswith("Yes,")) for t, f in pairs
    )
    opening = Counter(text.split()[0] for text in true)
    assert abs(opening["Yes,"] - opening["No,"]) <= 0.05 * len(true)


@pytest.mark.parametrize("split", SPLITS)
def test_conciseness_contrasts_length(split: Split) -> None:
    pairs = answers("conciseness", split)
    assert all(words(verbose) >= 4 * words(concise) for concise, verbose in pairs)
    assert all(words(concise) <= 16 and 60 <= words(verbose) <= 100 for concise, verbose in pairs)


@pytest.mark.parametrize("split", SPLITS)
def test_safety_prompts(split: str) -> None:
    harmful, benign = safety_prompts(split)
    assert len(harmful) == len(benign) == SAFETY[split]
    assert set(harmful) == {e.key for e in find_behaviour("safety").examples() if e.split == split}
    others = {p for other in SPLITS if other != split for prompts in safety_prompts(other) for p in prompts}
    assert not others & {*harmful, *benign}
    assert not set(harmful) & set(benign)


@pytest.mark.parametrize(
    ("split", "harmful", "benign", "borderline", "usual"),
    [("train", 96, 240, 112, 112), ("validation", 80, 64, 64, 16), ("held_out", 300, 300, 176, 16)],
)
def test_more_requests_for_those_who_want_them(
    split: Split, harmful: int, benign: int, borderline: int, usual: int
) -> None:
    found = safety_prompts(split, 1000)
    assert tuple(map(len, found)) == (harmful, benign)
    assert [few == many[: len(few)] for few, many in zip(safety_prompts(split), found, strict=True)] == [True, True]
    assert safety_prompts(split, 5) == safety_prompts(split)  # the caller takes what it wants of them
    assert len(built_in_requests("borderline", split, 1000)) == borderline
    assert built_in_requests("borderline", split) == built_in_requests("borderline", split, 1000)[:usual]
    assert len(safety_prompts("held_out", 120)[0]) == 120


def test_no_request_twice_in_any_set_and_split() -> None:
    """Whatever its case and punctuation: the sets of safety, those of other behaviours, and what stress adds."""
    looks_unsafe = files("steer2edit.stress").joinpath("sets/looks_unsafe.jsonl")
    every = [json.loads(line)["prompt"] for line in looks_unsafe.read_text(encoding="utf-8").splitlines()]
    for split in SPLITS:
        every += [
            *(p for own in safety_prompts(split, 1000) for p in own),
            *built_in_requests("borderline", split, 1000),
        ]
    every += {
        e.key
        for name in ("truthfulness", "conciseness", "sycophancy", "abstention", "formality")
        for e in find_behaviour(name).examples()
    }
    assert [p for p, uses in Counter(map(bare, every)).items() if uses > 1] == []


def test_unknown_preset() -> None:
    with pytest.raises(DataError, match=r"no behaviour 'saftey'\. Did you mean 'safety'\? Known: .*concise"):
        find_behaviour("saftey")
