"""`steer2edit import-edit`."""

from pathlib import Path
from typing import Annotated

import typer

from steer2edit.cli.options import JsonOption, ModelArgument, OverwriteOption, PlainLoading


def import_edit(
    model: ModelArgument,
    file: Annotated[
        Path, typer.Argument(metavar="EDIT_PT", help="An edit of the official Steer2Edit code (rank1__*.pt).")
    ],
    out: Annotated[Path, typer.Option(help="Directory for the edit; must not exist.")],
    loading: PlainLoading,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Turn an edit of the official Steer2Edit code into an edit directory (a PEFT adapter).

    \b
    Example:
    steer2edit import-edit Qwen/Qwen3-4B-Thinking-2507 \\
      rank1__ra-1.0_rm0.7_a0.1.pt --out edit

    The file is a pickle: it is read without running anything in it. It does not say which model it is for; shapes and
    layers are checked.
    """
    from steer2edit.artifacts import require_free, save_edit
    from steer2edit.artifacts.edits.official_edit import load_official_edit
    from steer2edit.cli.inspect import print_edit
    from steer2edit.progress import show_progress

    require_free(out, overwrite=overwrite)
    with show_progress():
        loaded = loading.load(model)
        edit = load_official_edit(file, loaded)
        save_edit(loaded, edit, out, overwrite=overwrite)
    print_edit(edit, out, top=10, as_json=json_output)
