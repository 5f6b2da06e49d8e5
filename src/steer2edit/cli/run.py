"""`steer2edit run`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steer2edit.cli.command import typed
from steer2edit.cli.options import (
    ChatTemplateOption,
    DeviceOption,
    DtypeOption,
    ForceOption,
    JsonOption,
    LayoutOption,
    LimitOption,
    TemplateArgOption,
    TrustOption,
    named_values,
)
from steer2edit.cli.search import numbers

if TYPE_CHECKING:
    from steer2edit.evaluation import Condition


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
    model: Annotated[
        str | None, typer.Option(help="Another model than the recipe's: a Hub id, a directory, or smollm2.")
    ] = None,
    list_recipes: Annotated[
        bool, typer.Option("--list", is_eager=True, callback=_list_recipes, help="Show the recipes.")
    ] = False,
    stage: Annotated[
        str | None,
        typer.Option(help="Grid to search, coarse or refined; refined by default, coarse with --model."),
    ] = None,
    strategy: Annotated[str | None, typer.Option(help="grid, tpe, nsga2 or random, instead of the recipe's.")] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Configurations to try in all; ask for more later to extend a run.")
    ] = None,
    contrast: Annotated[
        str | None, typer.Option(help="Preset or data file to make the vectors from, instead of the recipe's.")
    ] = None,
    strengths: Annotated[
        str | None, typer.Option(help="Steering strengths; by default those that spend 10 to 100 % of the largest KL.")
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option(min=0, help="Largest KL to the base, nats/token, instead of the recipe's.")
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Measure the published data sets, from the Hub, not the built-in ones.")
    ] = False,
    limit: LimitOption = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest reply.")] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    layout: LayoutOption = None,
    chat_template: ChatTemplateOption = None,
    template_arg: TemplateArgOption = None,
    trust_remote_code: TrustOption = False,
    force: ForceOption = False,
    json_output: JsonOption = False,
) -> None:
    """Run a recipe: vectors, search, the recommended edit and its report; resumable.

    \b
    Example:
    steer2edit run llama2-safety --model smollm2 --limit 16 --out run
    """
    from steer2edit.artifacts.run_folder import begun_with
    from steer2edit.cli.console import print_conditions, print_json, say
    from steer2edit.models import load_model
    from steer2edit.progress import show_progress
    from steer2edit.recipes import RecipeOptions, read_recipe, run_recipe, search_options

    options = RecipeOptions(
        other_model=model is not None, stage=stage, contrast=contrast, limit=limit, trials=trials,  # type: ignore[arg-type]
        strategy=strategy, strengths=numbers(strengths), max_kl=max_kl, max_new_tokens=max_new_tokens,
        published=published, force=force, command=typed(),
    )  # fmt: skip
    wanted = read_recipe(recipe)
    search_options(wanted, options)  # what cannot be asked for shall not cost loading a model

    def narrate(text: str, conditions: Sequence["Condition"]) -> None:
        if not json_output:
            say(f"\n{text}", style="bold")
            if conditions:
                print_conditions([condition.to_json() for condition in conditions])

    narrate(f"{wanted.title}, on {model or wanted.model.id}.", [])
    with show_progress():
        loaded = load_model(
            model or wanted.model.id, dtype=dtype, device=device, layout=layout, chat_template=chat_template,
            trust_remote_code=trust_remote_code,
            template_args=options.template_args(wanted, named_values("--template-arg", template_arg)),
            like=begun_with(out),
        )  # fmt: skip
        results = run_recipe(wanted, loaded, out, narrate, options)
    if json_output:
        return print_json(results)
    for line in results["summary"]:
        say(line)
    search = out / "search"
    say(f"\nVectors: {out / 'vectors.safetensors'}\nAdapter: {search / 'edit'}\nReport: {search / 'report.html'}")
    return None
