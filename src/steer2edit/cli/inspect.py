"""`steer2edit inspect`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steer2edit.cli.options import EditArgument, JsonOption

if TYPE_CHECKING:
    from steer2edit.core import WeightEdit


def inspect(
    edit_dir: EditArgument,
    top: Annotated[int, typer.Option(min=0, help="How many components to list, by |λ|.")] = 20,
    json_output: JsonOption = False,
) -> None:
    """Show which heads and neurons an edit touches, signed, per layer, and the strongest of them.

    Example: steer2edit inspect edit
    """
    from steer2edit.artifacts import load_edit

    print_edit(load_edit(edit_dir), edit_dir, top=top, as_json=json_output)


def print_edit(edit: "WeightEdit", where: Path, *, top: int, as_json: bool) -> None:
    """The edit for people (heat map of heads, neurons by layer, top components) or as JSON."""
    from steer2edit.cli.console import print_json, print_table, say

    summary = summarise(edit, top)
    if as_json:
        return print_json({"edit": str(where), **summary, "metadata": dict(edit.metadata)})
    _print_heat_map(edit)
    rows = [
        [str(layer["layer"]), *(f"{layer[block][key]}" for block in ("attn", "mlp") for key in ("up", "down"))]
        for layer in summary["layers"]
        if any(layer[block][key] for block in ("attn", "mlp") for key in ("up", "down"))
    ]
    print_table(["layer", "heads +", "heads −", "neurons +", "neurons −"], rows, "Edited components")
    entries = [[c["component"], f"{c['magnitude']:+.3f}", f"{c['importance']:+.3f}"] for c in summary["top"]]
    print_table(["component", "λ", "g"], entries, "Strongest components")
    say(f"{summary['components']} components of {summary['sites']} sites edited. Edit: {where}")
    return None


def summarise(edit: "WeightEdit", top: int) -> dict[str, Any]:
    """JSON-able summary: counts by layer and sign, and the top components."""
    layers: dict[int, dict[str, Any]] = {}
    for site, site_edit in edit.sites.items():
        empty = {"layer": site.layer, "attn": _counts(), "mlp": _counts()}
        lam = site_edit.magnitude
        layers.setdefault(site.layer, empty)[site.block] = _counts(
            int((lam > 0).sum()), int((lam < 0).sum()), float(lam.abs().sum())
        )
    components = list(edit.components())
    return {
        "hyperparameters": _plain(edit.metadata.get("hyperparameters", {})),
        "components": len(components),
        "sites": len({component.site for component, _, _ in components}),
        "layers": [layers[layer] for layer in sorted(layers)],
        "top": [
            {"component": str(component), "magnitude": magnitude, "importance": importance}
            for component, magnitude, importance in edit.top_components(top)
        ],
    }


def _counts(up: int = 0, down: int = 0, total: float = 0.0) -> dict[str, Any]:
    return {"up": up, "down": down, "sum_of_magnitudes": total}


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    return dict(value)


def _print_heat_map(edit: "WeightEdit") -> None:
    """λ by layer and head: red raises, blue lowers, one cell a head."""
    from rich.text import Text

    from steer2edit.cli.console import OUT, say

    rows = {site.layer: e.magnitude for site, e in edit.sites.items() if site.block == "attn"}
    largest = max((float(lam.abs().max()) for lam in rows.values()), default=0.0)
    if not largest:
        return say("No attention head is edited.")
    say(f"λ by layer (down) and head (across); red +, blue −, full colour = {largest:.2f}", style="bold")
    for layer, lam in rows.items():
        line = Text(f"{layer:>4} ")
        for value in lam.tolist():
            share = abs(value) / largest
            fade = round(255 * (1 - share))
            colour = f"rgb(255,{fade},{fade})" if value > 0 else f"rgb({fade},{fade},255)"
            line.append(
                "·  " if value == 0 else ("+  " if value > 0 else "−  "), style=f"black on {colour}" if value else ""
            )
        OUT.print(line)
    return None
