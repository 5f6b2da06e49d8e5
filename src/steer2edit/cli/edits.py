"""Commands that make edits: `convert`, `combine`, `import-edit`, `refit`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steer2edit.cli.console import OUT, narrator, print_conditions, print_table, say
from steer2edit.cli.edit_output import print_edit
from steer2edit.cli.late import artifacts, evaluation, models, recipes
from steer2edit.cli.options import EditArgument, ModelArgument, OverwriteOption, VectorsArgument, load
from steer2edit.progress import show_progress
from steer2edit.settings import Accepting, ConvertOptions, Loading, PlainLoading, Reading, RefitOptions
from steer2edit.settings.declared import read_numbers

if TYPE_CHECKING:
    from steer2edit.artifacts.edits.low_rank import Interference


def convert(
    model: ModelArgument,
    vectors: VectorsArgument,
    out: Annotated[Path, typer.Option(help="Directory for the edit; must not exist.")],
    options: ConvertOptions,
    loading: Loading,
    accepting: Accepting,
    overwrite: OverwriteOption = False,
) -> dict[str, Any]:
    """Turn vectors into a rank-1 weight edit of heads and neurons, saved as a PEFT adapter.

    Of vectors with measured effects (extract --effects) an edit of these is made unless a budget rho is given.

    \b
    Example:
    steer2edit convert smollm2 vectors.safetensors --out edit
    steer2edit convert smollm2 vectors.safetensors --rho-attn 0.3 --rho-mlp 0.9 --out edit
    """
    artifacts.require_free(out, overwrite=overwrite)
    loaded_vectors = artifacts.load_vectors(vectors)
    recipes.making.rules_of(options, loaded_vectors)  # what is wrong with them shall show before a model is loaded
    with show_progress():
        loaded = load(model, loading, loaded_vectors.metadata)
        loaded_vectors = recipes.making.with_inputs(loaded, loaded_vectors, options)
        edit = recipes.make_edit(loaded, loaded_vectors, options, accepting)
        artifacts.save_edit(loaded, edit, out, overwrite=overwrite)
        seen = None if OUT.quiet else recipes.preview(loaded, loaded_vectors, edit)
    found = print_edit(edit, out, top=10)
    narrator()(recipes.told(seen), [])
    return found


def combine(
    edit_dirs: Annotated[
        list[Path], typer.Argument(metavar="EDIT_DIR...", help="Edits of one base: directories that `convert` wrote.")
    ],
    out: Annotated[Path, typer.Option(help="Directory for the combined edit; must not exist.")],
    reading: Reading,
    weights: str | None = None,
    top: Annotated[int, typer.Option(min=0, help="How many sites to list, by how much they interfere.")] = 10,
    model: str | None = None,
    overwrite: OverwriteOption = False,
) -> dict[str, Any]:
    """Make one adapter of several edits of the same base, and show how they overlap and interfere.

    \b
    Example:
    steer2edit combine edit run/edit --weights 1,0.5 --out both

    Args:
        weights: What each edit is multiplied by, with commas between. 1 for all by default.
        model: The base model, if it is not where the edits say. Only its config is read.
    """
    artifacts.require_free(out, overwrite=overwrite)
    if len(edit_dirs) < 2:
        raise typer.BadParameter("give at least two edits to combine; one alone is `steer2edit export`'s.")
    numbers = read_numbers("--weights", weights) if weights else [1.0] * len(edit_dirs)
    members = artifacts.read_members(edit_dirs, numbers)
    with show_progress():
        name = model or str(members[0].edit.metadata["model"]["name"])
        base = models.load_skeleton(name, **vars(reading))
        interference = artifacts.save_combined(base, members, out, overwrite=overwrite)
    print_interference(interference, [str(member.directory) for member in members], top)
    say(f"Combined edit: {out}. PEFT and vLLM load it like any other adapter; `steer2edit export` takes it too.")
    shown = [{"edit": str(member.directory), "weight": member.weight} for member in members]
    return {"out": str(out), "members": shown, **asdict(interference)}


def print_interference(interference: "Interference", names: list[str], top: int) -> None:
    """The sites where edits meet, the most interfering first, and the total."""
    pairs = sorted(interference.pairs, key=lambda pair: -abs(pair.cosine))
    columns = ["site", "edits", "cos u", "cos a", "cos ΔW", "edited by both", "of these opposed"]
    table = [
        [
            pair.site,
            f"{pair.first + 1}, {pair.second + 1}",
            *(f"{value:+.3f}" for value in (pair.output_cosine, pair.row_cosine, pair.cosine)),
            f"{pair.shared:.0%}",
            "–" if pair.opposed is None else f"{pair.opposed:.0%}",
        ]
        for pair in pairs[:top]
    ]
    if table:
        print_table(columns, table, "Where the edits meet")
        for index, name in enumerate(names):
            say(f"{index + 1}: {name}")
    else:
        say("The edits share no site.")
    say(f"Interference ‖Σ ΔW‖² / Σ ‖ΔW‖² − 1: {interference.interference:+.3f}")


def import_edit(
    model: ModelArgument,
    file: Annotated[
        Path, typer.Argument(metavar="EDIT_PT", help="An edit of the official Steer2Edit code (rank1__*.pt).")
    ],
    out: Annotated[Path, typer.Option(help="Directory for the edit; must not exist.")],
    loading: PlainLoading,
    overwrite: OverwriteOption = False,
) -> dict[str, Any]:
    """Turn an edit of the official Steer2Edit code into an edit directory (a PEFT adapter).

    \b
    Example:
    steer2edit import-edit Qwen/Qwen3-4B-Thinking-2507 \\
      rank1__ra-1.0_rm0.7_a0.1.pt --out edit

    The file is a pickle: it is read without running anything in it. It does not say which model it is for; shapes and
    layers are checked.
    """
    artifacts.require_free(out, overwrite=overwrite)
    with show_progress():
        loaded = load(model, loading)
        edit = artifacts.load_official_edit(file, loaded)
        artifacts.save_edit(loaded, edit, out, overwrite=overwrite)
    return print_edit(edit, out, top=10)


def refit(
    model: ModelArgument,
    edit: EditArgument,
    options: RefitOptions,
    loading: Loading,
    out: Path | None = None,
    overwrite: OverwriteOption = False,
) -> dict[str, Any]:
    """Make an edit anew for changed weights, after a fine-tune, a merge or a new quantisation, from its own recipe.

    Measured on held-out items: the model as it is now, with the old edit on top, and with the new one.

    \b
    Example:
    steer2edit refit ./tuned-model edit --out refitted

    Args:
        out: Directory for the new edit; by default beside the old one: EDIT_DIR-refit.
    """
    out = out or edit.with_name(f"{edit.resolve().name}-refit")
    artifacts.require_free(out, overwrite=overwrite)
    old = artifacts.load_edit(edit)
    recipes.recipe_of(old, options.contrast)  # what is missing shall show before a model is loaded
    with show_progress():
        loaded = load(model, loading, old.metadata)
        new, conditions, _ = recipes.refit(loaded, old, options)
        artifacts.save_edit(loaded, new, out, evaluation=evaluation.for_card(conditions), overwrite=overwrite)
    print_conditions(conditions)
    say(f"Edit: {out}")
    return {"out": str(out), "conditions": [c.to_json() for c in conditions]}
