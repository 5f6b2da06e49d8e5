"""A recipe from start to end: vectors, search, the recommended edit on the recipe's data sets, one report."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steer2edit.artifacts import load_edit
from steer2edit.artifacts.run_folder import RunFolder
from steer2edit.core import TUNED_BLOCKS, SteeringVectors
from steer2edit.engines import RememberingEngine, TransformersEngine
from steer2edit.errors import InvalidValueError
from steer2edit.evaluation.behaviours import behaviour
from steer2edit.evaluation.registry import build_tasks
from steer2edit.evaluation.reply_tasks import MathTask, is_right
from steer2edit.evaluation.statistics import compare
from steer2edit.evaluation.task import BASE_ARM, Task, TaskSettings, edit_arm, evaluate, steering_arm
from steer2edit.models import LanguageModel
from steer2edit.recipes.recipe import Recipe
from steer2edit.recipes.run import RUN, identity, search_edit, vectors_once, write_run
from steer2edit.report.run_results import read_results
from steer2edit.search.run import Narrate
from steer2edit.search.search import behaviours_of
from steer2edit.search.space import range_values
from steer2edit.settings import ExtractOptions, RunOptions, SearchOptions
from steer2edit.settings.search import Stage
from steer2edit.steering.examples import prompt_digests, require_no_overlap


def template_args(recipe: Recipe, options: RunOptions, own: Mapping[str, Any]) -> dict[str, Any]:
    """The chat template's arguments: one's own, and those of the recipe for its own model."""
    return {**({} if options.other_model else recipe.model.template_args), **own}


def _stage(options: RunOptions) -> Stage:
    """The grid that is searched: one that was refined for the recipe's model tells nothing about another."""
    return options.stage or ("coarse" if options.other_model else "refined")


def _longest_reply(recipe: Recipe, options: RunOptions) -> int | None:
    """The limit of replies; the recipe's own holds for its own model alone."""
    return options.max_new_tokens or (None if options.other_model else recipe.model.max_new_tokens)


def search_options(recipe: Recipe, options: RunOptions) -> SearchOptions:
    """The search that a recipe asks for; an InvalidValueError for options that a recipe decides, or too few trials."""
    made = {"--robust": options.robust, "--kl": options.kl, "--search": options.search, "--seed": options.seed}
    if given := [name for name, value in made.items() if value]:
        raise InvalidValueError(
            f"{given[0]} is not of a recipe, which says itself how its edit is made. Leave it out, or give a "
            f"behaviour: steer2edit run MODEL {recipe.behaviour} {given[0]} ..."
        )
    stage = _stage(options)
    ranges = recipe.coarse if stage == "coarse" else recipe.model.refined
    asked = {"strategy": "grid", **recipe.search, **recipe.budget, **options.of_search}
    if asked["strategy"] == "grid":
        points = math.prod(len(range_values(*values)) for values in ranges.values())
        asked.setdefault("trials", points + 3 ** len(ranges))  # and one refined round around its best
        if asked["trials"] < points:
            raise InvalidValueError(
                f"the {stage} grid has {points} points and is tried whole, got trials = {asked['trials']}. Ask for as "
                "many, or for another strategy: --strategy tpe."
            )
    return SearchOptions(
        behaviour=recipe.behaviour, blocks=tuple(block for block in TUNED_BLOCKS if f"rho_{block}" in ranges),
        ranges=ranges, limit=options.limit, max_new_tokens=_longest_reply(recipe, options), seed=recipe.seed, **asked,
    )  # fmt: skip


def run_recipe(
    recipe: Recipe,
    model: LanguageModel,
    out: Path,
    narrate: Narrate,
    options: RunOptions = RunOptions(),
    *,
    force: bool = False,
    command: str = "",
) -> dict[str, Any]:
    """Run a recipe into the folder `out`, going on where an earlier call was stopped: its `search/results.json`."""
    wanted = search_options(recipe, options)
    named = {**recipe.contrast, "contrast": options.contrast or recipe.contrast["source"]}
    del named["source"]
    source = ExtractOptions(**named, limit=options.limit, seed=recipe.seed)
    specs = [data_set.spec(options.published) for data_set in recipe.data_sets]
    settings = TaskSettings("held_out", options.limit, _longest_reply(recipe, options))
    tasks = build_tasks(specs, settings)  # first: what cannot be read shall not cost a search
    if any(isinstance(task, MathTask) for task in tasks):
        is_right("1", "1")  # nor shall a package that is not installed
    for task in [*tasks, *(own for part in behaviours_of(wanted) for own in part.tasks)]:
        task.require_fit(model)
    with RunFolder(out, RUN).opened(identity(recipe.behaviour, model, source)):
        vectors = vectors_once(model, source, out / "vectors.safetensors", narrate)
        asked = [prompt for task in tasks for prompts in task.asked.values() for prompt in prompts]
        chosen_on = behaviour(recipe.behaviour, "validation", limit=options.limit).digests
        seen = {"vector": vectors.metadata.get("prompts", ()), "validation": chosen_on}
        require_no_overlap({"data set": prompt_digests(asked), **seen})
        folder = out / "search"
        results = search_edit(model, vectors, wanted, folder, narrate, command, force=force)
        where = {"stage": _stage(options), "on_own_model": not options.other_model}
        results["recipe"] = {**recipe.model_dump(mode="json"), **where}
        if tasks:
            results["data_sets"] = _measured(model, vectors, tasks, specs, settings, folder, results, narrate)
        write_run(results, load_edit(folder / "edit"), folder)
        return results


def _measured(
    model: LanguageModel, vectors: SteeringVectors, tasks: Sequence[Task], specs: Sequence[str],
    settings: TaskSettings, folder: Path, results: dict[str, Any], narrate: Narrate,
) -> dict[str, Any]:  # fmt: skip
    """Base, steering of about the edit's cost, and the recommended edit on the data sets; kept in the folder."""
    run = read_results(results)
    assert run.edited is not None
    strength = None if run.steered is None else float(run.steered.parameters["strength"])
    steering = [] if strength is None else [steering_arm(vectors, strength)]
    arms = [BASE_ARM, *steering, edit_arm(load_edit(folder / "edit"), run.edited.label)]
    key = [list(specs), settings.limit, settings.max_new_tokens, strength, run.chosen.hyperparameters]
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    engine = RememberingEngine(TransformersEngine(model))
    conditions = RunFolder(folder, RUN).conditions("data_sets", name, lambda: evaluate(engine, tasks, arms))
    narrate("The recipe's data sets:", conditions)
    return {
        "tasks": list(specs),
        "conditions": [condition.to_json() for condition in conditions],
        "comparisons": compare(conditions),
    }
