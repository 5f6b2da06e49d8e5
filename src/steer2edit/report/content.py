"""Everything the page's template prints, assembled from the results and the edit."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from steer2edit.artifacts.left_out import LeftOut
from steer2edit.core import WeightEdit
from steer2edit.core.expert_edits import expert_edits
from steer2edit.evaluation import metric_name
from steer2edit.report.blocks import STYLES, shown_blocks
from steer2edit.report.experts import expert_rows, left_out_rows
from steer2edit.report.headline import headline
from steer2edit.report.panels import Panel, diagnosis_panel, expert_panel, head_panel, neuron_panel, tradeoff_panels
from steer2edit.report.replies import reply_sets
from steer2edit.report.run_results import ComparisonResults, RunResults, Verified
from steer2edit.report.search_panels import search_tradeoff_panels, sensitivity_panel
from steer2edit.report.search_text import trial_rows
from steer2edit.report.tables import (
    BlockSummary,
    Cell,
    ConditionTable,
    block_summary,
    cell,
    condition_table,
    diagnosis_rows,
    metric_rows,
    metrics_of,
    top_components,
    validation_rows,
)
from steer2edit.report.text import visible

_KINDS = {"base": "base", "steering": "steered", "edit": "edited"}
_SYMBOLS = {
    "rho_attn": "ρ_attn",
    "rho_mlp": "ρ_mlp",
    "alpha": "α",
    "alpha_mlp": "α_mlp",
    "max_shift": "κ",
    "spare": "gain of sparing",
}


@dataclass(frozen=True)
class Card:
    """One metric of the held-out evaluation in large print: before and after the edit."""

    title: str
    before: Cell | None
    after: Cell


def page_content(run: RunResults, edit: WeightEdit) -> dict[str, Any]:
    """The template's variables. All strings are plain text; the template escapes them."""
    tradeoffs = search_tradeoff_panels(run) if run.is_search else [(panel,) for panel in tradeoff_panels(run)]
    single: dict[str, Panel | None] = {
        "sensitivity": sensitivity_panel(run) if run.is_search else None,
        "attn": head_panel(run, edit),
        "ssm": head_panel(run, edit, "ssm"),
        "mlp": neuron_panel(run, edit),
        "experts": expert_panel(run, edit),
        "diagnosis": diagnosis_panel(run, edit),
    }
    left_out = LeftOut.of(edit.metadata)
    return {
        "run": run,
        "kinds": _KINDS,
        "headline": headline(run, edit),
        "cards": _cards(run),
        "metric_rows": [] if run.is_search else metric_rows(run.held_out.conditions),
        "condition_tables": _condition_tables(run),
        "trial_rows": trial_rows(run),
        "tradeoffs": tradeoffs,
        "panels": single,
        "figures": {panel.name: panel.data for panel in [*chain(*tradeoffs), *single.values()] if panel is not None},
        "validation_titles": [] if run.is_search else [m.short for m in metrics_of(run.validation.conditions)],
        "validation_rows": [] if run.is_search else validation_rows(run.validation.conditions, run.chosen),
        "chosen": _chosen(run),
        "limits": _limits(run),
        "blocks": [(block_summary(edit, block), single[block]) for block in shown_blocks(edit)],
        "top_components": _largest(edit),
        "name_examples": _name_examples(edit),
        "expert_rows": expert_rows(edit),
        "left_out": [visible(sentence) for sentence in left_out.sentences],
        "left_out_rows": left_out_rows(left_out),
        "diagnosis_rows": diagnosis_rows(run.diagnosis),
        "judged": any(e.split_half_cosine is not None or e.auroc is not None for e in run.diagnosis.sites.values()),
        "noisy": [str(site) for site, entry in sorted(run.diagnosis.sites.items()) if entry.noise],
        "verification": [_verification(name, verified) for name, verified in run.verification.items()],
        "reply_sets": reply_sets(run),
        "provenance": provenance(run),
        "settings": list(flat(run.settings)),
    }


def _largest(edit: WeightEdit) -> list[tuple[BlockSummary, list[tuple[str, str, str]]]]:
    """The components of largest |λ| of every block that has an edited one."""
    found = [(block_summary(edit, block), top_components(edit, block)) for block in shown_blocks(edit)]
    return [(summary, rows) for summary, rows in found if rows]


def _name_examples(edit: WeightEdit) -> str:
    """What the names of components mean, in one phrase."""
    examples = [STYLES[block].example for block in shown_blocks(edit)]
    if expert_edits(edit):
        examples.append("L12.E5.N801 is neuron 801 of expert 5 of layer 12")
    return ", ".join(examples)


def _cards(run: RunResults) -> list[Card]:
    base, edited = run.held_out.first("base"), run.edited
    if edited is None:
        return []
    return [
        Card(m.short, None if base is None or m.against_base else cell(base, m), cell(edited, m))
        for m in metrics_of([edited])
    ]


def _condition_tables(run: RunResults) -> dict[str, ConditionTable]:
    """The tables of a search and of a recipe, a condition a row; a run without them has its own."""
    tables: dict[str, ConditionTable] = {}
    if run.is_search:
        shown = [c for c in run.validation.conditions if c.kind != "edit"] + run.front_trials
        tables["held_out"] = condition_table(run, run.held_out.conditions)
        tables["validation"] = condition_table(run, shown)
    if run.data_sets.conditions:
        tables["data_sets"] = condition_table(run, run.data_sets.conditions)
    return tables


def _chosen(run: RunResults) -> str:
    chosen = run.chosen
    values = [
        f"{_SYMBOLS.get(name, name)} = {'off' if value is None else f'{value:.4g}'}"
        for name, value in chosen.hyperparameters.items()
        if value is not None or name in ("rho_attn", "rho_mlp")
    ]
    if chosen.steering_strength is not None and not run.is_search:
        values.append(f"steering strength = {chosen.steering_strength:g}")
    return ", ".join(values)


def _limits(run: RunResults) -> str:
    kinds = {"at most": run.chosen.limits, "at least": run.chosen.floors}
    bounds = [(metric_name(name), words, value) for words, own in kinds.items() for name, value in own.items()]
    return ", ".join(f"{metric.running} {words} {metric.bound(value)}" for metric, words, value in bounds)


def _verification(name: str, verified: Verified) -> tuple[str, bool]:
    """A sentence on a reloaded artifact, and whether it agreed everywhere."""
    agrees = verified.n > 0 and verified.identical == verified.n
    if verified.n == 0:
        return f"{name}: not compared.", False
    ending = "." if agrees else ": it does not behave like the edit that was measured."
    return f"{name}: {verified.identical} of {verified.n} greedy replies identical{ending}", agrees


def provenance(run: RunResults | ComparisonResults) -> list[tuple[str, str]]:
    """What was run, when, and with which versions."""
    rows = {
        "model": run.model.name,
        "revision": run.model.revision,
        "architecture": run.model.model_type,
        "fingerprint": run.model.fingerprint,
        "behaviour": run.behaviour,
        "created": run.created,
        "result schema": str(run.schema_version),
    }
    return [(name, value) for name, value in [*rows.items(), *run.versions.items()] if value]


def flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) pairs."""
    rows: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return rows
