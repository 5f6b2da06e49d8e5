"""Contrast sets: splits that share no prompt, responses generated and labelled, and classes that must not be empty."""

import random

import pytest

from steer2edit.errors import DataError
from steer2edit.models import LanguageModel, Prompt, Reply, Sampling, generate
from steer2edit.steering.contrast import Contrast, ContrastSet, assign_splits, build_contrast, require_disjoint
from steer2edit.steering.examples import Example
from steer2edit.steering.labels import by_callable
from tiny_chat import tiny_chat_model

PROMPTS = [f"question {i}" for i in range(100)]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_chat_model()


def splits_of(examples: list[Example], seed: int = 0) -> dict[str, str]:
    return {e.key: str(e.split) for e in assign_splits(examples, seed)}


class TestAssignment:
    def test_shares(self) -> None:
        found = list(splits_of([Example(p) for p in PROMPTS]).values())
        assert [found.count(s) for s in ("train", "validation", "held_out")] == [60, 20, 20]

    def test_depends_on_prompts_and_seed_alone(self) -> None:
        examples = [Example(p) for p in PROMPTS]
        wanted = splits_of(examples)
        random.Random(0).shuffle(examples)
        assert splits_of(examples) == wanted
        assert splits_of([Example(f" {p}\n", "with a response") for p in PROMPTS]) == wanted
        assert splits_of(examples, seed=1) != wanted

    def test_all_rows_of_a_prompt_go_together(self) -> None:
        pairs = [Example(p, side, side) for p in PROMPTS for side in ("positive", "negative")]
        assigned = assign_splits(pairs)
        require_disjoint(assigned, "pairs")
        assert [e.split for e in assigned[::2]] == [e.split for e in assigned[1::2]]
        assert [e.split for e in assigned].count("train") == 120

    def test_a_split_that_is_given_stays_and_draws_its_prompt_along(self) -> None:
        examples = [Example(p) for p in PROMPTS[:10]] + [Example(p, split="held_out") for p in PROMPTS[:10]]
        examples += [Example(p) for p in PROMPTS[10:20]]
        assigned = assign_splits(examples)
        assert {e.split for e in assigned[:20]} == {"held_out"}
        found = [e.split for e in assigned[20:]]
        assert [found.count(s) for s in ("train", "validation", "held_out")] == [6, 2, 2]

    def test_messages(self) -> None:
        chats: list[Prompt] = [[{"role": "user", "content": p}] for p in PROMPTS]
        found = list(splits_of([Example(chat) for chat in chats]).values())
        assert [found.count(s) for s in ("train", "validation", "held_out")] == [60, 20, 20]


class TestOverlap:
    def rows(self, one: str, other: str) -> list[Example]:
        rows = [Example(p, "x", label, split=one) for p in "abcd" for label in ("positive", "negative")]
        return rows + [Example(p, "y", "positive", split=other) for p in (" c", "d ", "e")]

    @pytest.mark.parametrize(
        ("one", "other"), [("train", "validation"), ("train", "held_out"), ("validation", "held_out")]
    )
    def test_number_and_example(self, one: str, other: str) -> None:
        with pytest.raises(DataError, match=rf"'mine': 2 prompts are in both {one} and {other}, e\.g\. 'c'"):
            require_disjoint(self.rows(one, other), "mine")

    def test_the_same_part(self) -> None:
        require_disjoint(self.rows("train", "train"), "mine")

    def test_train_and_validation(self, model: LanguageModel) -> None:
        with pytest.raises(DataError, match="2 prompts are in both train and validation"):
            build_contrast("mine", self.rows("train", "validation"), model)

    def test_train_and_held_out(self, model: LanguageModel) -> None:
        with pytest.raises(DataError, match="2 prompts are in both train and held_out"):
            build_contrast("mine", self.rows("train", "held_out"), model)


class TestBuilding:
    def test_given_responses(self, model: LanguageModel) -> None:
        examples = [
            Example("a", "yes", "positive", split="train"),
            Example("a", "no", "negative", split="train"),
            Example("b", "no", "negative", split="train"),
            Example("c", "yes", "positive", split="validation"),
            Example("d", "yes", "positive", split="held_out"),
        ]
        contrast = build_contrast("mine", examples, model)
        assert contrast.train == Contrast((("a", "yes"),), (("a", "no"), ("b", "no")))
        assert contrast.validation == Contrast((("c", "yes"),), ())
        assert set(contrast.parts) == {"train", "validation"}  # the held-out part is not looked at
        described = contrast.describe()
        assert described["name"] == "mine"
        assert described["counts"]["train"] == {"positive": 1, "negative": 2}
        assert described["generated"] == 0

    def test_missing_responses_are_generated_and_labelled(self, model: LanguageModel) -> None:
        prompts = [f"{i} {side}" for i in range(6) for side in ("good", "bad", "odd")]
        examples = [Example(p, split="train") for p in prompts]
        sampling = Sampling(max_new_tokens=5)
        labeller = by_callable(lambda prompt, _: {"good": "positive", "bad": "negative"}.get(str(prompt)[2:]))
        contrast = build_contrast("mine", examples, model, labeller=labeller, sampling=sampling)
        replies = {p: r.text for p, r in zip(prompts, generate(model, prompts, sampling), strict=True)}
        assert all(replies.values())
        assert contrast.train.positive == tuple((p, replies[p]) for p in prompts if "good" in p)
        assert contrast.train.negative == tuple((p, replies[p]) for p in prompts if "bad" in p)
        assert contrast.notes["generated"] == 18
        assert contrast.notes["labels"] == {"left out": 6, "negative": 6, "positive": 6}

    def test_held_out_rows_are_not_generated_for(self, model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Prompt] = []

        def fake(model: LanguageModel, prompts: list[Prompt], *args: object, **kwargs: object) -> list[Reply]:
            asked.extend(prompts)
            return [Reply("text", (1,), True) for _ in prompts]

        monkeypatch.setattr("steer2edit.steering.contrast.generate", fake)
        examples = [Example(p, None, side, split=s) for p, side, s in TRIPLES]
        build_contrast("mine", examples, model)
        assert asked == ["a", "b", "c"]

    def test_a_labelled_row_keeps_its_generated_reply_only_if_the_labeller_agrees(
        self, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "steer2edit.steering.contrast.generate",
            lambda model, prompts, *a, **k: [Reply(f"to {p}", (1,), True) for p in prompts],
        )
        examples = [Example("p", "given", "positive", split="train")]
        examples += [Example(p, None, "negative", split="train") for p in ("bad", "good", "odd")]
        labeller = by_callable(lambda prompt, _: {"good": "positive", "bad": "negative"}.get(str(prompt)))
        contrast = build_contrast("mine", examples, model, labeller=labeller)
        assert contrast.train == Contrast((("p", "given"),), (("bad", "to bad"),))
        without = build_contrast("mine", examples, model)
        assert [p for p, _ in without.train.negative] == ["bad", "good", "odd"]

    def test_empty_replies_are_left_out(self, model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            "steer2edit.steering.contrast.generate",
            lambda model, prompts, *a, **k: [Reply("" if p == "b" else "x", (), True) for p in prompts],
        )
        examples = [Example("a", "y", "positive", split="train")]
        examples += [Example(p, None, "negative", split="train") for p in ("b", "c")]
        assert build_contrast("mine", examples, model).train.negative == (("c", "x"),)


TRIPLES = [
    ("a", "positive", "train"),
    ("b", "negative", "train"),
    ("c", "positive", "validation"),
    ("d", "negative", "held_out"),
]


class TestBadInput:
    def test_no_label_and_no_labeller(self, model: LanguageModel) -> None:
        with pytest.raises(DataError, match=r"'mine' has rows without a label.*--labeller refusal\|length"):
            build_contrast("mine", [Example("a", "x", "positive", split="train"), Example("b", split="train")], model)

    @pytest.mark.parametrize(("label", "missing"), [("positive", "negative"), ("negative", "positive")])
    def test_a_label_that_no_row_has(self, model: LanguageModel, label: str, missing: str) -> None:
        examples = [Example(p, "x", label, split="train") for p in "abc"]
        message = rf"'mine' has no {missing} response to learn from \(train has .*'{label}': 3.*Check the 'label'"
        with pytest.raises(DataError, match=message):
            build_contrast("mine", examples, model)

    def test_a_label_the_labeller_never_gives(self, model: LanguageModel) -> None:
        examples = [Example(p, split="train") for p in "abc"]
        message = r"no positive response to learn from.*The labels found were \{'negative': 3\}; another labeller"
        with pytest.raises(DataError, match=message):
            build_contrast("mine", examples, model, labeller=by_callable(lambda p, r: "negative"), sampling=Sampling(3))

    def test_both_classes_in_validation_only(self, model: LanguageModel) -> None:
        examples = [Example(p, "x", side, split="validation") for p, side in (("a", "positive"), ("b", "negative"))]
        with pytest.raises(DataError, match="no positive response to learn from"):
            build_contrast("mine", examples, model)

    def test_no_examples(self, model: LanguageModel) -> None:
        with pytest.raises(DataError, match="no positive response"):
            build_contrast("mine", [], model)

    def test_constructed_directly(self) -> None:
        with pytest.raises(DataError, match="no negative response"):
            ContrastSet("mine", {"train": Contrast((("a", "x"),), ())}, {})

    def test_empty_response(self, model: LanguageModel) -> None:
        examples = [
            Example(p, r, s, split="train")
            for p, r, s in (("a", "x", "positive"), ("b", "", "negative"), ("c", "y", "negative"))
        ]
        with pytest.raises(DataError, match="empty"):
            build_contrast("mine", examples, model)
