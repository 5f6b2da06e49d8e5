"""The page of a run: results and the weight edit that the run chose, as the variables of its template."""

import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from steer2edit.artifacts.left_out import LeftOut
from steer2edit.core import WeightEdit
from steer2edit.core.expert_edits import expert_edits
from steer2edit.evaluation import metric_name
from steer2edit.report.answers import answers, extent, tradeoff_sentences
from steer2edit.report.figures import shown_blocks
from steer2edit.report.html import rendered, write_page
from steer2edit.report.panels import SYMBOLS, diagnosis_panel, edit_panels, sensitivity_panel, tradeoff_panels
from steer2edit.report.replies import first_replies, reply_sets
from steer2edit.report.run_results import ComparisonResults, RunResults, read_results
from steer2edit.report.tables import diagnosis_table, largest_components, largest_experts, metric_table, run_tables
from steer2edit.report.text import visible


def render_report(results: Mapping[str, Any], edit: WeightEdit) -> str:
    """The report as one HTML page that works offline.

    Every text of the results is untrusted: it is escaped in HTML, in embedded JSON and in plotly's labels, and the
    page's content security policy allows no request and no script but its own.

    Args:
        results: the JSON of a run (docs/formats.md).
        edit: the weight edit that the run chose.

    Raises:
        DataError: the results are malformed, or of another schema version.
    """
    return rendered("report", _content(read_results(results), edit))


def write_report(results: Mapping[str, Any], edit: WeightEdit, path: str | Path, *, overwrite: bool = False) -> None:
    """Write the page of `render_report`, complete or not at all; missing parents are made.

    Raises:
        DataError: the results are malformed.
        ArtifactError: the file exists and is not to be overwritten, or it cannot be written.
    """
    write_page(render_report(results, edit), path, overwrite=overwrite)


def _content(run: RunResults, edit: WeightEdit) -> dict[str, Any]:
    """All strings are plain text; the template escapes them."""
    tradeoffs, panels = tradeoff_panels(run), edit_panels(run, edit)
    found = {"sensitivity": sensitivity_panel(run) if run.is_search else None, "diagnosis": diagnosis_panel(run, edit)}
    panels |= {name: panel for name, panel in found.items() if panel is not None}
    blocks, left_out = shown_blocks(edit), LeftOut.of(edit.metadata)
    largest = [largest_components(edit, one) for one in blocks.values()]
    shown, sets = tradeoffs[0][-1] if tradeoffs else None, reply_sets(run)
    others = [tuple(panel for panel in own if panel is not shown) for own in tradeoffs]
    examples = [one.style.example for one in blocks.values()]
    return {
        "run": run,
        "answers": answers(run),
        "first_replies": first_replies(sets),
        "measured": metric_table(run),
        "shown": shown,
        "extent": extent(edit),
        "tables": run_tables(run),
        "tradeoff_sentences": tradeoff_sentences(run),
        "trial_rows": trial_rows(run),
        "tradeoffs": [own for own in others if own],
        "panels": panels,
        "figures": {panel.name: panel.data for panel in [*chain(*tradeoffs), *panels.values()]},
        "chosen": _chosen(run),
        "limits": ", ".join(
            f"{metric_name(name).running} {words} {metric_name(name).bound(value)}"
            for words, own in (("at most", run.chosen.limits), ("at least", run.chosen.floors))
            for name, value in own.items()
        ),
        "measured_effects": edit.metadata.get("rules", {}).get("importance") == "effect",
        "blocks": [(one, panels.get(block)) for block, one in blocks.items()],
        "largest": [table for table in largest if table.rows],
        "name_examples": examples + ["L12.E5.N801 is neuron 801 of expert 5 of layer 12"] * bool(expert_edits(edit)),
        "experts": largest_experts(edit),
        "left_out": [visible(sentence) for sentence in left_out.sentences],
        "left_out_rows": [(str(s), left_out.experts_of(s)) for s in dict.fromkeys(s for s, _ in left_out.tokens)],
        "diagnosis": diagnosis_table(run.diagnosis),
        "judged": any(e.split_half_cosine is not None or e.auroc is not None for e in run.diagnosis.sites.values()),
        "noisy": [str(site) for site, entry in sorted(run.diagnosis.sites.items()) if entry.noise],
        "reply_sets": sets,
        "provenance": provenance(run),
        "settings": flat(run.settings),
    }


def _chosen(run: RunResults) -> str:
    values = [
        f"{SYMBOLS.get(name, name)} = {'off' if value is None else f'{value:.4g}'}"
        for name, value in run.chosen.hyperparameters.items()
        if value is not None or name in ("rho_attn", "rho_mlp")
    ]
    if run.chosen.steering_strength is not None and not run.is_search:
        values.append(f"steering strength = {run.chosen.steering_strength:g}")
    return ", ".join(values)


def trial_rows(run: RunResults) -> list[tuple[str, str]]:
    """(how trials ended, how many) of a search, and the sum."""
    ended = {name: count for name, count in run.trials.items() if name != "tried"}
    ordered = sorted(ended.items(), key=lambda row: (row[0] != "complete", -row[1]))
    words = [("measured on all validation items" if name == "complete" else name, f"{n}") for name, n in ordered]
    return [*words, ("tried in all", f"{run.trials.get('tried', 0)}")]


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
