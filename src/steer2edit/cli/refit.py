"""`steer2edit refit`."""

from pathlib import Path
from typing import Annotated

import typer

from steer2edit.cli.options import EditArgument, JsonOption, Loading, ModelArgument, OverwriteOption
from steer2edit.settings import shared


def refit(
    model: ModelArgument,
    edit: EditArgument,
    loading: Loading,
    out: Annotated[
        Path | None, typer.Option(help="Directory for the new edit; by default beside the old one: EDIT_DIR-refit.")
    ] = None,
    contrast: Annotated[
        str | None,
        typer.Option(help="What the vectors are made from, where the edit does not say or its file has moved."),
    ] = None,
    limit: shared.Limit = None,
    force: shared.Force = False,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Make an edit anew for changed weights, after a fine-tune, a merge or a new quantisation, from its own recipe.

    Measured on held-out items: the model as it is now, with the old edit on top, and with the new one.

    \b
    Example:
    steer2edit refit ./tuned-model edit --out refitted
    """
    from steer2edit.artifacts import load_edit, require_free, save_edit
    from steer2edit.cli.console import print_conditions, print_json, say
    from steer2edit.evaluation import described
    from steer2edit.progress import show_progress
    from steer2edit.recipes import refit as make_anew
    from steer2edit.recipes.refit import default_out, recipe_of

    out = default_out(edit) if out is None else out
    require_free(out, overwrite=overwrite)
    old = load_edit(edit)
    recipe_of(old, contrast)  # what is missing shall show before a model is loaded
    with show_progress():
        loaded = loading.load(model, old.metadata)
        found = make_anew(loaded, old, contrast=contrast, limit=limit, force=force)
        card = {"conditions": [c.for_card() for c in found.conditions], "metrics": described(found.conditions)}
        save_edit(loaded, found.edit, out, evaluation=card, overwrite=overwrite)
    if json_output:
        return print_json({"out": str(out), "conditions": [c.to_json() for c in found.conditions]})
    print_conditions(found.conditions)
    return say(f"Edit: {out}")
