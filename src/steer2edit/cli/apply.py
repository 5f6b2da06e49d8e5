"""`steer2edit apply`."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steer2edit.cli.options import (
    DeviceOption,
    EditArgument,
    JsonOption,
    ModelArgument,
    OverwriteOption,
    Reading,
)
from steer2edit.settings import shared

if TYPE_CHECKING:
    from steer2edit.artifacts import BaseCheckpoint, CheckpointManifest


def apply(
    model: ModelArgument,
    edit_dir: EditArgument,
    out: Annotated[Path, typer.Option(help="Directory for the edited checkpoint; must not exist.")],
    reading: Reading,
    strength: Annotated[float, typer.Option(help="Multiplies the edit.")] = 1.0,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Then compare every byte, load base and result in float32, and compare what they predict."
        ),
    ] = False,
    device: DeviceOption = "auto",
    allow_mismatch: shared.AllowMismatch = False,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Write the edited checkpoint: the base's files, names and dtypes; only the edited tensors differ.

    It is made from the files, without loading the model, so its size does not matter. Weights in pytorch_model.bin
    become safetensors. EDIT_DIR may also be several edits in one, made by `combine`.

    \b
    Example:
    steer2edit apply smollm2 edit --out edited-model
    """
    from steer2edit.artifacts import apply_to_files, open_base, require_free
    from steer2edit.artifacts.edits.combined import load_members
    from steer2edit.audit import require_not_applied
    from steer2edit.cli.console import print_json
    from steer2edit.progress import show_progress

    require_free(out, overwrite=overwrite)
    edits = [(edit, weight * strength) for edit, weight in load_members(edit_dir)]
    with show_progress():
        base = open_base(model, **vars(reading))
        require_not_applied(base, [edit for edit, _ in edits])
        manifest = apply_to_files(base, edits, out, allow_mismatch=allow_mismatch, overwrite=overwrite)
        verification = _verified(base, edits, out, {"device": device, **vars(reading)}) if verify else None
    if json_output:
        tensors = {name: record.model_dump() for name, record in manifest.edited_tensors.items()}
        return print_json(
            {
                "out": str(out),
                "strength": strength,
                "source": manifest.source,
                "base": manifest.base.model_dump(),
                "edited": tensors,
                "not_copied": manifest.not_copied,
                "verification": verification,
            }
        )
    _print(out, manifest, verification)
    return None


def _verified(base: "BaseCheckpoint", edits: Any, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    from steer2edit.audit import verify_checkpoint
    from steer2edit.errors import Steer2EditError

    try:
        return asdict(verify_checkpoint(base, edits, out, **settings))
    except Steer2EditError:
        shutil.rmtree(out)  # what is not what it should be must not lie there as if it were
        raise


def _print(out: Path, manifest: "CheckpointManifest", verification: dict[str, Any] | None) -> None:
    from steer2edit.cli.console import say

    left_out = f" Not copied: {', '.join(manifest.not_copied)}." if manifest.not_copied else ""
    say(
        f"Edited checkpoint: {out} ({len(manifest.edited_tensors)} tensors changed). It loads like any other model."
        f"{left_out}"
    )
    if verification:
        say(
            f"Verified: {verification['tensors']} tensors, byte for byte. Against the base under the edit, over "
            f"{verification['tokens']} tokens: KL {verification['kl']:.2g} (accepted up to "
            f"{verification['largest_kl']:g}; the edit itself {verification['edit_kl']:.2g}), largest logit difference "
            f"{verification['max_logit_difference']:.2g}, same greedy token at {verification['greedy_agreement']:.0%}."
        )
