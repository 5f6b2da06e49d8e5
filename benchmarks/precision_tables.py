"""Markdown tables of `precision.py`'s result, and putting them between markers of a page."""

from collections.abc import Iterable, Sequence
from typing import Any

BEGIN, END = "<!-- figures: begin, written by benchmarks/precision.py -->", "<!-- figures: end -->"
ALL, EDITED = "all linear layers", "edited projections"
Row = dict[str, Any]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def written(page: str, figures: str) -> str:
    """The page with what is between its markers replaced."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise SystemExit(f"the page has no place for the figures: it needs one {BEGIN!r} and then one {END!r}.")
    return f"{page[: page.index(BEGIN)]}{BEGIN}\n\n{figures}\n\n{page[page.index(END) :]}"


def tables(result: dict[str, Any]) -> str:
    """All tables, with their captions."""
    weights, behaviour, n = result["weights"], result["behaviour"], result["n"]
    edits = list(dict.fromkeys(row["edit"] for row in behaviour if row["edit"]))
    parts = [
        f"SmolLM2-135M-Instruct, {n['sites']} sites, torchao {result['torchao']}."
        if result["model"] == "smollm2"
        else f"{result['model']}, {n['sites']} sites, torchao {result['torchao']}.",
        sizes(result["edits"]),
        "**Weights, edited and then stored**, Q(W + ΔW) against Q(W): error (strength).",
        by_format(weights, "rounded"),
        "**Stored weights, edited and stored again**, Q(Q(W) + ΔW) against Q(W): error (strength).",
        by_format(weights, "requantised"),
        "**One edit against ten of a tenth each, and undoing by subtraction.**",
        repeated(weights),
    ]
    for edit in edits:
        parts += [
            f"**Behaviour, {edit} edit**: KL in nats per token of {n['replies']} replies, 95 % interval. "
            f"{_exact(behaviour, edit)}",
            divergences(behaviour, edit),
        ]
    parts += [
        f"**Refused, of {n['harmful']} held-out harmful requests**, all linear layers stored; 95 % interval.",
        refusals(behaviour, edits),
    ]
    return "\n\n".join(parts)


def sizes(edits: dict[str, Any]) -> str:
    header = (
        "edit",
        "ρ_attn",
        "ρ_mlp",
        "α",
        "strength",
        "edited columns",
        "‖ΔW_:j‖ / ‖W_:j‖: median (10 % to 90 % of columns)",
    )
    rows = []
    for name, facts in edits.items():
        h, size = facts["hyperparameters"], facts["relative_size"]
        ratio = f"{size['median']:.2%} ({size['p10']:.2%} to {size['p90']:.1%})"
        rows.append(
            (
                name,
                *(_number(h[key]) for key in ("rho_attn", "rho_mlp", "alpha")),
                _number(facts["strength"]),
                f"{size['columns']:,}",
                ratio,
            )
        )
    return table(header, rows)


def _number(value: float | None) -> str:
    return "off" if value is None else f"{value:.3g}"


def by_format(weights: list[Row], way: str) -> str:
    """Edits down, formats across."""
    formats = list(dict.fromkeys(row["format"] for row in weights))
    rows = []
    for edit in dict.fromkeys(row["edit"] for row in weights):
        own = {row["format"]: row[way] for row in weights if row["edit"] == edit}
        rows.append((edit, *(f"{own[f]['error']:.3f} ({own[f]['strength']:.2f})" for f in formats)))
    return table(("edit", *formats), rows)


def repeated(weights: list[Row]) -> str:
    kept = [row for row in weights if "in_steps" in row]
    formats = list(dict.fromkeys(row["format"] for row in kept))
    header = ["edit"]
    for name in formats:
        header += [f"{name}: error at once", "in ten steps (strength)", "entries not restored"]
    rows = []
    for edit in dict.fromkeys(row["edit"] for row in kept):
        cells = [edit]
        for row in (next(r for r in kept if r["edit"] == edit and r["format"] == name) for name in formats):
            steps = row["in_steps"]
            cells += [f"{row['rounded']['error']:.3f}", f"{steps['error']:.3f} ({steps['strength']:.2f})"]
            cells.append(f"{row['unrestored']:.1%}")
        rows.append(cells)
    return table(header, rows)


def _exact(behaviour: list[Row], edit: str) -> str:
    (row,) = (row for row in behaviour if row["way"] == "exact" and row["edit"] == edit)
    return f"The exact edit is {interval(row['kl_from_base'])} from the base."


def divergences(behaviour: list[Row], edit: str) -> str:
    """Formats down; the format's own cost, then what storing the edit costs."""
    found = {(r["format"], r["scope"], r["edit"], r["way"]): r for r in behaviour}
    columns = {
        "base ‖ stored base": ((ALL, None, None), "kl_from_base"),
        "exact edit ‖ adapter on stored base": ((ALL, edit, "adapter"), "kl_from_exact"),
        "exact edit ‖ edited, then stored": ((ALL, edit, "rounded"), "kl_from_exact"),
        "exact edit ‖ stored, edited, stored": ((ALL, edit, "requantised"), "kl_from_exact"),
        "adapter on stored base ‖ edited, then stored": ((ALL, edit, "rounded"), "kl_from_adapter"),
        "adapter on stored base ‖ stored, edited, stored": ((ALL, edit, "requantised"), "kl_from_adapter"),
        "edited projections alone: exact edit ‖ edited, then stored": ((EDITED, edit, "rounded"), "kl_from_exact"),
        "… ‖ stored, edited, stored": ((EDITED, edit, "requantised"), "kl_from_exact"),
    }
    formats = dict.fromkeys(r["format"] for r in behaviour if r["scope"])
    rows = [
        (name, *(_cell(found.get((name, *where)), metric) for where, metric in columns.values())) for name in formats
    ]
    return table(("format", *columns), rows)


def refusals(behaviour: list[Row], edits: Sequence[str]) -> str:
    kept = [row for row in behaviour if "refused" in row]
    found = {(row["format"], row["edit"], row["way"]): row for row in kept}
    names = {
        "exact": "",
        "adapter": "adapter",
        "rounded": "edited, then stored",
        "requantised": "stored, edited, again",
    }
    edits = [edit for edit in edits if any(row["edit"] == edit for row in kept)]
    rows = []
    for name in dict.fromkeys(row["format"] for row in kept):
        none = _cell(found.get((name, None, None), found.get((name, None, "exact"))), "refused")
        for way, said in names.items():
            cells = [_cell(found.get((name, edit, way)), "refused") for edit in edits]
            if any(cell != "—" for cell in cells):
                rows.append((name, said, none, *cells))
    return table(("format", "way", "no edit", *(f"{edit} edit" for edit in edits)), rows)


def _cell(row: Row | None, metric: str) -> str:
    if row is None:
        return "—"
    return percent(row[metric]) if metric == "refused" else interval(row[metric])


def interval(estimate: dict[str, Any]) -> str:
    """A mean with its interval, three significant digits."""
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    return f"{value:.3g}" if low is None else f"{value:.3g} [{max(low, 0):.2g}, {high:.2g}]"


def percent(estimate: dict[str, Any]) -> str:
    """A rate with its interval."""
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    return f"{value:.0f} % [{low:.0f}, {high:.0f}]"
