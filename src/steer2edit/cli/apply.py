"""`steer2edit apply`."""

from pathlib import Path
from typing import Annotated

import typer

from steer2edit.cli.options import (
    AllowMismatchOption,
    DeviceOption,
    EditArgument,
    JsonOption,
    LayoutOption,
    ModelArgument,
    OverwriteOption,
    SeedOption,
    TrustOption,
)


def apply(
    model: ModelArgument,
    edit_dir: EditArgument,
    out: Annotated[Path, typer.Option(help="Directory for the edited checkpoint; must not exist.")],
    strength: Annotated[float, typer.Option(help="Multiplies the edit.")] = 1.0,
    device: DeviceOption = "auto",
    layout: LayoutOption = None,
    trust_remote_code: TrustOption = False,
    allow_mismatch: AllowMismatchOption = False,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Write the edited checkpoint: the base's files, names and dtypes; only the edited tensors differ.

    Example: steer2edit apply smollm2 edit --out edited-model
    """
    from steer2edit.artifacts import load_edit, require_free, save_checkpoint
    from steer2edit.cli.console import print_json, say
    from steer2edit.models import load_model
    from steer2edit.progress import show_progress

    require_free(out, overwrite=overwrite)
    edit = load_edit(edit_dir)
    with show_progress():
        loaded = load_model(model, device=device, layout=layout, trust_remote_code=trust_remote_code)
        save_checkpoint(loaded, edit, out, strength=strength, allow_mismatch=allow_mismatch, overwrite=overwrite)
    sites = [loaded.sites[site].name for site, site_edit in edit.sites.items() if bool(site_edit.magnitude.any())]
    if json_output:
        return print_json({"out": str(out), "strength": strength, "edited": sites})
    say(f"Edited checkpoint: {out} ({len(sites)} tensors changed). It loads like any other model.")
    return None
