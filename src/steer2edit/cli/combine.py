"""`steer2edit combine`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steer2edit.cli.options import JsonOption, OverwriteOption, Reading
from steer2edit.settings.declared import read_numbers

if TYPE_CHECKING:
    from steer2edit.artifacts.edits.interference import Interference, PairAtSite


def combine(
    edit_dirs: Annotated[
        list[Path], typer.Argument(metavar="EDIT_DIR...", help="Edits of one base: directories that `convert` wrote.")
    ],
    out: Annotated[Path, typer.Option(help="Directory for the combined edit; must not exist.")],
    reading: Reading,
    weights: Annotated[
        str | None, typer.Option(help="What each edit is multiplied by, with commas between. 1 for all by default.")
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="How many sites to list, by how much they interfere.")] = 10,
    model: Annotated[
        str | None, typer.Option(help="The base model, if it is not where the edits say. Only its config is read.")
    ] = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Make one adapter of several edits of the same base, and show how they overlap and interfere.

    \b
    Example:
    steer2edit combine edit run/edit --weights 1,0.5 --out both
    """
    from steer2edit.artifacts import require_free
    from steer2edit.artifacts.edits.combined import read_members, save_combined
    from steer2edit.cli.console import print_json, say
    from steer2edit.models import load_skeleton
    from steer2edit.progress import show_progress

    require_free(out, overwrite=overwrite)
    if len(edit_dirs) < 2:
        raise typer.BadParameter("give at least two edits to combine; one alone is `steer2edit export`'s.")
    numbers = read_numbers("--weights", weights) if weights else [1.0] * len(edit_dirs)
    members = read_members(edit_dirs, numbers)
    with show_progress():
        name = model or str(members[0].edit.metadata["model"]["name"])
        base = load_skeleton(name, **vars(reading))
        interference = save_combined(base, members, out, overwrite=overwrite)
    names = [str(member.directory) for member in members]
    if json_output:
        shown = [{"edit": name, "weight": member.weight} for name, member in zip(names, members, strict=True)]
        return print_json({"out": str(out), "members": shown, **interference.to_json()})
    print_interference(interference, names, top)
    say(f"Combined edit: {out}. PEFT and vLLM load it like any other adapter; `steer2edit export` takes it too.")
    return None


def print_interference(interference: "Interference", names: list[str], top: int) -> None:
    """The sites where edits meet, the most interfering first, and the total."""
    from steer2edit.cli.console import print_table, say

    rows = [(site.site, pair) for site in interference.sites for pair in site.pairs]
    rows.sort(key=lambda row: -abs(row[1].cosine))
    columns = ["site", "edits", "cos u", "cos a", "cos ΔW", "edited by both", "of these opposed"]
    table = [[str(site), f"{pair.first + 1}, {pair.second + 1}", *_figures(pair)] for site, pair in rows[:top]]
    if table:
        print_table(columns, table, "Where the edits meet")
        for index, name in enumerate(names):
            say(f"{index + 1}: {name}")
    else:
        say("The edits share no site.")
    say(f"Interference ‖Σ ΔW‖² / Σ ‖ΔW‖² − 1: {interference.overall:+.3f}")


def _figures(pair: "PairAtSite") -> list[str]:
    values: list[Any] = [f"{value:+.3f}" for value in (pair.output_cosine, pair.row_cosine, pair.cosine)]
    opposed = "–" if pair.opposed is None else f"{pair.opposed:.0%}"
    return [*values, f"{pair.shared:.0%}", opposed]
