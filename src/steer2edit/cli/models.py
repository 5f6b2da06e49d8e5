"""`steer2edit models`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from steer2edit.cli import late
from steer2edit.cli.console import print_json, print_table, say
from steer2edit.cli.inspect import UNITS
from steer2edit.cli.late import artifacts
from steer2edit.cli.options import JsonOption, ModelArgument, OverwriteOption, load
from steer2edit.progress import show_progress
from steer2edit.settings import Loading


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
    return _print(model, structure, out)


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


def _print(model: str, structure: "late.models.ModelSites", out: Path | None) -> None:
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
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return ", ".join("–".join(map(str, ends)) for ends in found)
