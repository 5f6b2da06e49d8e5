"""What can be edited of a model, and what was: `models`, `inspect`."""

from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from steer2edit.cli import late
from steer2edit.cli.console import print_table, say
from steer2edit.cli.edit_output import UNITS, print_audit, print_edit, print_first
from steer2edit.cli.late import artifacts, evaluation
from steer2edit.cli.options import ModelArgument, OverwriteOption, load
from steer2edit.errors import InvalidValueError
from steer2edit.settings import Loading, Reading


def inspect(
    reading: Reading,
    edit_dir: Annotated[
        Path | None, typer.Argument(metavar="[EDIT_DIR]", help="An edit directory written by `convert`.")
    ] = None,
    base: str | None = None,
    edited: str | None = None,
    edit: Annotated[Path | None, typer.Option(help="Audit: an edit directory to compare with what is found.")] = None,
    directions: Path | None = None,
    model: str | None = None,
    top: Annotated[int, typer.Option(min=0, help="How many components to list, by |lambda|.")] = 20,
    overwrite: OverwriteOption = False,
) -> dict[str, Any]:
    """Show which heads and neurons an edit touches, signed; or audit a checkpoint: what was edited in it, and how.

    An edit that lowers refusals is said to do so first.

    \b
    Example:
    steer2edit inspect edit --model smollm2
    steer2edit inspect --base smollm2 --edited edited-model --edit edit

    Args:
        base: Audit: the model that --edited was made from. A Hub id, directory, or smollm2.
        edited: Audit: the checkpoint to look at, or a LoRA adapter's directory.
        directions: Audit: write u of every rank-1 site to this safetensors file.
        model: Measure what the edit does to refusals, on this model: 48 requests each.
    """
    if base is None and edited is None:
        if edit_dir is None or edit is not None:
            raise InvalidValueError(
                "give an edit directory (steer2edit inspect EDIT_DIR), or what to audit (--base BASE --edited OTHER)."
            )
        artifact = artifacts.load_edit(edit_dir)
        if model is None:
            return print_edit(artifact, edit_dir, evaluation.refusal_direction(artifact), top=top)
        loaded = late.models.load_model(model, **vars(reading), like=[artifact.metadata])
        return print_edit(artifact, edit_dir, evaluation.measured_direction(loaded, artifact), top=top)
    if base is None or edited is None or edit_dir is not None or model is not None:
        raise InvalidValueError(
            "an audit needs both --base BASE and --edited OTHER, and no EDIT_DIR or --model: an edit to compare with "
            "is given as --edit EDIT_DIR."
        )
    if directions is not None:
        artifacts.require_free(directions, overwrite=overwrite)
    given = None if edit is None else artifacts.load_edit(edit)
    found = late.audit.audit(base, edited, given, **vars(reading))
    if directions is not None:
        found.write_directions(directions, overwrite=overwrite)
    told = None
    if given is not None and found.match is not None and found.match.strength is not None:
        told = evaluation.refusal_direction(given, found.match.strength)
    print_first(told)
    print_audit(found, top)
    return found.as_json() | ({} if told is None else {"refusals": asdict(told)})


def models(
    model: ModelArgument,
    loading: Loading,
    out: Annotated[Path | None, typer.Option(help="Write what is found to this layout file, for --layout.")] = None,
    overwrite: OverwriteOption = False,
) -> dict[str, Any]:
    """Show what of a model can be edited, how that was found, and what was proven of it.

    \b
    Example:
    steer2edit models smollm2
    steer2edit models smollm2 --out layout.toml
    """
    if out is not None:
        artifacts.require_free(out, overwrite=overwrite)
    loaded = load(model, loading)
    structure = loaded.structure
    if out is not None:
        with artifacts.atomic_file(out, overwrite=overwrite) as scratch:
            scratch.write_text(structure.layout.to_toml(), encoding="utf-8")
    _print_structure(model, structure, len(loaded.layers))
    if out is not None:
        say(f"Layout: {out}")
    proof = (
        None
        if structure.heads_seen is None
        else {
            "silent_layers": len(loaded.layers),
            "effective_sites": len(structure.sites),
            "heads_seen_in": [str(site) for site in structure.heads_seen],
        }
    )
    sites = {
        str(site): {
            "module": module.name,
            "shape": list(module.shape),
            UNITS[site.block].replace(" ", "_"): module.component_count,
            "columns_each": module.component_width,
            **({"experts": vars(module.sizes)} if module.sizes else {}),
        }
        for site, module in structure.sites.items()
    }
    return {
        "schema_version": 1, "model": model, "layers": structure.path, "sites": sites,
        "left_out": dict(structure.left_out), "proof": proof, "layout": structure.layout.to_toml(),
    }  # fmt: skip


def _print_structure(model: str, structure: "late.models.ModelSites", layer_count: int) -> None:
    alike: dict[tuple[str, ...], list[int]] = {}
    for site, module in structure.sites.items():
        d, m = module.shape
        place = module.name.removeprefix(f"{structure.path}.{site.layer}.")
        alike.setdefault((site.block, place, f"{d} × {m}", _counted(module)), []).append(site.layer)
    rows = []
    for row, layers in alike.items():  # 0, 1, 2, 5 → 0–2, 5
        runs = ([layer for _, layer in own] for _, own in groupby(enumerate(layers), lambda pair: pair[1] - pair[0]))
        rows.append([", ".join("–".join(map(str, dict.fromkeys((run[0], run[-1])))) for run in runs), *row])
    print_table(["layers", "site", "module", "shape", "components"], rows, f"{structure.path} of {model}")
    reasons: dict[str, list[str]] = {}
    for name, why in structure.left_out.items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        say(f"Left out: {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}, because {why}.")
    if structure.heads_seen is None:
        return say("Nothing was proven: the weights are not in memory.")
    places = ", ".join(map(str, structure.heads_seen))
    return say(
        f"Proven: with all of these silent, each of the {layer_count} layers hands the residual stream on as it was; "
        f"each of the {len(structure.sites)} sites reaches it. "
        + (f"One head's columns carry it alone (seen in {places})." if places else "Heads cannot be told apart.")
    )


def _counted(module: "late.models.SiteModule") -> str:
    sizes = module.sizes
    if sizes is not None:
        shared = f" and a shared one of {sizes.shared}" if sizes.shared else ""
        return f"{sizes.routed} experts of {sizes.width} neurons{shared}"
    width = f" of {module.component_width} columns" if module.component_width > 1 else ""
    return f"{module.component_count} {UNITS[module.site.block]}{width}"
