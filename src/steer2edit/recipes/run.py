"""A recipe from start to end: vectors, search, the recommended edit on the recipe's data sets, one report."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from steer2edit.artifacts import load_edit, load_vectors, save_vectors
from steer2edit.artifacts.run_folder import RunKind, run_folder
from steer2edit.core import SteeringVectors
from steer2edit.engines import RememberingEngine, TransformersEngine
from steer2edit.errors import InvalidValueError
from steer2edit.evaluation import (
    BASE_ARM,
    MathTask,
    NamedTask,
    TaskSettings,
    behaviour,
    build_tasks,
    compare,
    edit_arm,
    evaluate,
    steering_arm,
)
from steer2edit.evaluation.answers import is_right
from steer2edit.models import LanguageModel, Sampling, recorded_chat
from steer2edit.recipes.schema import Grid, Recipe
from steer2edit.recipes.search_run import search_and_report, write_run
from steer2edit.report.run_results import read_results
from steer2edit.search import Narrate, SearchOptions
from steer2edit.search.folder import RunFolder
from steer2edit.steering import extract, load_contrast, prompt_digests, require_no_overlap

Stage = Literal["coarse", "refined"]
_KIND = RunKind("recipe-run", 1, "working", "model and options")


@dataclass(frozen=True)
class RecipeOptions:
    """What a user changes of a recipe.

    Args:
        other_model: whether it runs on another model than its own, for which it was not refined.
        stage: grid to search; by default the refined one on the recipe's own model, the coarse one on another.
        contrast: preset or file instead of the recipe's.
        limit: items of every set.
        trials: configurations to try in all.
        strategy: where proposals come from.
        strengths: of the steering sweep; by default found from the drift budget.
        max_kl: drift budget.
        max_new_tokens: longest reply.
        published: measure the data sets on their published data instead of the built-in sets.
        force: search over vectors that the diagnosis calls noise.
        command: what the user typed, for the record.

    Raises:
        InvalidValueError: there is no such stage.
    """

    other_model: bool = False
    stage: Stage | None = None
    contrast: str | None = None
    limit: int | None = None
    trials: int | None = None
    strategy: str | None = None
    strengths: tuple[float, ...] = ()
    max_kl: float | None = None
    max_new_tokens: int | None = None
    published: bool = False
    force: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        if self.stage not in (None, "coarse", "refined"):
            raise InvalidValueError(f"the stage must be coarse or refined, got {self.stage!r}.")

    def stage_of(self) -> Stage:
        """The grid to search."""
        return self.stage or ("coarse" if self.other_model else "refined")

    def template_args(self, recipe: Recipe, own: Mapping[str, Any]) -> dict[str, Any]:
        """The chat template's arguments: one's own, and those of the recipe for its own model."""
        return {**({} if self.other_model else recipe.model.template_args), **own}

    def longest_reply(self, recipe: Recipe) -> int | None:
        """The limit of replies; the recipe's own holds for its own model alone."""
        return self.max_new_tokens or (None if self.other_model else recipe.model.max_new_tokens)


def search_options(recipe: Recipe, options: RecipeOptions) -> SearchOptions:
    """The search that a recipe asks for.

    Raises:
        InvalidValueError: fewer trials than the grid has points; a grid is tried whole.
    """
    grid = recipe.coarse if options.stage_of() == "coarse" else recipe.model.refined
    strategy = options.strategy or recipe.search.strategy
    trials = options.trials or recipe.search.trials or _default_trials(grid, strategy)
    if strategy == "grid" and trials < grid.points:
        raise InvalidValueError(
            f"the {options.stage_of()} grid has {grid.points} points and is tried whole, got trials = {trials}. Ask "
            "for as many, or for another strategy: --strategy tpe."
        )
    return SearchOptions(
        behaviour=recipe.behaviour, strategy=strategy, trials=trials, blocks=grid.blocks, ranges=grid.ranges,
        max_shift=recipe.search.max_shift, spare=recipe.search.spare,
        max_kl=recipe.budget.max_kl if options.max_kl is None else options.max_kl,
        max_over_refusal=recipe.budget.max_over_refusal, min_utility=recipe.budget.min_utility,
        utility=recipe.search.utility, strengths=options.strengths or tuple(recipe.search.strengths),
        generation=recipe.search.generation, limit=options.limit,
        max_new_tokens=options.longest_reply(recipe), seed=recipe.seed,
    )  # fmt: skip


def _default_trials(grid: Grid, strategy: str) -> int:
    """A grid whole and one refined round around its best; as many as a search has by default otherwise."""
    return grid.points + 3 ** len(grid.ranges) if strategy == "grid" else SearchOptions().trials


def run_recipe(
    recipe: Recipe, model: LanguageModel, out: Path, narrate: Narrate, options: RecipeOptions = RecipeOptions()
) -> dict[str, Any]:
    """Run a recipe into the folder `out`, going on where an earlier call was stopped.

    Args:
        recipe: what to do.
        model: on which model.
        out: holds `vectors.safetensors` and, in `search/`, what a search writes, with the data sets.
        narrate: told what was found, step by step.
        options: what is changed of the recipe.

    Returns:
        What `search/results.json` holds.

    Raises:
        DataError: bad data, or prompts with two uses.
        MismatchError: the folder belongs to another run.
        BudgetError: no trial keeps the budget.
        NoiseError: the diagnosis calls the vectors noise.
    """
    wanted = search_options(recipe, options)
    specs = [data_set.spec(options.published) for data_set in recipe.data_sets]
    settings = TaskSettings("held_out", options.limit, options.longest_reply(recipe))
    tasks = build_tasks(specs, settings)  # first: what cannot be read shall not cost a search
    if any(isinstance(task, MathTask) for task in tasks):
        is_right("1", "1")  # nor shall a package that is not installed
    with run_folder(out, _KIND, _identity(recipe, model, options)):
        vectors = _vectors(recipe, model, out / "vectors.safetensors", narrate, options)
        _require_apart(recipe, vectors, tasks, options)
        folder = out / "search"
        results = search_and_report(
            model, vectors, wanted, folder, narrate, command=options.command, force=options.force
        )
        results["recipe"] = {**recipe.to_json(), "stage": options.stage_of(), "on_own_model": not options.other_model}
        if tasks:
            results["data_sets"] = _measured(model, vectors, tasks, specs, settings, folder, results, narrate)
        write_run(results, load_edit(folder / "edit"), folder)
        return results


def _identity(recipe: Recipe, model: LanguageModel, options: RecipeOptions) -> dict[str, Any]:
    """What the vectors depend on; the search has its own."""
    source = options.contrast or recipe.contrast.source
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest() if Path(source).is_file() else None
    contrast = {**recipe.contrast.model_dump(mode="json"), "source": source, "sha256": digest}
    return {
        "behaviour": recipe.behaviour,
        "model": model.fingerprint,
        "chat": recorded_chat(model.describe()),
        "dtype": str(model.dtype),
        "contrast": contrast,
        "limit": options.limit,
        "seed": recipe.seed,
    }


def _vectors(
    recipe: Recipe, model: LanguageModel, path: Path, narrate: Narrate, options: RecipeOptions
) -> SteeringVectors:
    """The vectors of the folder, extracted if it has none yet."""
    if path.exists():
        vectors = load_vectors(path)
        narrate(f"Steering vectors of an earlier call: {path}.", [])
        return vectors
    wanted = recipe.contrast
    sampling = Sampling(wanted.max_new_tokens, wanted.temperature, seed=recipe.seed)
    contrast = load_contrast(
        options.contrast or wanted.source, model, labeller=wanted.labeller, limit=options.limit, sampling=sampling,
        seed=recipe.seed,
    )  # fmt: skip
    vectors = extract(model, contrast)
    save_vectors(vectors, path)
    counts = contrast.train.counts()
    narrate(
        f"Steering vectors from {counts['positive']} positive and {counts['negative']} negative responses. "
        f"{(vectors.diagnosis or {}).get('summary', '')}",
        [],
    )
    return vectors


def _require_apart(
    recipe: Recipe, vectors: SteeringVectors, tasks: Sequence[NamedTask], options: RecipeOptions
) -> None:
    """Data sets share no prompt with what the vectors were made from or the edit is chosen on."""
    chosen_on = behaviour(recipe.behaviour, "validation", limit=options.limit).prompts.values()
    asked = [prompt for task in tasks for prompts in task.asked.values() for prompt in prompts]
    require_no_overlap(
        {
            "data set": prompt_digests(asked),
            "vector": vectors.metadata.get("prompts", ()),
            "validation": prompt_digests(prompt for prompts in chosen_on for prompt in prompts),
        }
    )


def _measured(
    model: LanguageModel,
    vectors: SteeringVectors,
    tasks: Sequence[NamedTask],
    specs: Sequence[str],
    settings: TaskSettings,
    folder: Path,
    results: dict[str, Any],
    narrate: Narrate,
) -> dict[str, Any]:
    """Base, steering of about the edit's cost, and the recommended edit on the data sets; kept in the folder."""
    run = read_results(results)
    assert run.edited is not None
    strength = None if run.steered is None else float(run.steered.parameters["strength"])
    edit = load_edit(folder / "edit")
    arms = [
        BASE_ARM,
        *([] if strength is None else [steering_arm(vectors, strength)]),
        edit_arm(edit, run.edited.label),
    ]
    key = [list(specs), settings.limit, settings.max_new_tokens, strength, run.chosen.hyperparameters]
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    engine = RememberingEngine(TransformersEngine(model))
    conditions = RunFolder(folder).remembered(name, lambda: evaluate(engine, tasks, arms), kind="data_sets")
    narrate("The recipe's data sets:", conditions)
    return {
        "tasks": list(specs),
        "conditions": [condition.to_json() for condition in conditions],
        "comparisons": compare(conditions),
    }
