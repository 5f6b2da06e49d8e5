"""What can be edited of a model, and what was: `models`, `inspect`; and how every command prints an edit."""

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from steer2edit.cli import late
from steer2edit.cli.console import print_json, print_table, say
from steer2edit.cli.edit_output import experts_json, print_audit, print_experts, print_heat_map, print_left_out
from steer2edit.cli.late import artifacts, core, evaluation
from steer2edit.cli.options import JsonOption, ModelArgument, OverwriteOption, load
from steer2edit.errors import InvalidValueError
from steer2edit.progress import show_progress
from steer2edit.settings import Loading, Reading

UNITS = {"attn": "heads", "ssm": "mixer heads", "mlp": "neurons"}


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
    json_output: JsonOption = False,
) -> None:
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
            told = evaluation.refusal_direction(artifact)
        else:
            with show_progress():
                loaded = late.models.load_model(model, **vars(reading), like=[artifact.metadata])
                told = evaluation.measured_direction(loaded, artifact)
        return print_edit(artifact, edit_dir, told, top=top, as_json=json_output)
    if base is None or edited is None or edit_dir is not None or model is not None:
        raise InvalidValueError(
            "an audit needs both --base BASE and --edited OTHER, and no EDIT_DIR or --model: an edit to compare with "
            "is given as --edit EDIT_DIR."
        )
    return _audit(
        base, edited, edit, directions, top=top, reading=reading, overwrite=overwrite, as_json=json_output
    )  # fmt: skip


def _audit(
    base: str, edited: str, edit: Path | None, directions: Path | None, *, top: int, reading: Reading,
    overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    if directions is not None:
        artifacts.require_free(directions, overwrite=overwrite)
    given = None if edit is None else artifacts.load_edit(edit)
    with show_progress():
        found = late.audit.audit(base, edited, given, **vars(reading))
    if directions is not None:
        found.write_directions(directions, overwrite=overwrite)
    told = None
    if given is not None and found.match is not None and found.match.strength is not None:
        told = evaluation.refusal_direction(given, found.match.strength)
    if as_json:
        return print_json(found.as_json() | ({} if told is None else {"refusals": told.to_json()}))
    print_first(told)
    return print_audit(found, top)


def print_first(told: "evaluation.RefusalDirection | None") -> None:
    """What is to be said before anything else: that an edit lowers refusals."""
    if told is not None and told.sentence:
        say(told.sentence, style="bold red" if told.direction == "lowers" else "bold")


def print_edit(
    edit: "core.WeightEdit",
    where: Path,
    told: "evaluation.RefusalDirection | None" = None,
    *,
    top: int,
    as_json: bool,
) -> None:
    """Which way it moves refusals; then the edit for people (heads, counts by layer, top components) or as JSON."""
    summary = summarise(edit, top)
    if as_json:
        refusals = {} if told is None else {"refusals": told.to_json()}
        return print_json({**refusals, "edit": str(where), **summary, "metadata": dict(edit.metadata)})
    print_first(told)
    print_heat_map({site: e.magnitude for site, e in edit.sites.items() if site.block != "mlp"})
    blocks = [block for block in UNITS if block in summary["layers"][0]]
    rows = [
        [str(layer["layer"]), *(f"{layer[block][key]}" for block in blocks for key in ("up", "down"))]
        for layer in summary["layers"]
        if any(layer[block][key] for block in blocks for key in ("up", "down"))
    ]
    print_table(["layer", *(f"{UNITS[block]} {sign}" for block in blocks for sign in "+−")], rows, "Edited components")
    print_experts(summary.get("experts", []), top)
    entries = [[c["component"], f"{c['magnitude']:+.3g}", f"{c['importance']:+.3g}"] for c in summary["top"]]
    print_table(["component", "λ", "g"], entries, "Strongest components")
    print_left_out(edit.metadata)
    say(f"{summary['components']} components of {summary['sites']} sites edited. Edit: {where}")
    return None


def summarise(edit: "core.WeightEdit", top: int) -> dict[str, Any]:
    """JSON-able summary: counts by layer and sign, by expert if there are any, and the top components."""
    present = {*core.TUNED_BLOCKS, *(site.block for site in edit.sites)}
    none: dict[str, Any] = {
        block: {"up": 0, "down": 0, "sum_of_magnitudes": 0.0} for block in UNITS if block in present
    }
    layers: dict[int, dict[str, Any]] = {}
    for site, site_edit in edit.sites.items():
        lam = site_edit.magnitude
        layers.setdefault(site.layer, {"layer": site.layer, **none})[site.block] = {
            "up": int((lam > 0).sum()), "down": int((lam < 0).sum()), "sum_of_magnitudes": float(lam.abs().sum())
        }  # fmt: skip
    edited = [int(site_edit.magnitude.count_nonzero()) for site_edit in edit.sites.values()]
    experts = experts_json(edit)
    return {
        "hyperparameters": dict(edit.metadata.get("hyperparameters", {})),
        "components": sum(edited),
        "sites": sum(count > 0 for count in edited),
        "layers": [layers[layer] for layer in sorted(layers)],
        **({"experts": experts} if experts else {}),
        "top": [
            {"component": str(component), "magnitude": magnitude, "importance": importance}
            for component, magnitude, importance in edit.top_components(top)
        ],
    }


def models(
    model: ModelArgument,
    loading: Loading,
    out: Annotated[Path | None, typer.Option(help="Write what is found to this layout file, for --layout.")] = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Show what of a model can be edited, how that was found, and what was proven of it.

    \b
    Example:
    steer2edit models smollm2
    steer2edit models smollm2 --out layout.toml
    """
    if out is not None:
        artifacts.require_free(out, overwrite=overwrite)
    with show_progress():
        structure = load(model, loading).structure
    if out is not None:
        with artifacts.atomic_file(out, overwrite=overwrite) as scratch:
            scratch.write_text(structure.layout.to_toml(), encoding="utf-8")
    if json_output:
        return print_json({"schema_version": 1, "model": model, **_described(structure)})
    return _print_structure(model, structure, out)


def _described(structure: "late.models.ModelSites") -> dict[str, Any]:
    proof = structure.proof and {
        "silent_layers": structure.proof.layers,
        "effective_sites": structure.proof.sites,
        "heads_seen_in": [str(site) for site in structure.proof.heads],
    }
    return {
        "layers": structure.path,
        "sites": {
            str(site): {"module": module.name, "shape": list(module.shape), **_components(module)}
            for site, module in structure.sites.items()
        },
        "left_out": dict(structure.left_out),
        "proof": proof,
        "layout": structure.layout.to_toml(),
    }


def _components(module: "late.models.SiteModule") -> dict[str, Any]:
    unit = UNITS[module.site.block].replace(" ", "_")
    sizes = {} if module.sizes is None else {"experts": vars(module.sizes)}
    return {unit: module.component_count, "columns_each": module.component_width, **sizes}


def _print_structure(model: str, structure: "late.models.ModelSites", out: Path | None) -> None:
    alike: dict[tuple[str, ...], list[int]] = {}
    for site, module in structure.sites.items():
        d, m = module.shape
        place = module.name.removeprefix(f"{structure.path}.{site.layer}.")
        alike.setdefault((site.block, place, f"{d} × {m}", _counted(module)), []).append(site.layer)
    rows = [[_ranges(layers), *row] for row, layers in alike.items()]
    print_table(["layers", "site", "module", "shape", "components"], rows, f"{structure.path} of {model}")
    reasons: dict[str, list[str]] = {}
    for name, why in structure.left_out.items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        say(f"Left out: {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}, because {why}.")
    proof = structure.proof
    if proof is None:
        say("Nothing was proven: the weights are not in memory.")
    else:
        places = ", ".join(map(str, proof.heads))
        say(
            f"Proven: with all of these silent, each of the {proof.layers} layers hands the residual stream on as it "
            f"was; each of the {proof.sites} sites reaches it. "
            + (f"One head's columns carry it alone (seen in {places})." if places else "Heads cannot be told apart.")
        )
    if out is not None:
        say(f"Layout: {out}")


def _counted(module: "late.models.SiteModule") -> str:
    sizes = module.sizes
    if sizes is not None:
        shared = f" and a shared one of {sizes.shared}" if sizes.shared else ""
        return f"{sizes.routed} experts of {sizes.width} neurons{shared}"
    width = f" of {module.component_width} columns" if module.component_width > 1 else ""
    return f"{module.component_count} {UNITS[module.site.block]}{width}"


def _ranges(numbers: Iterable[int]) -> str:
    """0, 1, 2, 5 → 0–2, 5."""
    runs = ([n for _, n in own] for _, own in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]))
    return ", ".join("–".join(map(str, dict.fromkeys((run[0], run[-1])))) for run in runs)
