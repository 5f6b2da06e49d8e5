"""Commands that make edits, and write them for others.

`convert`, `combine`, `import-edit`, `refit`; `apply`, `export`, `push`.
"""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steer2edit.cli.console import OUT, narrator, print_conditions, print_table, say
from steer2edit.cli.edit_output import print_edit
from steer2edit.cli.late import artifacts, evaluation, models, recipes
from steer2edit.cli.options import EditArgument, ModelArgument, OverwriteOption, VectorsArgument, load
from steer2edit.errors import Steer2EditError
from steer2edit.settings import Accepting, ConvertOptions, Loading, Reading, RefitOptions, shared
from steer2edit.settings.declared import read_numbers

if TYPE_CHECKING:
    from steer2edit.artifacts.edits.low_rank import Interference

OutOption = Annotated[Path, typer.Option(help="Directory for what is written; must not exist.")]


def convert(
    model: ModelArgument,
    vectors: VectorsArgument,
    out: OutOption,
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
    loaded = load(model, loading, loaded_vectors.metadata)
    loaded_vectors = recipes.making.with_inputs(loaded, loaded_vectors, options)
    edit = recipes.making.make_edit(loaded, loaded_vectors, options, accepting)
    artifacts.save_edit(loaded, edit, out, overwrite=overwrite)
    seen = None if OUT.quiet else recipes.making.preview(loaded, loaded_vectors, edit)
    found = print_edit(edit, out, top=10)
    narrator()(recipes.making.told(seen), [])
    return found


def combine(
    edit_dirs: Annotated[
        list[Path], typer.Argument(metavar="EDIT_DIR...", help="Edits of one base: directories that `convert` wrote.")
    ],
    out: OutOption,
    reading: Reading,
    weights: str | None = None,
    top: Annotated[int, typer.Option(min=0, help="How many sites to list, by how much they interfere.")] = 10,
    model: str | None = None,
    overwrite: OverwriteOption = False,
) -> dict[str, Any]:
    """Make one adapter of several edits of the same base, and show how they interfere.

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
    base = models.load_skeleton(model or str(members[0].edit.metadata["model"]["name"]), **vars(reading))
    interference = artifacts.save_combined(base, members, out, overwrite=overwrite)
    _print_interference(interference, top)
    say(f"Combined edit: {out}. PEFT and vLLM load it like any other adapter; `steer2edit export` takes it too.")
    shown = [{"edit": str(member.directory), "weight": member.weight} for member in members]
    return {"out": str(out), "members": shown, **asdict(interference)}


def _print_interference(interference: "Interference", top: int) -> None:
    """The sites where edits meet, the most interfering first, and the total."""
    largest = sorted(interference.sites.items(), key=lambda row: -abs(row[1]))[:top]
    if largest:
        print_table(["site", "interference"], [[site, f"{value:+.3f}"] for site, value in largest], "Where edits meet")
    elif not interference.sites:
        say("The edits share no site.")
    say(f"Interference ‖Σ ΔW‖² / Σ ‖ΔW‖² − 1: {interference.interference:+.3f}")


def import_edit(
    model: ModelArgument,
    file: Annotated[
        Path, typer.Argument(metavar="EDIT_PT", help="An edit of the official Steer2Edit code (rank1__*.pt).")
    ],
    out: OutOption,
    loading: Loading,
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
    recipes.making.recipe_of(old, options.contrast)  # what is missing shall show before a model is loaded
    loaded = load(model, loading, old.metadata)
    new, conditions, _ = recipes.making.refit(loaded, old, options)
    artifacts.save_edit(loaded, new, out, evaluation=evaluation.for_card(conditions), overwrite=overwrite)
    print_conditions(conditions)
    say(f"Edit: {out}")
    return {"out": str(out), "conditions": [c.to_json() for c in conditions]}


def apply(
    model: ModelArgument,
    edit_dir: EditArgument,
    out: OutOption,
    reading: Reading,
    strength: Annotated[float, typer.Option(help="Multiplies the edit.")] = 1.0,
    verify: bool = False,
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
        verify: Then compare every byte with what it must be.
    """
    artifacts.require_free(out, overwrite=overwrite)
    edits = [(edit, weight * strength) for edit, weight in artifacts.load_members(edit_dir)]
    base = artifacts.open_base(model, **vars(reading))
    manifest = artifacts.apply_to_files(base, edits, out, allow_mismatch=allow_mismatch, overwrite=overwrite)
    verified = None
    if verify:
        try:
            verified = artifacts.verify_checkpoint(base, edits, out)
        except Steer2EditError:
            shutil.rmtree(out)  # what is not what it should be must not lie there as if it were
            raise
    left_out = f" Not copied: {', '.join(manifest.not_copied)}." if manifest.not_copied else ""
    edited = {name: record.model_dump() for name, record in manifest.edited_tensors.items()}
    say(f"Edited checkpoint: {out} ({len(edited)} tensors changed). It loads like any other model.{left_out}")
    if verified:
        say(f"Verified: {verified} tensors and all other files, byte for byte.")
    return {
        "out": str(out),
        "strength": strength,
        "source": manifest.source,
        "base": manifest.base.model_dump(),
        "edited": edited,
        "not_copied": manifest.not_copied,
        "verification": verified and {"tensors": verified, "edited_tensors": len(edited)},
    }


def export(
    edit_dir: Annotated[
        Path, typer.Argument(metavar="EDIT_DIR", help="An edit directory written by `convert`, or by `combine`.")
    ],
    format: Annotated[str, typer.Option(help="peft, gguf-lora (llama.cpp, Ollama) or vllm.")],
    out: OutOption,
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
    artifacts.require_free(out, overwrite=overwrite)
    strengths = read_numbers("--strength", strength)
    manifest = artifacts.export_edit(
        edit_dir, format, strengths, out, model=model, overwrite=overwrite, **vars(reading)
    )
    adapters = [{"strength": a.strength, "path": str(out / a.path)} for a in manifest.adapters]
    print_table(["adapter", "strength"], [[str(out / a.path), f"{a.strength:g}"] for a in manifest.adapters])
    for line in ("", *manifest.usage):
        say(line)
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
    pushed = artifacts.push(edit_dir, repo_id, private=private, revision=revision, without_contract=without_contract)
    say(f"Pushed {len(pushed.files)} files: {pushed.url}")
    found = {"repository": pushed.repository, "url": pushed.url, "files": list(pushed.files)}
    if not pushed.local_base:
        return found
    say(
        f"The base is a folder, {pushed.local_base}, and the adapter that was pushed has its name only. Write the "
        "base's Hub id as base_model_name_or_path into adapter_config.json, and as base_model into README.md."
    )
    return {**found, "local_base": pushed.local_base}
