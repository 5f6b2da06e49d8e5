"""Prompts with two uses are found, counted, and named by their uses."""

import itertools

import pytest

from steer2edit.errors import DataError
from steer2edit.steering.behaviour_folder import find_behaviour
from steer2edit.steering.examples import prompt_digests, require_no_overlap
from steer2edit.steering.presets import safety_prompts


def test_digests_do_not_see_case_and_spacing() -> None:
    one = prompt_digests(["How do I  bake bread?", "how do i bake\nBREAD? ", "And cake?"])
    assert len(one) == 2
    assert one == sorted(one) == prompt_digests(["and cake?", "How do I bake bread?"])
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in one)
    assert not set(one) & set(prompt_digests(["How do I bake bread"]))  # a sign more is another prompt


def test_a_conversation_is_a_prompt() -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert prompt_digests([chat]) == prompt_digests([chat])
    assert prompt_digests([chat]) != prompt_digests(["Hello"])


def test_how_many_and_whose() -> None:
    uses = {
        "vector": prompt_digests(["a", "b", "c"]),
        "validation": prompt_digests(["d", "e"]),
        "held-out": prompt_digests(["C", " b", "f"]),
    }
    with pytest.raises(DataError, match="2 prompts are among both the vector and the held-out prompts"):
        require_no_overlap(uses)
    require_no_overlap({**uses, "held-out": prompt_digests(["f"])})
    require_no_overlap({})
    require_no_overlap({"vector": (), "validation": ()})


@pytest.mark.parametrize("name", ["safety", "truthfulness", "conciseness"])
def test_presets_are_apart(name: str) -> None:
    examples = find_behaviour(name).examples()
    splits = {split: prompt_digests(e.prompt for e in examples if e.split == split)
              for split in ("train", "validation", "held_out")}  # fmt: skip
    assert all(splits.values()) or name == "safety"
    require_no_overlap(splits)


def test_safety_prompts_are_apart() -> None:
    parts = {split: safety_prompts(split) for split in ("train", "validation", "held_out")}
    for kind in (0, 1):
        require_no_overlap({split: prompt_digests(found[kind]) for split, found in parts.items()})
    for one, other in itertools.product(parts.values(), repeat=2):
        require_no_overlap({"harmful": prompt_digests(one[0]), "benign": prompt_digests(other[1])})
