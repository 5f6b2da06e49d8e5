"""Recipes as files: what is shipped is valid, and what is wrong is named with file, key and value."""

from importlib import resources
from pathlib import Path

import pytest
import yaml

from steer2edit.errors import DataError, InvalidValueError
from steer2edit.recipes.recipe import Recipe, read_recipe, recipe_names
from steer2edit.recipes.recipe_run import search_options
from steer2edit.settings import RunOptions, SearchOptions
from unchecked import unchecked

VALID = """
schema_version: 1
title: A recipe
behaviour: safety
model:
  id: some/model
  refined: {rho_attn: [0.1, 0.2, 0.05], rho_mlp: off, alpha: [0.5, 0.9, 0.2]}
contrast: {source: safety}
coarse: {rho_attn: [0.1, 0.9, 0.2], rho_mlp: [0.1, 0.9, 0.2], alpha: [0.1, 0.9, 0.2]}
budget: {max_kl: 0.15}
"""

# model → ranges of ρ_attn, ρ_mlp and α of Table 1, and how many configurations that makes
TABLE_1 = {
    "meta-llama/Llama-2-7b-chat-hf": ((0.16, 0.24), (0.35, 0.55), (0.7, 0.9), 125),
    "mistralai/Mistral-7B-Instruct-v0.2": ((0.42, 0.5), (0.4, 0.6), (0.65, 0.85), 125),
    "google/gemma-2-2b-it": ((0.3, 0.5), (None,), (0.75, 0.95), 25),
    "meta-llama/Meta-Llama-3-8B-Instruct": ((0.1, 0.14), (0.3, 0.5), (0.3, 0.7), 125),
    "Qwen/Qwen3-4B-Thinking-2507": ((None,), (0.65, 0.8), (0.05, 0.2), 16),
    "nvidia/OpenMath-Nemotron-7B": ((0.2, 0.3), (0.8, 0.9), (0.1, 0.2), 27),
}


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_six_pairs_of_the_paper_are_shipped() -> None:
    recipes = [read_recipe(name) for name in recipe_names()]
    assert len(recipes) == 6
    found = {
        r.model.id: (
            *(r.model.refined.get(name, (None,))[:2] for name in ("rho_attn", "rho_mlp")),
            r.model.refined["alpha"][:2],
            search_options(r, RunOptions()).trials - 3 ** len(r.model.refined),
        )
        for r in recipes
    }
    assert found == TABLE_1
    assert sorted(r.behaviour for r in recipes) == ["conciseness"] * 2 + ["safety"] * 2 + ["truthfulness"] * 2


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_searches_its_grid_on_its_model_and_the_coarse_one_on_another(name: str) -> None:
    recipe = read_recipe(name)
    own, other = search_options(recipe, RunOptions()), search_options(recipe, RunOptions(other_model=True))
    assert own.ranges == recipe.model.refined
    assert other.ranges == dict.fromkeys(("rho_attn", "rho_mlp", "alpha"), (0.1, 0.9, 0.2))
    assert other.trials == 125 + 27  # the coarse grid and one refined round
    assert own.strategy == other.strategy == "grid"
    assert other.max_new_tokens is None  # a reasoning model's long replies are its own


def test_every_yaml_in_the_package_is_a_recipe() -> None:
    files = [f.name for f in resources.files("steer2edit.recipes").iterdir() if f.name.endswith((".yaml", ".yml"))]
    assert sorted(files) == [f"{name}.yaml" for name in recipe_names()]


def test_a_file_is_read(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, VALID))
    assert recipe.model.refined == {"rho_attn": (0.1, 0.2, 0.05), "alpha": (0.5, 0.9, 0.2)}
    options = search_options(recipe, RunOptions(stage="refined", other_model=True))
    assert (options.blocks, options.trials, options.generation) == (("attn",), 9 + 9, SearchOptions.generation)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("max_kl: 0.15", "max_k: 0.15", r"mine\.yaml: budget = .*: there is no key 'max_k'\. Did you mean 'max_kl'\?"),
        ("title:", "titel:", r"there is no key 'titel'\. Did you mean 'title'\?"),
        ("max_kl: 0.15", "max_kl: 0", r"budget = {'max_kl': 0}: max_kl must be > 0, got 0\."),
        ("max_kl: 0.15", "max_kl: .inf", r"budget = .*: max_kl must be finite, got inf"),
        ("max_kl: 0.15", "max_kl: '0.15'", r"budget = .*: max_kl must be a number, got '0\.15'"),
        (
            "behaviour: safety",
            "behaviour: safty",
            r"behaviour = 'safty': there is no behaviour 'safty'\. Did you mean 'safe",
        ),
        ("schema_version: 1", "schema_version: 2", r"schema_version = 2: input should be 1"),
        ("title: A recipe\n", "", r"the key 'title' is missing\. See docs/recipes\.md"),
        (
            "[0.1, 0.2, 0.05]",
            "[0.1, 0.2]",
            r"model\.refined = .*: the range of rho_attn must be .* got \[0\.1, 0\.2\]",
        ),
        (
            "[0.1, 0.2, 0.05]",
            "on",
            r"model\.refined = .*: the range of rho_attn must be .* got True",
        ),
        (
            "[0.1, 0.2, 0.05]",
            "[0.2, 0.1, 0.05]",
            r"model\.refined = .*: the range of rho_attn must be .* got \[0\.2, 0\.1",
        ),
        ("[0.1, 0.2, 0.05]", "[0.1, 0.2, 0.03]", r"the step of rho_attn must divide 0\.1 into whole steps, got 0\.03"),
        ("[0.1, 0.2, 0.05]", "off", r"rho_attn and rho_mlp are both off"),
        ("[0.5, 0.9, 0.2]", "[0.5, 1.0, 0.1]", r"the range of alpha must be .* <= 0\.98, got"),
        (
            "budget:",
            "search: {strategy: grd}\nbudget:",
            r"search = .*: unknown strategy 'grd'\. Did you mean 'grid'\?",
        ),
        (
            "budget:",
            "search: {max_kl: 1}\nbudget:",
            r"search = .*: there is no key 'max_kl'\. Known: generation, strategy, strengths,",
        ),
        ("budget:", "search: {trials: 0}\nbudget:", r"search = .*: trials must be >= 1, got 0"),
        ("budget:", "data_sets: [{task: gsm9k}]\nbudget:", r"data_sets\.0\.task = 'gsm9k': .* Did you mean 'gsm8k'\?"),
        (
            "budget:",
            "data_sets: [{tsk: gsm8k}]\nbudget:",
            r"data_sets\.0 = .*: there is no key 'tsk'\. Did you mean 'task'\?",
        ),
        ("source: safety", "labeller: refusal", r"contrast = .*: the key 'source' is missing"),
        (
            "budget:",
            "search: {generation: 1}\nbudget:",
            r"search = .*: generation must be >= 2, got 1",
        ),
        ("behaviour: safety", "behaviour: conciseness\nseed: 1.5", r"seed = 1\.5: input should be a valid integer"),
        (
            "title: A recipe",
            "title: A recipe\ntitle: Another",
            r"mine\.yaml: the key 'title' is there twice \(line 4\)\. Keep one",
        ),
        ("title: A recipe", "title: {", r"mine\.yaml is not YAML: "),
        (
            "title: A recipe",
            "title: !!python/object/apply:os.system [ls]",
            r"mine\.yaml is not YAML: could not determine",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in VALID
    with pytest.raises(DataError, match=said):
        read_recipe(written(tmp_path, VALID.replace(old, new, 1)))


@pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "just words"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"mine\.yaml must hold the keys of a recipe, got"):
        read_recipe(written(tmp_path, text))


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(DataError, match=r"no recipe 'lama2-safety'\. Did you mean 'llama2-safety'\?.*\.yaml file"):
        read_recipe("lama2-safety")
    with pytest.raises(DataError, match=r"there is no file nowhere\.yaml"):
        read_recipe("nowhere.yaml")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"title: \xff")
    with pytest.raises(DataError, match=r"mine\.yaml, line 1 is not UTF-8"):
        read_recipe(str(path))


def test_a_recipe_survives_being_written_down(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, VALID))
    again = read_recipe(written(tmp_path, yaml.safe_dump(recipe.model_dump(mode="json"))))
    assert isinstance(again, Recipe)
    assert again == recipe


def test_a_grid_is_tried_whole(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, VALID))
    with pytest.raises(InvalidValueError, match=r"the refined grid has 9 points .* trials = 8\. Ask for as many, or"):
        search_options(recipe, RunOptions(trials=8))
    assert search_options(recipe, RunOptions(trials=8, strategy="tpe")).trials == 8


def test_an_unknown_stage_is_refused() -> None:
    with unchecked(), pytest.raises(InvalidValueError, match="unknown stage 'fine'"):
        RunOptions(stage="fine")  # type: ignore[arg-type]


def test_mistakes_are_named_together(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_recipe(written(tmp_path, "title: 1\n"))
    first, second, *_, last = str(caught.value).splitlines()
    assert "the key 'schema_version' is missing" in first
    assert "title = 1: input should be a valid string" in second
    assert last == "... and 2 more."


def test_a_limit_on_utility_needs_a_task(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, VALID.replace("max_kl: 0.15", "max_kl: 1, min_utility: 0.5")))
    with pytest.raises(InvalidValueError, match="--min-utility needs a task to measure"):
        search_options(recipe, RunOptions())
