"""What `steer2edit inspect --base` prints: an audit for people."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steer2edit.audit import Audit, TensorChange
    from steer2edit.audit.other_files import FileChange

_MOST_SETTINGS = 6
_LONGEST_VALUE = 60


def print_audit(audit: "Audit", top: int) -> None:
    """The classification, changed tensors, heat map of heads, strongest components, and what else differs."""
    from steer2edit.cli.console import print_table, say
    from steer2edit.cli.heat_map import print_heat_map

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


def _row(change: "TensorChange") -> list[str]:
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


def _kind(change: "TensorChange") -> str:
    extra = f" + {change.unexplained} entries" if change.unexplained else ""
    if change.kind == "low-rank":
        return f"rank {change.rank}"
    if change.kind == "entries":
        return f"{change.changed} entries"
    if change.kind == "rounded":
        return f"rounded to {change.rounded_to}"
    return change.kind.replace("-", " ") + extra


def _print_the_rest(audit: "Audit") -> None:
    from steer2edit.cli.console import say

    found = audit.structure
    for what, tensors in (("Added", found.added), ("Missing", found.missing)):
        for name, copy in tensors.items():
            say(f"{what} tensor: {name}" + (f" (a copy of {copy})" if copy else ""))
    for name, (before, after) in found.other_shape.items():
        say(f"Other shape: {name}, {list(before)} in the base, {list(after)} here")
    for name, why in audit.unread.items():
        say(f"Not looked at: {name} ({why})")
    for file in audit.files:
        say(f"File {file.what}: {file.name}{_settings(file)}")
    for note in audit.notes:
        say(f"Note: {note}")


def _settings(file: "FileChange") -> str:
    def brief(value: object) -> str:
        text = repr(value)
        return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."

    shown = [f"{key}: {brief(a)} → {brief(b)}" for key, (a, b) in list(file.settings.items())[:_MOST_SETTINGS]]
    more = len(file.settings) - len(shown)
    return f" ({'; '.join(shown)}{f'; {more} more' if more > 0 else ''})" if shown else ""
