"""How edits, their heads and experts, and audits are printed."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from steer2edit.cli import late
from steer2edit.cli.console import out, print_table, say
from steer2edit.cli.late import artifacts, core, evaluation

if TYPE_CHECKING:
    from torch import Tensor

UNITS = {"attn": "heads", "ssm": "mixer heads", "mlp": "neurons"}


def print_first(told: "evaluation.RefusalDirection | None") -> None:
    """What is to be said before anything else: that an edit lowers refusals."""
    if told is not None and told.sentence:
        say(told.sentence, style="bold red" if told.direction == "lowers" else "bold")


def print_edit(
    edit: "core.WeightEdit", where: Path, told: "evaluation.RefusalDirection | None" = None, *, top: int
) -> dict[str, Any]:
    """Say which way it moves refusals, and show heads, counts by layer and top components; the same as an object."""
    summary = _summarised(edit, top)
    print_first(told)
    _print_heat_map({site: e.magnitude for site, e in edit.sites.items() if site.block != "mlp"})
    blocks = [block for block in UNITS if block in summary["layers"][0]]
    counts = [(str(row["layer"]), [row[b][key] for b in blocks for key in ("up", "down")]) for row in summary["layers"]]
    rows = [[layer, *map(str, own)] for layer, own in counts if any(own)]
    print_table(["layer", *(f"{UNITS[block]} {sign}" for block in blocks for sign in "+−")], rows, "Edited components")
    if experts := summary.get("experts"):
        rows = [
            [
                one["expert"],
                f"{one['sum_of_magnitudes']:.3f}",
                *(f"{one[name]:+.3f}" for name in ("raised", "lowered")),
                *(str(one[name]) for name in ("up", "down", "neurons")),
            ]
            for one in experts[:top]
        ]
        columns = ["expert", "Σ|λ|", "Σ λ > 0", "Σ λ < 0", "neurons +", "neurons −", "of"]
        print_table(columns, rows, "Experts by Σ|λ|" + _of_all(top, len(experts)))
    entries = [[c["component"], f"{c['magnitude']:+.3g}", f"{c['importance']:+.3g}"] for c in summary["top"]]
    print_table(["component", "λ", "g"], entries, "Strongest components")
    print_left_out(edit.metadata)
    say(f"{summary['components']} components of {summary['sites']} sites edited. Edit: {where}")
    refusals = {} if told is None else {"refusals": asdict(told)}
    return {**refusals, "edit": str(where), **summary, "metadata": dict(edit.metadata)}


def _summarised(edit: "core.WeightEdit", top: int) -> dict[str, Any]:
    """JSON-able: counts by layer and sign, by expert if there are any, and the top components."""
    present = {*core.TUNED_BLOCKS, *(site.block for site in edit.sites)}
    none: dict[str, Any] = {b: {"up": 0, "down": 0, "sum_of_magnitudes": 0.0} for b in UNITS if b in present}
    layers: dict[int, dict[str, Any]] = {}
    for site, site_edit in edit.sites.items():
        lam = site_edit.magnitude
        layers.setdefault(site.layer, {"layer": site.layer, **none})[site.block] = {
            "up": int((lam > 0).sum()), "down": int((lam < 0).sum()), "sum_of_magnitudes": float(lam.abs().sum())
        }  # fmt: skip
    edited = [int(site_edit.magnitude.count_nonzero()) for site_edit in edit.sites.values()]
    experts = [
        {"expert": str(one), "neurons": one.neurons, "up": one.strengthened, "down": one.weakened,
         "sum_of_magnitudes": one.mass, "raised": one.raised, "lowered": one.lowered}
        for one in core.edit.top_experts(edit)
    ]  # fmt: skip
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


def _of_all(top: int, count: int) -> str:
    return f" (the first {top} of {count})" if count > top else ""


def _print_heat_map(magnitudes: Mapping["core.Site", "Tensor"]) -> None:
    """λ [n] by layer and head of every site with heads: red raises, blue lowers, one cell a head."""
    largest = max((float(lam.abs().max()) for lam in magnitudes.values()), default=0.0)
    if not largest:
        return say("No attention head is edited.")
    say(f"λ by layer (down) and head (across); red +, blue −, full colour = {largest:.3g}", style="bold")
    mixers = any(site.block == "ssm" for site in magnitudes)
    for site in sorted(magnitudes):
        line = Text(f"{site.layer:>4} {site.block + ' ' if mixers else ''}")
        for value in magnitudes[site].tolist():
            fade = round(255 * (1 - abs(value) / largest))
            colour = f"rgb(255,{fade},{fade})" if value > 0 else f"rgb({fade},{fade},255)"
            sign = "+" if value > 0 else "−" if value < 0 else "·"
            line.append(f"{sign}  ", style=f"black on {colour}" if value else "")
        out().print(line, soft_wrap=True)
    return None


def print_left_out(metadata: Mapping[str, Any]) -> None:
    """A line on experts and a line on modules that an edit, or vectors, leave out; nothing where there are none."""
    for sentence in artifacts.left_out.LeftOut.of(metadata).sentences:
        say(sentence)


def print_audit(audit: "late.audit.Audit", top: int) -> None:
    """The classification, changed tensors, heat map of heads, strongest components, and what else differs."""
    say(audit.classification.sentence, style="bold")
    say(f"{audit.identical} of {audit.compared} tensors are identical to {audit.base}.")
    if audit.match is not None:
        say(audit.match.sentence, style="bold")
    shown = sorted(audit.changes, key=lambda change: -change.size)
    if shown:
        columns = ["tensor", "change", "‖ΔW‖", "‖ΔW‖/‖W‖", "edited", "strongest"]
        title = "Changed tensors, by size" + _of_all(top, len(shown))
        print_table(columns, [_row(change) for change in shown[: max(top, 1)]], title)
    if magnitudes := {site: edit.magnitude for site, edit in audit.sites.items() if site.block != "mlp"}:
        _print_heat_map(magnitudes)
    if largest := sorted((c for change in shown for c in change.components), key=lambda c: -abs(c["magnitude"]))[:top]:
        rows = [[c["component"], f"{c['magnitude']:+.4f}", f"{c['error']:.4f}"] for c in largest]
        print_table(["component", "λ", "±"], rows, "Strongest components")
    found = audit.structure
    for line in (
        *(f"Added tensor: {name}" for name in found.added),
        *(f"Missing tensor: {name}" for name in found.missing),
        *(
            f"Other shape: {name}, {list(before)} in the base, {list(after)} here"
            for name, (before, after) in found.other_shape.items()
        ),
        *(f"Setting {name}: {then!r:.60} → {now!r:.60}" for name, (then, now) in found.settings.items()),
        *(f"Not looked at: {name} ({why})" for name, why in found.unread.items()),
        *(f"File {what}: {name}" for name, what in found.files.items()),
        *(f"Note: {note}" for note in audit.notes),
    ):
        say(line)


def _row(change: "late.audit.TensorChange") -> list[str]:
    names = ", ".join(f"{c['component']} {c['magnitude']:+.2f}" for c in change.components[:3])
    if change.entries:
        names = "at " + ", ".join(f"[{row}, {column}]" for row, column in change.entries[:3])
    kinds = {
        "low-rank": f"rank {change.rank}",
        "entries": f"{change.changed} entries",
        "rounded": f"rounded to {change.rounded_to}",
    }
    other = change.kind.replace("-", " ") + (f" + {change.unexplained} entries" if change.unexplained else "")
    return [
        change.name,
        kinds.get(change.kind, other),
        f"{change.size:.4g}",
        f"{change.relative_size:.2%}",
        str(len(change.components) if change.recovered is not None else change.changed),
        names,
    ]
