"""A recipe end to end on a tiny checkpoint: vectors, search, data sets and report; resumed, and rendered again."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from steer2edit.artifacts import load_edit, load_vectors
from steer2edit.cli import app
from steer2edit.errors import ArtifactError, DataError, InvalidValueError, MismatchError
from steer2edit.estimates import Condition
from steer2edit.models import LanguageModel, load_model
from steer2edit.recipes.recipe import Recipe, read_recipe
from steer2edit.recipes.recipe_run import run_recipe, search_options
from steer2edit.recipes.run import render_again
from steer2edit.search.space import SearchSpace
from steer2edit.settings import RunOptions, SearchOptions
from tiny_chat import tiny_chat_model

RECIPE = """
schema_version: 1
title: A tiny recipe
behaviour: truthfulness
model:
  id: no/such-model
  refined: {rho_attn: [0.1, 0.2, 0.1], rho_mlp: off, alpha: [0.1, 0.3, 0.2]}
contrast: {source: CONTRAST}
coarse: {rho_attn: [0.1, 0.5, 0.4], rho_mlp: [0.2, 0.6, 0.4], alpha: [0.1, 0.3, 0.2]}
search: {strategy: tpe, trials: 6, generation: 2, strengths: [0.05, 0.1]}
budget: {max_kl: 3.0}
data_sets:
  - task: commonsenseqa
    published: PUBLISHED
seed: 3
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    contrast, published, path = (tmp_path / name for name in ("contrast.jsonl", "csqa.jsonl", "tiny.yaml"))
    rows = [{"prompt": f"request {i}", "positive": f"no, never {i}", "negative": f"yes, here {i}"} for i in range(12)]
    contrast.write_text("\n".join(map(json.dumps, rows)))
    choices = {"label": ["A", "B"], "text": ["one", "two"]}
    questions = [{"question": f"which of {i}?", "choices": choices, "answerKey": "B"} for i in range(5)]
    published.write_text("\n".join(map(json.dumps, questions)))
    path.write_text(RECIPE.replace("CONTRAST", str(contrast)).replace("PUBLISHED", str(published)))
    return path


@pytest.fixture
def recipe(recipe_file: Path) -> Recipe:
    return read_recipe(str(recipe_file))


OPTIONS = RunOptions(other_model=True, limit=4, max_new_tokens=4)


def tiny(seed: int = 0) -> LanguageModel:
    return tiny_chat_model(seed=seed, num_hidden_layers=2, max_position_embeddings=1024)


class Told:
    """Remembers what was narrated."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, text: str, conditions: Sequence[Condition]) -> None:
        self.texts.append(text)


def figures(results: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on when and how often a run was started."""
    return {key: value for key, value in results.items() if key not in ("created", "command")}


@pytest.fixture(scope="module")
def smollm2() -> LanguageModel:
    return load_model("smollm2")


def test_a_recipe_runs_from_start_to_end(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "run"
    told = Told()
    results = run_recipe(recipe, tiny(), out, told, OPTIONS)

    (shown,) = (text for text in told.texts if text.startswith("Preview\n"))
    assert "\n    edit: " in shown
    assert "\nLog-odds of the wanted responses" in shown
    assert load_vectors(out / "vectors.safetensors").metadata["contrast"]["name"] == "contrast.jsonl"
    assert json.loads((out / "search" / "results.json").read_text()) == json.loads(json.dumps(results))
    assert results["recipe"]["title"] == "A tiny recipe"
    assert results["recipe"]["stage"] == "coarse"
    assert results["recipe"]["on_own_model"] is False
    assert [*results["settings"]["ranges"]["rho_mlp"]] == [0.2, 0.6, 0.4]
    assert results["trials"]["tried"] == 6
    for condition in results["validation"]["conditions"]:
        parameters = condition["parameters"]
        if condition["kind"] == "edit" and parameters["rho_mlp"] is not None:
            assert 0.2 <= parameters["rho_mlp"] <= 0.6
    chosen = load_edit(out / "search" / "edit").metadata["hyperparameters"]
    assert chosen == results["chosen"]["hyperparameters"]
    base, steered, edited = results["data_sets"]["conditions"]
    assert [c["kind"] for c in (base, steered, edited)] == ["base", "steering", "edit"]
    assert base["metrics"].keys() == {"common_sense_accuracy", "common_sense_accuracy_sum"}  # the built-in set
    assert base["metrics"]["common_sense_accuracy"]["n"] == 4
    assert [c["label"] for c in results["data_sets"]["comparisons"]] == [steered["label"], edited["label"]]
    page = (out / "search" / "report.html").read_text(encoding="utf-8")
    assert "Data sets" in page
    assert "Common sense accuracy" in page


def test_a_run_goes_on_where_it_was_stopped(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_recipe(recipe, tiny(), tmp_path / "whole", Told(), OPTIONS)
    out = tmp_path / "killed"

    def killed(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    for step in ("search_edit", "compare"):
        with monkeypatch.context() as patch:
            patch.setattr(f"steer2edit.recipes.recipe_run.{step}", killed)
            with pytest.raises(KeyboardInterrupt):
                run_recipe(recipe, tiny(), out, Told(), OPTIONS)
    kept = (out / "vectors.safetensors").read_bytes()

    told = Told()
    with monkeypatch.context() as patch:
        patch.setattr("steer2edit.recipes.making.extract", killed)  # neither vectors nor data sets are made again
        patch.setattr("steer2edit.recipes.recipe_run.evaluate", killed)
        resumed = run_recipe(recipe, tiny(), out, told, OPTIONS)
    assert any("of an earlier call" in text for text in told.texts)
    assert (out / "vectors.safetensors").read_bytes() == kept
    assert figures(resumed) == figures(whole)


def test_vectors_of_another_model_contrast_or_limit_are_not_reused(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_recipe(recipe, tiny(), out, Told(), OPTIONS)
    with pytest.raises(MismatchError, match=r"belongs to another run\. It differs in: model \("):
        run_recipe(recipe, tiny(seed=1), out, Told(), OPTIONS)
    with pytest.raises(MismatchError, match=r"differs in: limit \(4, now 3\)"):
        run_recipe(recipe, tiny(), out, Told(), RunOptions(other_model=True, limit=3, max_new_tokens=4))
    contrast = Path(recipe.contrast["source"])
    contrast.write_text(contrast.read_text().replace("never", "ever"))
    with pytest.raises(MismatchError, match="contrast"):
        run_recipe(recipe, tiny(), out, Told(), OPTIONS)


def test_a_folder_with_other_things_is_left_alone(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    with pytest.raises(ArtifactError, match="holds something that is no run"):
        run_recipe(recipe, tiny(), tmp_path / "mine", Told(), OPTIONS)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match="is a file"):
        run_recipe(recipe, tiny(), tmp_path / "file", Told(), OPTIONS)


def test_published_data_are_read_before_anything_is_made(recipe: Recipe, tmp_path: Path) -> None:
    published = recipe.data_sets[0].published
    assert published is not None
    Path(published).unlink()
    with pytest.raises(DataError, match=r"there is no file .*csqa\.jsonl"):
        run_recipe(recipe, tiny(), tmp_path / "run", Told(), RunOptions(other_model=True, limit=4, published=True))
    assert not (tmp_path / "run").exists()


def test_items_that_do_not_fit_into_the_context_are_told_before_anything_is_made(
    recipe_file: Path, tmp_path: Path
) -> None:
    recipe_file.write_text(recipe_file.read_text().replace("task: commonsenseqa", "task: gsm8k"))
    model = tiny_chat_model(num_hidden_layers=2, max_position_embeddings=400)  # a solution may take 512 tokens
    with pytest.raises(DataError, match=r"tokens with its response.*is 400.*shorter replies \(--max-new-tokens\)"):
        run_recipe(read_recipe(str(recipe_file)), model, tmp_path / "run", Told(), RunOptions(other_model=True))
    assert not (tmp_path / "run").exists()


def test_a_data_set_may_not_hold_what_the_edit_was_chosen_on(recipe: Recipe, tmp_path: Path) -> None:
    published = Path(str(recipe.data_sets[0].published))
    row = json.loads(published.read_text().splitlines()[0])
    published.write_text(json.dumps({**row, "question": "Request 0"}))  # a prompt of the contrast
    options = RunOptions(other_model=True, published=True, max_new_tokens=4)
    with pytest.raises(DataError, match="1 prompts are among both the data set and the vector prompts"):
        run_recipe(recipe, tiny(), tmp_path / "run", Told(), options)


@pytest.mark.parametrize(
    "options", [RunOptions(robust="wordings"), RunOptions(kl=0.1), RunOptions(search=True), RunOptions(seed=3)]
)
def test_options_that_say_how_an_edit_is_made_are_not_of_a_recipe(recipe: Recipe, options: RunOptions) -> None:
    with pytest.raises(InvalidValueError, match=r"--\w+ is not of a recipe, .* or give a behaviour: steer2edit run"):
        search_options(recipe, options)


def test_the_command_runs_renders_and_prints_json(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = tmp_path / "tiny", tmp_path / "run"
    model = tiny()
    model.network.save_pretrained(checkpoint)
    assert model.tokenizer is not None
    model.tokenizer.save_pretrained(checkpoint)
    command = ["run", checkpoint, recipe_file, "--out", out, "--limit", "4", "--max-new-tokens", "4"]
    capsys.readouterr()
    app([*map(str, command), "--published", "--json"], standalone_mode=False)
    results = json.loads(capsys.readouterr().out)
    assert results["data_sets"]["conditions"][0]["metrics"]["commonsenseqa_accuracy"]["n"] == 4

    page = out / "search" / "report.html"
    before = page.read_bytes()
    page.unlink()
    app(["report", str(out), "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out) == {"report": str(page)}
    assert page.read_bytes() == before
    app(["report", str(out / "search"), "--out", str(tmp_path / "page.html")], standalone_mode=False)
    assert (tmp_path / "page.html").read_bytes() == before


def test_the_list_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    app(["run", "--list"], standalone_mode=False)
    printed = capsys.readouterr().out
    for text in ("llama2-safety", "gemma2-truthfulness", "Qwen/Qwen3-4B-Thinking-2507"):
        assert text in printed


def test_a_folder_without_results_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"there is no results\.json in .*that has ended"):
        render_again(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ArtifactError, match="is not sound JSON"):
        render_again(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ArtifactError, match="must hold a JSON object, but holds a list"):
        render_again(tmp_path)


def test_ranges_are_those_of_the_papers_coordinates() -> None:
    ranges = {"rho_attn": (0.16, 0.24, 0.02), "alpha": (0.7, 0.9, 0.05)}
    space = SearchSpace(blocks=("attn",), ranges=ranges)
    points = space.coarse_grid()
    assert [p["rho_attn"] for p in points[::5]] == [0.16, 0.18, 0.2, 0.22, 0.24]
    assert [p["alpha"] for p in points[:5]] == [0.7, 0.75, 0.8, 0.85, 0.9]
    # half a step around the best, and never out of the range
    assert {p["rho_attn"] for p in space.refined_grid(points[-1], 1)} == {0.23, 0.24}
    assert {p["alpha"] for p in space.refined_grid(points[-1], 1)} == {0.875, 0.9}
    assert (space.distributions()["rho_attn"].low, space.distributions()["rho_attn"].high) == (0.16, 0.24)
    assert asdict(space)["ranges"] == ranges
    with pytest.raises(InvalidValueError, match="no coordinate 'rho_atn' with a range"):
        SearchSpace(ranges={"rho_atn": (0.1, 0.2, 0.1)})
    assert SearchOptions().ranges is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama2-safety", "gemma2-truthfulness", "qwen3-conciseness"])
def test_each_behaviour_runs_offline_on_smollm2(name: str, tmp_path: Path, smollm2: LanguageModel) -> None:
    recipe = read_recipe(name)
    tasks = [one for one in recipe.data_sets if one.task == "gsm8k" and name == "llama2-safety"]  # once is enough
    recipe = recipe.model_copy(update={"data_sets": tasks})
    options = RunOptions(
        other_model=True,
        limit=2,
        strategy="tpe",
        trials=3,
        strengths=(0.1,),
        max_kl=5.0,
        max_new_tokens=4,
    )
    results = run_recipe(recipe, smollm2, tmp_path / "run", Told(), options, force=True)
    assert results["behaviour"] == recipe.behaviour
    assert results["trials"]["tried"] == 3
    if tasks:
        measured = results["data_sets"]["conditions"][0]["metrics"]
        assert measured.keys() == {"arithmetic_accuracy", "arithmetic_finished"}  # the built-in set
        assert all(estimate["n"] + estimate["unscored"] == 2 for estimate in measured.values())
    assert (tmp_path / "run" / "search" / "edit" / "adapter_model.safetensors").is_file()
    assert "<html" in (tmp_path / "run" / "search" / "report.html").read_text(encoding="utf-8")
