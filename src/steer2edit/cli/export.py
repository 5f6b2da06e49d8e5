"""`steer2edit export`."""

from pathlib import Path
from typing import Annotated

import typer

from steer2edit.cli.options import JsonOption, OverwriteOption, Reading
from steer2edit.settings.declared import read_numbers


def export(
    edit_dir: Annotated[
        Path, typer.Argument(metavar="EDIT_DIR", help="An edit directory written by `convert`, or by `combine`.")
    ],
    format: Annotated[str, typer.Option(help="peft, gguf-lora (llama.cpp, Ollama) or vllm.")],
    out: Annotated[Path, typer.Option(help="Directory for the adapters; must not exist.")],
    reading: Reading,
    strength: Annotated[
        str, typer.Option(help="What the edit is multiplied by; several with commas, one adapter for each.")
    ] = "1",
    model: Annotated[
        str | None, typer.Option(help="The base model, if it is not where the edit says. Only its config is read.")
    ] = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Write adapters for other engines, one per strength, and say how to serve them.

    \b
    Example:
    steer2edit export edit --format gguf-lora --strength 0.5,1 --out adapters
    """
    from steer2edit.artifacts import require_free
    from steer2edit.artifacts.edits.combined import load_members
    from steer2edit.artifacts.exports.export import export_edit, needs_model
    from steer2edit.cli.console import print_json, print_table, say
    from steer2edit.models import load_skeleton
    from steer2edit.progress import show_progress

    require_free(out, overwrite=overwrite)
    strengths = read_numbers("--strength", strength)
    members = load_members(edit_dir)
    with show_progress():
        base = None
        if needs_model(members, format):
            name = model or str(members[0][0].metadata["model"]["name"])
            base = load_skeleton(name, **vars(reading))
        manifest = export_edit(edit_dir, format, strengths, out, model=base, overwrite=overwrite)
    if json_output:
        adapters = [{"strength": a.strength, "path": str(out / a.path)} for a in manifest.adapters]
        return print_json(
            {"out": str(out), "format": format, "rank": manifest.rank, "adapters": adapters, "usage": manifest.usage}
        )
    print_table(["adapter", "strength"], [[str(out / a.path), f"{a.strength:g}"] for a in manifest.adapters])
    say()
    for line in manifest.usage:
        say(line)
    return None
