"""From what a user asks for to a search: budgets, blocks, utility, and prompts that may have one use only."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_search import random_vectors, tiny_model

from steer2edit.core import SteeringVectors
from steer2edit.errors import DataError, InvalidValueError, MismatchError, NoiseError
from steer2edit.models import LanguageModel
from steer2edit.search.goal import Budget
from steer2edit.search.search import prepare_search
from steer2edit.settings import Accepting, SearchOptions
from steer2edit.steering.examples import prompt_digests
from steer2edit.steering.presets import safety_prompts

SMALL: dict[str, Any] = {"behaviour": "safety", "limit": 3, "max_new_tokens": 2}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model()


@pytest.fixture(scope="module")
def vectors(model: LanguageModel) -> SteeringVectors:
    return random_vectors(model)


def made_from(vectors: SteeringVectors, prompts: list[str]) -> SteeringVectors:
    return replace(vectors, metadata={**vectors.metadata, "prompts": prompt_digests(prompts)})


def test_defaults(model: LanguageModel, vectors: SteeringVectors) -> None:
    search = prepare_search(model, vectors, SearchOptions(**SMALL))
    assert search.budget == Budget({"kl": 0.15})
    assert search.goal.attribute == "harmful_refused"
    assert (search.goal.largest_cost, search.options.strategy) == (0.15, "tpe")
    assert set(search.space.distributions()) == {"blocks", "rho_attn", "rho_mlp", "alpha"}
    assert len(search.validation.prompts["harmful"]) == len(search.held_out.prompts["harmful"]) == 3


def test_budget_and_blocks(model: LanguageModel, vectors: SteeringVectors) -> None:
    options = SearchOptions(
        **SMALL, max_kl=0.2, max_over_refusal=0.05, utility="commonsenseqa", min_utility=0.3, blocks=("mlp",),
    )  # fmt: skip
    search = prepare_search(model, vectors, options)
    (floor,) = search.budget.at_least.items()
    assert floor[0].endswith("_accuracy")
    assert floor[1] == 0.3
    assert search.budget.at_most == {"kl": 0.2, "benign_refused": 0.05}
    assert set(search.space.distributions()) == {"rho_mlp", "alpha"}


@pytest.mark.parametrize(("split", "use"), [("validation", "validation"), ("held_out", "held-out")])
@pytest.mark.parametrize("kind", [0, 1])
def test_vector_prompts_may_not_come_again(
    split: Any, use: str, kind: int, model: LanguageModel, vectors: SteeringVectors
) -> None:
    shared = safety_prompts(split)[kind][:2]
    with pytest.raises(DataError, match=f"2 prompts are among both the vector and the {use} prompts"):
        prepare_search(model, made_from(vectors, [*shared, "another"]), SearchOptions(**SMALL))
    prepare_search(model, made_from(vectors, safety_prompts("train")[0]), SearchOptions(**SMALL))


def test_utility_questions_may_not_be_both_chosen_on_and_reported(
    model: LanguageModel, vectors: SteeringVectors, tmp_path: Path
) -> None:
    path = tmp_path / "quiz.jsonl"
    rows = [{"question": f"What is {i} and {i}?", "choices": [str(2 * i), "none", "all", "some"], "answer": 0}
            for i in range(6)]  # fmt: skip
    path.write_text("\n".join(json.dumps(row) for row in rows))
    options = SearchOptions(**SMALL, utility=f"mmlu={path}")
    unmarked = prepare_search(model, vectors, options)  # divided at random
    tasks = [part.tasks[-1] for part in (unmarked.validation, unmarked.held_out)]
    assert [len(task) for task in tasks] == [2, 3]  # 40 % of 6 and the rest, limited to 3
    marked = [{**row, "split": "validation" if i % 2 else "held_out"} for i, row in enumerate(rows)]
    path.write_text("\n".join(json.dumps(row) for row in marked))
    search = prepare_search(model, vectors, options)
    path.write_text("\n".join(json.dumps({**row, "question": row["question"] + "?"}) for row in marked))
    other = prepare_search(model, vectors, options)  # as many questions, and others
    assert search.identity()["items"] != other.identity()["items"]


def test_longer_replies_are_another_search(model: LanguageModel, vectors: SteeringVectors) -> None:
    one, same, other = (
        prepare_search(model, vectors, SearchOptions(**{**SMALL, "max_new_tokens": n})).identity() for n in (2, 2, 3)
    )
    assert one == same
    assert {key for key in one if one[key] != other[key]} == {"replies"}


def test_other_models_vectors_are_refused(model: LanguageModel, vectors: SteeringVectors) -> None:
    with pytest.raises(MismatchError):
        prepare_search(tiny_model(seed=1), vectors, SearchOptions(**SMALL))
    prepare_search(tiny_model(seed=1), vectors, SearchOptions(**SMALL), accepting=Accepting(allow_mismatch=True))
    some = {site: means for site, means in vectors.sites.items() if site.block == "mlp"}
    with pytest.raises(MismatchError, match=r"L0\.attn"):
        prepare_search(model, replace(vectors, sites=some), SearchOptions(**SMALL))
    search = prepare_search(
        model, replace(vectors, sites=some), SearchOptions(**SMALL), accepting=Accepting(allow_missing=True)
    )
    assert search.space.blocks == ("mlp",)  # what is not there is not searched


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "trials must be >= 1, got 0"),
        ({"generation": 1}, "generation must be >= 2, got 1"),
        ({"min_utility": 0.5}, "--min-utility needs a task to measure"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"strengths": (0.1, float("inf"))}, "strengths must be finite, got 0.1, inf"),
        (
            {"strengths": (0.0, 0.1)},
            "strengths must not be 0, got 0, 0.1: at 0 there is the base alone",
        ),
        ({"worker": ""}, "a worker's name must be usable in a file name, got ''"),
        ({"worker": "a/b"}, "got 'a/b'"),
        ({"worker": "a\n"}, "a worker's name"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        SearchOptions(**options)


def test_over_refusal_must_be_measured(model: LanguageModel, vectors: SteeringVectors) -> None:
    with pytest.raises(InvalidValueError, match="refusal of benign requests, which conciseness does not measure"):
        prepare_search(model, vectors, SearchOptions(**{**SMALL, "behaviour": "conciseness"}, max_over_refusal=0.1))


def test_unknown_names(model: LanguageModel, vectors: SteeringVectors) -> None:
    with pytest.raises(DataError, match="Did you mean 'safety'"):
        prepare_search(model, vectors, SearchOptions(behaviour="safty"))
    with pytest.raises(DataError, match="Did you mean 'commonsenseqa'"):
        prepare_search(model, vectors, SearchOptions(**SMALL, utility="comonsenseqa"))
    with pytest.raises(DataError, match="measures harmful, harmful_refused, and so does the behaviour"):
        prepare_search(model, vectors, SearchOptions(**SMALL, utility="safety"))
    with pytest.raises(InvalidValueError, match="length reports none"):
        prepare_search(model, vectors, SearchOptions(**SMALL, utility="length", min_utility=0.5))


def test_a_search_over_a_block_of_noise_is_refused_before_it_begins(
    model: LanguageModel, vectors: SteeringVectors
) -> None:
    sites = {str(site): {"noise": site.block == "attn"} for site in vectors.sites}
    noisy = replace(vectors, diagnosis={"summary": "as said", "sites": sites})
    with pytest.raises(NoiseError, match="attn"):
        prepare_search(model, noisy, SearchOptions(**SMALL))
    assert prepare_search(model, noisy, SearchOptions(**SMALL, blocks=("mlp",))).space.blocks == ("mlp",)
    forced = prepare_search(model, noisy, SearchOptions(**SMALL), accepting=Accepting(force=True))
    assert forced.space.blocks == ("attn", "mlp")
