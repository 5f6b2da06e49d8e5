"""Commands that write an edit for others: `apply`, `export`, `push`."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from steer2edit.cli.console import print_table, say
from steer2edit.cli.late import artifacts, audit, models
from steer2edit.cli.options import EditArgument, ModelArgument, OverwriteOption
from steer2edit.errors import Steer2EditError
from steer2edit.progress import show_progress
from steer2edit.settings import Reading, shared
from steer2edit.settings.declared import read_numbers


def apply(
    model: ModelArgument,
    edit_dir: EditArgument,
    out: Annotated[Path, typer.Option(help="Directory for the edited checkpoint; must not exist.")],
    reading: Reading,
    strength: Annotated[float, typer.Option(help="Multiplies the edit.")] = 1.0,
    verify: bool = False,
    device: shared.Device = "auto",
    allow_mismatch: shared.AllowMismatch = False,
    overwrite: OverwriteOption = False,
) -> dict[str, Any]:
    """Write the edited checkpoint: the base's files, names and dtypes; only the edited tensors differ.

    It is made from the files, without loading the model, so its size does not matter. Weights in pytorch_model.bin
    become safetensors. EDIT_DIR may also be several edits in one, made by `combine`.

    \b
    Example:
    steer2edit apply smollm2 edit --out edited-model

    Args:
        verify: Then compare every byte, load base and result in float32, and compare what they predict.
    """
    artifacts.require_free(out, overwrite=overwrite)
    edits = [(edit, weight * strength) for edit, weight in artifacts.load_members(edit_dir)]
    with show_progress():
        base = artifacts.open_base(model, **vars(reading))
        manifest = artifacts.apply_to_files(base, edits, out, allow_mismatch=allow_mismatch, overwrite=overwrite)
        verification = _verified(base, edits, out, {"device": device, **vars(reading)}) if verify else None
    left_out = f" Not copied: {', '.join(manifest.not_copied)}." if manifest.not_copied else ""
    say(
        f"Edited checkpoint: {out} ({len(manifest.edited_tensors)} tensors changed). It loads like any other model."
        f"{left_out}"
    )
    if verification:
        say(
            f"Verified: {verification['tensors']} tensors, byte for byte. Against the base under the edit, over "
            f"{verification['tokens']} tokens: KL {verification['kl']:.2g} (accepted up to "
            f"{verification['largest_kl']:g}; the edit itself {verification['edit_kl']:.2g}), same greedy token at "
            f"{verification['greedy_agreement']:.0%}."
        )
    return {
        "out": str(out),
        "strength": strength,
        "source": manifest.source,
        "base": manifest.base.model_dump(),
        "edited": {name: record.model_dump() for name, record in manifest.edited_tensors.items()},
        "not_copied": manifest.not_copied,
        "verification": verification,
    }


def _verified(base: "artifacts.BaseCheckpoint", edits: Any, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    try:
        return asdict(audit.verify_checkpoint(base, edits, out, **settings))
    except Steer2EditError:
        shutil.rmtree(out)  # what is not what it should be must not lie there as if it were
        raise


def export(
    edit_dir: Annotated[
        Path, typer.Argument(metavar="EDIT_DIR", help="An edit directory written by `convert`, or by `combine`.")
    ],
    format: Annotated[str, typer.Option(help="peft, gguf-lora (llama.cpp, Ollama) or vllm.")],
    out: Annotated[Path, typer.Option(help="Directory for the adapters; must not exist.")],
    reading: Reading,
    strength: str = "1",
    model: str | None = None,
    overwrite: OverwriteOption = False,
) -> dict[str, Any]:
    """Write adapters for other engines, one per strength, and say how to serve them.

    \b
    Example:
    steer2edit export edit --format gguf-lora --strength 0.5,1 --out adapters

    Args:
        strength: What the edit is multiplied by; several with commas, one adapter for each.
        model: The base model, if it is not where the edit says. Only its config is read.
    """
    from steer2edit.artifacts.exports.export import needs_model

    artifacts.require_free(out, overwrite=overwrite)
    strengths = read_numbers("--strength", strength)
    members = artifacts.load_members(edit_dir)
    with show_progress():
        base = None
        if needs_model(members, format):
            name = model or str(members[0][0].metadata["model"]["name"])
            base = models.load_skeleton(name, **vars(reading))
        manifest = artifacts.export_edit(edit_dir, format, strengths, out, model=base, overwrite=overwrite)
    print_table(["adapter", "strength"], [[str(out / a.path), f"{a.strength:g}"] for a in manifest.adapters])
    say()
    for line in manifest.usage:
        say(line)
    adapters = [{"strength": a.strength, "path": str(out / a.path)} for a in manifest.adapters]
    return {"out": str(out), "format": format, "rank": manifest.rank, "adapters": adapters, "usage": manifest.usage}


def push(
    edit_dir: Annotated[Path, typer.Argument(metavar="EDIT_DIR", help="What `convert`, `combine` or `export` wrote.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="Repository on the Hub: name or owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; made if it does not exist. main by default.")] = None,
    without_contract: bool = False,
) -> dict[str, Any]:
    """Push an edit with its model card to the Hugging Face Hub: our files only, in one commit.

    The card must state the edit's contract (`stress --card`), unless --without-contract is given.

    \b
    Example:
    steer2edit push edit me/my-edit --private

    Args:
        without_contract: Publish a model card that does not state the edit's contract.
    """
    with show_progress():
        pushed = artifacts.push(
            edit_dir, repo_id, private=private, revision=revision, without_contract=without_contract
        )
    say(f"Pushed {len(pushed.files)} files: {pushed.url}")
    if pushed.local_base:
        say(
            f"The base is a folder, {pushed.local_base}, and the adapter that was pushed has its name only. "
            "Write the base's Hub id as base_model_name_or_path into adapter_config.json, and as base_model into "
            "README.md."
        )
    found = {"repository": pushed.repository, "url": pushed.url, "files": list(pushed.files)}
    return {**found, "local_base": pushed.local_base} if pushed.local_base else found
