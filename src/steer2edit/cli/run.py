"""`steer2edit run`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from steer2edit.cli.command import typed
from steer2edit.cli.options import JsonOption, Loading
from steer2edit.settings import RecipeOptions, shared


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
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name that --list shows, or a .yaml file.")],
    out: Annotated[Path, typer.Option(help="Folder of the run. One that is there already goes on.")],
    options: RecipeOptions,
    loading: Loading,
    model: Annotated[
        str | None, typer.Option(help="Another model than the recipe's: a Hub id, a directory, or smollm2.")
    ] = None,
    list_recipes: Annotated[
        bool, typer.Option("--list", is_eager=True, callback=_list_recipes, help="Show the recipes.")
    ] = False,
    force: shared.Force = False,
    json_output: JsonOption = False,
) -> None:
    """Run a recipe: vectors, search, the recommended edit and its report; resumable.

    \b
    Example:
    steer2edit run llama2-safety --model smollm2 --limit 16 --out run
    """
    from steer2edit.artifacts.run_folder import begun_with
    from steer2edit.cli.console import narrator, print_json, say
    from steer2edit.progress import show_progress
    from steer2edit.recipes import read_recipe, run_recipe, search_options, template_args

    options = replace(options, other_model=model is not None)
    wanted = read_recipe(recipe)
    search_options(wanted, options)  # what cannot be asked for shall not cost loading a model
    name, narrate = model or wanted.model.id, narrator(json_output)
    narrate(f"{wanted.title}, on {name}.", [])
    with show_progress():
        arguments = template_args(wanted, options, loading.template_args)
        loaded = loading.load(name, begun_with(out), template_args=arguments)
        results = run_recipe(wanted, loaded, out, narrate, options, force=force, command=typed())
    if json_output:
        return print_json(results)
    for line in results["summary"]:
        say(line)
    search = out / "search"
    say(f"\nVectors: {out / 'vectors.safetensors'}\nAdapter: {search / 'edit'}\nReport: {search / 'report.html'}")
    return None
