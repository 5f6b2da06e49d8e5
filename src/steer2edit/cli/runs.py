"""Commands that work in a run folder: `run`, `demo`, `search`, `compare`, `report`."""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from steer2edit.cli import late
from steer2edit.cli.console import narrator, print_table, say, typed
from steer2edit.cli.late import artifacts, engines, evaluation, recipes
from steer2edit.cli.options import (
    EngineOptions,
    FullRepliesOption,
    ModelArgument,
    OverwriteOption,
    VectorsArgument,
    listing,
    load,
)
from steer2edit.settings import Accepting, ComparisonOptions, Loading, Placing, RunOptions, SearchOptions, shared
from steer2edit.tables import shown_reply

_WRITTEN = {
    "report.html": "the report; open it in a browser",
    "edit": "the edit as a PEFT adapter, with its model card",
    "checkpoint": "the edited model; loads like any other",
    "vectors.safetensors": "the steering vectors",
    "results.json": "every figure and reply",
}


def _list_recipes() -> None:
    for name, recipe in ((name, recipes.recipe.read_recipe(name)) for name in recipes.recipe.recipe_names()):
        say(name, style="bold")
        say(f"  {recipe.title}\n  behaviour: {recipe.behaviour}\n  model:     {recipe.model.id}")


def run(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A Hub id, a local directory, or smollm2; a recipe alone brings its own."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run. One that is there already goes on.")],
    options: RunOptions,
    loading: Loading,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="BEHAVIOUR",
            help="A behaviour, such as safety; a behaviour's folder; a contrast file of your own; or "
            "a recipe: a name that --list shows, or a .yaml file.",
        ),
    ] = None,
    list_recipes: Annotated[bool, listing(_list_recipes, "Show the recipes.")] = False,
    force: shared.Force = False,
) -> dict[str, Any]:
    """Make an edit for a behaviour and test it: vectors, edit, preview, held-out figures, report; resumable.

    Base, steering and edit are compared on held-out items, at the same drift.

    \b
    Example:
    steer2edit run smollm2 safety --out run
    steer2edit run smollm2 llama2-safety --limit 16 --out recipe
    """  # fmt: skip
    if what is None and not recipes.recipe.is_recipe(model):
        raise typer.BadParameter(f"say what the edit is for, as in `steer2edit run {model} safety --out {out}`.")
    if what is not None and not recipes.recipe.is_recipe(what):
        return make_and_test(model, what, out, options, loading, force=force)
    options = replace(options, other_model=what is not None)
    wanted = recipes.recipe.read_recipe(what or model)
    recipes.recipe_run.search_options(wanted, options)  # what cannot be asked for shall not cost loading a model
    name, narrate = wanted.model.id if what is None else model, narrator()
    narrate(f"{wanted.title}, on {name}.", [])
    arguments = recipes.recipe_run.template_args(wanted, options, loading.template_args)
    loaded = load(name, loading, artifacts.run_folder.begun_with(out), template_args=arguments)
    results = recipes.recipe_run.run_recipe(wanted, loaded, out, narrate, options, force=force, command=typed())
    return _end_of_search(results, out / "search", out / "vectors.safetensors")


def make_and_test(
    model: str, what: str, out: Path, options: RunOptions, loading: Any, *, force: bool = False, **extras: Any
) -> dict[str, Any]:
    """Run for a behaviour or a contrast file, and say what came out."""
    evaluation.behaviour(what, "held_out", limit=options.limit)  # bad data shall show before a model is loaded
    begun = time.perf_counter()
    narrate = narrator(begun)
    loaded = load(model, loading, artifacts.run_folder.begun_with(out))
    narrate(f"Loaded {loaded.name}: {len(loaded.sites)} sites.", [])
    results = recipes.run.run_behaviour(loaded, what, out, narrate, options, force=force, command=typed(), **extras)
    if options.search:
        return _end_of_search(results, out / "search", out / "vectors.safetensors")
    print_replies(results)
    say(f"\nDone in {time.perf_counter() - begun:.0f} s.", style="bold")
    for name, text in _WRITTEN.items():
        if (out / name).exists():
            say(f"  {out / name}  {text}")
    return results


def _end_of_search(results: dict[str, Any], folder: Path, vectors: Path) -> dict[str, Any]:
    for line in results["summary"]:
        say(line)
    say(f"\nVectors: {vectors}\nAdapter: {folder / 'edit'}\nReport: {folder / 'report.html'}")
    say(f"All figures: {folder / 'results.json'}")
    return results


def print_replies(results: dict[str, Any], count: int = 2) -> None:
    """Replies of every condition in full, for the first prompts of each set on which the edit changed the verdict."""
    conditions = results["held_out"]["conditions"]
    for kind, texts in results["prompts"].items():
        before, after = (conditions[i]["outcomes"].get(kind, ()) for i in (0, -1))
        if not before:
            continue
        changed = [i for i in range(len(texts)) if before[i] != after[i]]
        shown = f"; the first {count}:" if len(changed) > count else ":" if changed else "."
        say(f"\n{kind}: the edit changed {len(changed)} of {len(texts)} verdicts{shown}", style="bold")
        for index in changed[:count]:
            say(f"  {texts[index]}")
            for condition in conditions:
                say(f"    {condition['label']}: {shown_reply(' '.join(condition['replies'][kind][index].split()))}")


def demo(
    placing: Placing,
    out: Annotated[Path, typer.Option(help="Directory for everything the demo writes.")] = Path("steer2edit-demo"),
    seed: shared.Seed = 0,
    overwrite: OverwriteOption = False,
) -> dict[str, Any]:
    """Make SmolLM2-135M refuse harmful requests more often, offline, in minutes, and show what it cost.

    It is `steer2edit run smollm2 safety`, with an edit by the paper's rule beside it, and the edited checkpoint. One
    that was stopped goes on.
    """
    if overwrite and artifacts.run_folder.begun_with(out):
        shutil.rmtree(out)
    options, loading = RunOptions(max_new_tokens=28, seed=seed), Loading(**vars(placing))
    return make_and_test("smollm2", "safety", out, options, loading, paper=True, verified=8)


def search(
    model: ModelArgument,
    vectors: VectorsArgument,
    out: Annotated[Path, typer.Option(help="Run folder. A search that is there already goes on.")],
    options: SearchOptions,
    engine: EngineOptions,
    loading: Loading,
    accepting: Accepting,
) -> dict[str, Any]:
    """Find the edit with most of a behaviour within a utility budget; resumable, with steering in the same run.

    \b
    Example:
    steer2edit search smollm2 vectors.safetensors --behaviour safety --out run
    """
    loaded_vectors = artifacts.load_vectors(vectors)
    options = late.search.search.options_for(loaded_vectors, options)
    late.search.search.behaviours_of(options)  # what is wrong with the data shall show before a model is loaded
    loaded = load(model, loading, artifacts.run_folder.begun_with(out), loaded_vectors.metadata)
    with engine.running(loaded) as runner:
        prepared = late.search.search.prepare_search(
            loaded, loaded_vectors, options, engine=engines.RememberingEngine(runner), accepting=accepting
        )
        return _end_of_search(recipes.run.search_and_report(prepared, out, narrator(), typed()), out, vectors)


def compare(
    model: ModelArgument,
    vectors: VectorsArgument,
    out: Annotated[Path, typer.Option(help="Run folder. A comparison that is there already goes on.")],
    options: ComparisonOptions,
    loading: Loading,
    edit: Annotated[list[Path] | None, typer.Option(metavar="DIR")] = None,
    allow_mismatch: shared.AllowMismatch = False,
) -> dict[str, Any]:
    """Compare steering, edits and baselines on the same held-out items, each as a curve over its strength; resumable.

    \b
    Example:
    steer2edit compare smollm2 vectors.safetensors --edit run/edit --out comparison

    Args:
        edit: A further edit, such as a search's; several times.
    """
    loaded_vectors = artifacts.load_vectors(vectors)
    edits = {path.resolve().name: artifacts.load_edit(path) for path in edit or ()}
    if len(edits) < len(edit or ()):
        raise typer.BadParameter("two --edit have the same name: rename a directory.")
    options = late.search.search.options_for(loaded_vectors, options)
    late.search.search.behaviours_of(options)  # what is wrong with the data shall show before a model is loaded
    loaded = load(model, loading, artifacts.run_folder.begun_with(out), loaded_vectors.metadata)
    methods, left_out = late.search.comparison.comparison_methods(
        loaded, loaded_vectors, edits, suppress=options.suppress, allow_mismatch=allow_mismatch
    )
    results = late.search.comparison.run_comparison(
        engines.RememberingEngine(engines.TransformersEngine(loaded)), loaded_vectors, methods, options, out,
        narrator(), left_out=left_out, command=typed(),
    )  # fmt: skip
    artifacts.run_folder.write_json(out / "results.json", results)
    late.report.write_comparison_page(results, out / "report.html")
    found = late.report.run_results.read_results(results, late.report.run_results.ComparisonResults)
    for caption, columns, rows in late.report.comparison_page.figure_tables(found):
        say()
        print_table(["", *(column.replace(", ", ",\n") for column in columns[1:])], rows, caption)
    for line in ("", *late.report.comparison_page.reasons(found), "", *results["summary"]):
        say(line)
    say(f"\nReport: {out / 'report.html'}\nAll figures: {out / 'results.json'}")
    return results


def report(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Folder of a search, a comparison, a recipe, a stress run or the demo."),
    ],
    out: Annotated[Path | None, typer.Option(help="The page; by default report.html in the folder. Replaced.")] = None,
    full_replies: FullRepliesOption = False,
) -> dict[str, Any]:
    """Make the HTML report of a run again: from its results.json and edit/, or from its scorecard.json.

    \b
    Example:
    steer2edit report run
    """
    if (run / "scorecard.json").is_file():
        page = late.report.write_stress_page(run, out, full_replies=full_replies)
    else:
        page = recipes.run.render_again(run, out)
    say(f"Report: {page}")
    return {"report": str(page)}
