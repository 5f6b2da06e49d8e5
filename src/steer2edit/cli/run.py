"""`steer2edit run`."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steer2edit.cli.command import typed
from steer2edit.cli.options import JsonOption, Loading
from steer2edit.settings import RunOptions, shared

if TYPE_CHECKING:
    from steer2edit.recipes import Extras

_WRITTEN = {
    "report.html": "the report; open it in a browser",
    "edit": "the edit as a PEFT adapter, with its model card",
    "checkpoint": "the edited model; loads like any other",
    "vectors.safetensors": "the steering vectors",
    "results.json": "every figure and reply",
}


def _list_recipes(wanted: bool) -> bool:
    """Show the recipes and end, if that is wanted."""
    if not wanted:
        return False
    from steer2edit.cli.console import say
    from steer2edit.recipes import read_recipe, recipe_names

    for name in recipe_names():
        recipe = read_recipe(name)
        say(name, style="bold")
        say(f"  {recipe.title}\n  behaviour: {recipe.behaviour}\n  model:     {recipe.model.id}")
    raise typer.Exit


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
    list_recipes: Annotated[
        bool, typer.Option("--list", is_eager=True, callback=_list_recipes, help="Show the recipes.")
    ] = False,
    force: shared.Force = False,
    json_output: JsonOption = False,
) -> None:
    """Make an edit for a behaviour and test it: vectors, edit, preview, held-out figures, report; resumable.

    Base, steering and edit are compared on held-out items, at the same drift.

    \b
    Example:
    steer2edit run smollm2 safety --out run
    steer2edit run smollm2 llama2-safety --limit 16 --out recipe
    """  # fmt: skip
    from steer2edit.recipes import is_recipe

    if is_recipe(what or model):
        return _run_recipe(model, what, out, options, loading, force, json_output)
    if what is None:
        raise typer.BadParameter(f"say what the edit is for, as in `steer2edit run {model} safety --out {out}`.")
    return make_and_test(model, what, out, options, loading, force=force, json_output=json_output)


def make_and_test(
    model: str, what: str, out: Path, options: RunOptions, loading: Any, *, extras: "Extras | None" = None,
    force: bool = False, json_output: bool,
) -> None:  # fmt: skip
    """Run for a behaviour or a contrast file, and say what came out."""
    from steer2edit.artifacts.run_folder import begun_with
    from steer2edit.cli.console import narrator, print_json, say
    from steer2edit.evaluation import behaviour
    from steer2edit.progress import show_progress
    from steer2edit.recipes import Extras, run_behaviour

    behaviour(what, "held_out", limit=options.limit)  # what is wrong with it shall show before a model is loaded
    begun = time.perf_counter()
    narrate = narrator(json_output, begun)
    with show_progress():
        loaded = loading.load(model, begun_with(out))
        narrate(f"Loaded {loaded.name}: {len(loaded.sites)} sites.", [])
        results = run_behaviour(
            loaded, what, out, narrate, options, extras=extras or Extras(), force=force, command=typed()
        )
    if json_output:
        return print_json(results)
    if options.search:
        return _end_of_search(results, out)
    _print_replies(results)
    say(f"\nDone in {time.perf_counter() - begun:.0f} s.", style="bold")
    for name, text in _WRITTEN.items():
        if (out / name).exists():
            say(f"  {out / name}  {text}")
    return None


def _run_recipe(
    model: str, what: str | None, out: Path, options: RunOptions, loading: Loading, force: bool, json_output: bool
) -> None:
    from steer2edit.artifacts.run_folder import begun_with
    from steer2edit.cli.console import narrator, print_json
    from steer2edit.progress import show_progress
    from steer2edit.recipes import read_recipe, run_recipe, search_options, template_args

    options = replace(options, other_model=what is not None)
    wanted = read_recipe(what or model)
    search_options(wanted, options)  # what cannot be asked for shall not cost loading a model
    name, narrate = wanted.model.id if what is None else model, narrator(json_output)
    narrate(f"{wanted.title}, on {name}.", [])
    with show_progress():
        arguments = template_args(wanted, options, loading.template_args)
        loaded = loading.load(name, begun_with(out), template_args=arguments)
        results = run_recipe(wanted, loaded, out, narrate, options, force=force, command=typed())
    if json_output:
        return print_json(results)
    return _end_of_search(results, out)


def _end_of_search(results: dict[str, Any], out: Path) -> None:
    from steer2edit.cli.console import say

    for line in results["summary"]:
        say(line)
    search = out / "search"
    say(f"\nVectors: {out / 'vectors.safetensors'}\nAdapter: {search / 'edit'}\nReport: {search / 'report.html'}")


def _print_replies(results: dict[str, Any], count: int = 2) -> None:
    """Replies of every condition in full, for the first prompts of each set on which the edit changed the verdict."""
    from steer2edit.cli.console import say

    conditions = results["held_out"]["conditions"]
    for kind, texts in results["prompts"].items():
        before, after = (conditions[i]["outcomes"].get(kind, ()) for i in (0, -1))
        if not before:
            continue
        changed = [i for i in range(len(texts)) if before[i] != after[i]]
        say(f"\n{kind}: the edit changed {len(changed)} of {len(texts)} verdicts; the first {count}:", style="bold")
        for index in changed[:count]:
            say(f"  {texts[index]}")
            for condition in conditions:
                say(f"    {condition['label']}: {' '.join(condition['replies'][kind][index].split())}")
