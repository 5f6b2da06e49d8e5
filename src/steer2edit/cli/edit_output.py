"""How edits, their heads and experts, and audits are printed."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from steer2edit.cli import late
from steer2edit.cli.console import out, print_table, say
from steer2edit.cli.late import artifacts, core, editing, evaluation, models

if TYPE_CHECKING:
    from torch import Tensor

UNITS = {"attn": "heads", "ssm": "mixer heads", "mlp": "neurons"}


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
) -> dict[str, Any]:
    """Say which way it moves refusals, and show heads, counts by layer and top components; the same as an object."""
    summary = summarise(edit, top)
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
    refusals = {} if told is None else {"refusals": told.to_json()}
    return {**refusals, "edit": str(where), **summary, "metadata": dict(edit.metadata)}


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


def print_heat_map(magnitudes: Mapping["core.Site", "Tensor"]) -> None:
    """λ [n] by layer and head of every site with heads: red raises, blue lowers, one cell a head."""
    largest = max((float(lam.abs().max()) for lam in magnitudes.values()), default=0.0)
    if not largest:
        return say("No attention head is edited.")
    say(f"λ by layer (down) and head (across); red +, blue −, full colour = {largest:.3g}", style="bold")
    mixers = any(site.block == "ssm" for site in magnitudes)
    for site in sorted(magnitudes):
        line = Text(f"{site.layer:>4} {site.block + ' ' if mixers else ''}")
        for value in magnitudes[site].tolist():
            share = abs(value) / largest
            fade = round(255 * (1 - share))
            colour = f"rgb(255,{fade},{fade})" if value > 0 else f"rgb({fade},{fade},255)"
            line.append(
                "·  " if value == 0 else ("+  " if value > 0 else "−  "), style=f"black on {colour}" if value else ""
            )
        out().print(line, soft_wrap=True)
    return None


def experts_json(edit: "core.WeightEdit") -> list[dict[str, Any]]:
    """Every expert that an edit touches, the largest Σ|λ| first; empty for a dense model."""
    return [
        {
            "expert": str(expert),
            "neurons": expert.neurons,
            "up": expert.strengthened,
            "down": expert.weakened,
            "sum_of_magnitudes": expert.mass,
            "raised": expert.raised,
            "lowered": expert.lowered,
        }
        for expert in core.expert_edits.top_experts(edit)
    ]


def print_experts(experts: list[dict[str, Any]], top: int) -> None:
    """The table of the experts that carry an edit; nothing for a dense model."""
    if not experts:
        return
    rows = [
        [
            e["expert"],
            f"{e['sum_of_magnitudes']:.3f}",
            *(f"{e[name]:+.3f}" for name in ("raised", "lowered")),
            *(str(e[name]) for name in ("up", "down", "neurons")),
        ]
        for e in experts[:top]
    ]
    title = "Experts by Σ|λ|" + (f" (the first {top} of {len(experts)})" if len(experts) > top else "")
    print_table(["expert", "Σ|λ|", "Σ λ > 0", "Σ λ < 0", "neurons +", "neurons −", "of"], rows, title)


def print_left_out(metadata: Mapping[str, Any]) -> None:
    """A line on experts and a line on modules that an edit, or vectors, leave out; nothing where there are none."""
    for sentence in artifacts.left_out.LeftOut.of(metadata).sentences:
        say(sentence)


def tokens_by_expert(model: "models.LanguageModel", vectors: "core.SteeringVectors") -> dict[str, int]:
    """How many tokens each expert was given over both classes, by its name, `L3.E5`; empty for a dense model."""
    tokens: dict[str, int] = {}
    for site, means in vectors.sites.items():
        sizes = model.sites[site].sizes
        if sizes is not None and (seen := means.seen) is not None:
            tokens |= {f"L{site.layer}.{name}": n for name, n in zip(sizes.names, seen, strict=True)}
    return tokens


def print_expert_tokens(tokens: Mapping[str, int]) -> None:
    """One line on all mixtures: how many experts, and whether enough tokens reached them."""
    if not tokens:
        return
    fewest = min(tokens, key=lambda name: tokens[name])
    too_few = sum(n < editing.MIN_TOKENS for n in tokens.values())
    layers = len({name.partition(".")[0] for name in tokens})
    verdict = f"{too_few} were given fewer than {editing.MIN_TOKENS}, and convert leaves those out"
    layers_named, verdict = artifacts.left_out.counted(layers, "layer"), verdict if too_few else "all can be edited"
    say(f"Experts: {len(tokens)} in {layers_named}; fewest tokens: {tokens[fewest]} ({fewest}); {verdict}.")


def print_audit(audit: "late.audit.Audit", top: int) -> None:
    """The classification, changed tensors, heat map of heads, strongest components, and what else differs."""
    say(audit.classification.sentence, style="bold")
    say(f"{audit.identical} of {audit.compared} tensors are identical to {audit.base}.")
    if audit.match is not None:
        say(audit.match.sentence, style="bold")
    shown = sorted(audit.changes, key=lambda change: -change.size)
    if shown:
        print_table(
            ["tensor", "change", "‖ΔW‖", "‖ΔW‖/‖W‖", "edited", "strongest"],
            [_row(change) for change in shown[: max(top, 1)]],
            "Changed tensors, by size" + (f" (the first {top} of {len(shown)})" if len(shown) > top else ""),
        )
    magnitudes = {site: edit.magnitude for site, edit in audit.sites.items() if site.block != "mlp"}
    if magnitudes:
        print_heat_map(magnitudes)
    found = sorted((c for change in shown for c in change.components), key=lambda c: -abs(c["magnitude"]))[:top]
    if found:
        rows = [[c["component"], f"{c['magnitude']:+.4f}", f"{c['error']:.4f}"] for c in found]
        print_table(["component", "λ", "±"], rows, "Strongest components")
    _print_the_rest(audit)


def _row(change: "late.audit.TensorChange") -> list[str]:
    strongest = change.components
    names = ", ".join(f"{c['component']} {c['magnitude']:+.2f}" for c in strongest[:3])
    if change.entries:
        names = "at " + ", ".join(f"[{row}, {column}]" for row, column in change.entries[:3])
    return [
        change.name,
        _kind(change),
        f"{change.size:.4g}",
        f"{change.relative_size:.2%}",
        str(len(strongest)) if change.recovered is not None else str(change.changed),
        names,
    ]


def _kind(change: "late.audit.TensorChange") -> str:
    extra = f" + {change.unexplained} entries" if change.unexplained else ""
    if change.kind == "low-rank":
        return f"rank {change.rank}"
    if change.kind == "entries":
        return f"{change.changed} entries"
    if change.kind == "rounded":
        return f"rounded to {change.rounded_to}"
    return change.kind.replace("-", " ") + extra


def _print_the_rest(audit: "late.audit.Audit") -> None:
    found = audit.structure
    for what, tensors in (("Added", found.added), ("Missing", found.missing)):
        for name in tensors:
            say(f"{what} tensor: {name}")
    for name, (before, after) in found.other_shape.items():
        say(f"Other shape: {name}, {list(before)} in the base, {list(after)} here")
    for name, values in found.settings.items():
        say(f"Setting {name}: {values[0]!r:.60} → {values[1]!r:.60}")
    for name, why in audit.unread.items():
        say(f"Not looked at: {name} ({why})")
    for file in audit.files:
        say(f"File {file.what}: {file.name}")
    for note in audit.notes:
        say(f"Note: {note}")
