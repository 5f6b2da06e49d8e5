"""The page of a run: results and the weight edit that the run chose, as the variables of its template.

The first screen answers by paired differences: did the edit work, what did it cost, is it ahead of steering?
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

from steer2edit.artifacts.left_out import LeftOut
from steer2edit.core import Block, WeightEdit
from steer2edit.core.edit import expert_edits, shown_blocks, top_experts
from steer2edit.estimates import NOT_SCORED, Condition, Estimate, Notation
from steer2edit.evaluation import Metric, metric_name
from steer2edit.evaluation.statistics import paired
from steer2edit.report.figures import diagnosis_figure, edit_figures
from steer2edit.report.html import rendered, write_page
from steer2edit.report.run_results import ComparisonResults, RunResults, read_results
from steer2edit.report.tradeoff import beyond_edge, tradeoff_figures
from steer2edit.steering.diagnosis import Diagnosis
from steer2edit.tables import visible

_TOP = 20
_PLAIN, _SIGNED = Notation(".3f", typeset=True), Notation(".3f", signed=True, typeset=True)
_SIGNED_4 = Notation(".4f", signed=True, typeset=True)
_WORDS: dict[str, dict[bool | None, str]] = {
    "refused": {True: "refused", False: "answered", None: NOT_SCORED},
    "shown": {True: "shown", False: "not shown", None: NOT_SCORED},
}
"""By what a set's verdicts are of, the last word of its metric: what a reply is called."""
_FIRST = 3
"""Exchanges on the first screen."""

Rows = list[list[str]]
Verdict = Literal["good", "bad", "open"]
"""What colour says: better, worse, or not to be told."""


def render_report(results: Mapping[str, Any], edit: WeightEdit) -> str:
    """The report as one HTML page that works offline, of the JSON of a run (docs/formats.md) and the edit it chose.

    Every text of the results is untrusted: it is escaped in HTML, in embedded JSON and in plotly's labels, and the
    page's content security policy allows no request and no script but its own.
    """
    run = read_results(results)
    planes, layers = tradeoff_figures(run), 1 + max(site.layer for site in {*edit.sites, *run.diagnosis.sites})
    figures = {**dict(chain.from_iterable(own.items() for own in planes.values())), **edit_figures(edit, layers)}
    if run.diagnosis.sites:
        figures["diagnosis"] = diagnosis_figure(run.diagnosis, layers)
    tabs = {plane: list(own) for plane, own in planes.items()}
    shown = next(((plane, names.pop()) for plane, names in tabs.items()), None)  # the last figure of the first plane
    content = {
        "run": run,
        "shown": shown,
        "tabs": {plane: names for plane, names in tabs.items() if names},
        "beyond_edge": beyond_edge,
        "trial_rows": trial_rows(run),
        "provenance": provenance(run),
        "settings": flat(run.settings),
        **_answers(run),
        **_of_edit(edit),
        **_of_diagnosis(run.diagnosis),
    }
    return rendered("report", figures, content)


def _answers(run: RunResults) -> dict[str, Any]:
    """What the page says of the edit on held-out prompts."""
    edited, sets = run.edited, reply_sets(run)
    return {
        "edited": edited,
        "worked": edited and change(run, edited, run.base, run.attribute),
        "cost": edited and costs(run, edited),
        "ahead": edited and ahead(run, edited),
        "reply_sets": sets,
        "first_replies": first_replies(sets),
    }


def _of_edit(edit: WeightEdit) -> dict[str, Any]:
    blocks, experts, left_out = shown_blocks(edit), expert_edits(edit), LeftOut.of(edit.metadata)
    return {
        "edit": edit,
        "measured_effects": edit.metadata.get("rules", {}).get("importance") == "effect",
        "blocks": blocks,
        "largest": {block: largest_components(edit, block) for block in blocks},
        "experts": experts,
        "mixtures": len({expert.site for expert in experts}),
        "largest_experts": largest_experts(edit),
        "left_out": [visible(sentence) for sentence in left_out.sentences],
        "left_out_rows": [(str(s), left_out.experts_of(s)) for s in dict.fromkeys(s for s, _ in left_out.tokens)],
    }


def write_report(results: Mapping[str, Any], edit: WeightEdit, path: str | Path, *, overwrite: bool = False) -> None:
    """Write the page of `render_report`, complete or not at all; an ArtifactError where one must not be replaced."""
    write_page(render_report(results, edit), path, overwrite=overwrite)


@dataclass(frozen=True)
class Change:
    """How far a metric is from what it is compared with."""

    metric: Metric
    found: Estimate
    verdict: Verdict
    # what it is measured against, of steering: interpolated at the edit's own drift (`curve`), or at the nearest
    # strength that was measured (`nearest`)
    at: Literal["", "curve", "nearest"] = ""


def verdict(found: Estimate, direction: int = 1) -> Verdict:
    """Good or bad where the interval lies on one side of 0; `direction` is +1 where more is wanted."""
    if not (found.above(0) or found.below(0)):
        return "open"
    return "good" if found.above(0) == (direction > 0) else "bad"


def change(run: RunResults, after: Condition, before: Condition | None, name: str) -> Change:
    """The paired difference of a metric; without values by item its estimate alone, which no interval goes with."""
    found = Estimate(None, None, None, 0)
    if before is not None and after.scored(name) and before.scored(name):
        own, other = after.values.get(name, ()), before.values.get(name, ())
        gap = (after.value(name) or 0.0) - (before.value(name) or 0.0)
        same = own and len(own) == len(other)
        found = paired(own, other) if same else Estimate(gap, None, None, after.metrics[name].n)
    return Change(metric_name(name), found, verdict(found, run.wanted(name)))


def costs(run: RunResults, edited: Condition) -> tuple[Verdict, dict[str, Change]]:
    """What of benign behaviour changed; bad where a limit is broken or something surely got worse."""
    names = [n for n in edited.metrics if n != run.attribute and (n in run.costs or n.endswith("_refused"))]
    changes = {name: change(run, edited, run.base, name) for name in names}
    within = run.chosen.within_limits(edited)
    if within is False or any(one.verdict == "bad" for one in changes.values()):
        return "bad", changes
    return "good" if within else "open", changes


def ahead(run: RunResults, edited: Condition) -> Change | None:
    """The edit against steering; `None` where no steering was measured."""
    if run.comparison is not None:  # signed so that positive is better
        gap = run.comparison.at_equal_cost
        return Change(metric_name(run.attribute), gap, verdict(gap), "curve")
    return replace(change(run, edited, run.steered, run.attribute), at="nearest") if run.steered else None


def trial_rows(run: RunResults) -> list[tuple[str, str]]:
    """(how trials ended, how many) of a search, and the sum."""
    ended = {name: count for name, count in run.trials.items() if name != "tried"}
    ordered = sorted(ended.items(), key=lambda row: (row[0] != "complete", -row[1]))
    words = [("measured on all validation items" if name == "complete" else name, f"{n}") for name, n in ordered]
    return [*words, ("tried in all", f"{run.trials.get('tried', 0)}")]


def provenance(run: RunResults | ComparisonResults) -> list[tuple[str, str]]:
    """What was run, when, and with which versions."""
    model = run.model
    rows = {
        "model": model.name, "revision": model.revision, "architecture": model.model_type,
        "fingerprint": model.fingerprint, "behaviour": run.behaviour, "created": run.created,
        "result schema": str(run.schema_version),
    }  # fmt: skip
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


def largest_components(edit: WeightEdit, block: Block) -> Rows:
    """λ and g of one block's components with the largest |λ|: a head's λ and a neuron's are not on one scale."""
    sites = {site: own for site, own in edit.sites.items() if site.block == block}
    found = WeightEdit(sites).top_components(_TOP) if sites else []
    return [[str(name), _SIGNED_4.number(magnitude), _SIGNED_4.number(g)] for name, magnitude, g in found]


def largest_experts(edit: WeightEdit) -> Rows:
    """The experts with the largest Σ|λ|: that sum, those of the positive and the negative λ, and edited neurons."""
    return [
        [str(e), _PLAIN.number(e.mass), _SIGNED.number(e.raised), _SIGNED.number(e.lowered),
         f"{e.edited:,} of {e.neurons:,}"]
        for e in top_experts(edit, _TOP)
    ]  # fmt: skip


def _of_diagnosis(diagnosis: Diagnosis) -> dict[str, Any]:
    """Split-half cosine, AUROC, its interval, norm and verdict of every site; and which are noise."""
    rows = []
    for site, entry in sorted(diagnosis.sites.items()):
        ends = (entry.auroc_low, entry.auroc_high)
        interval = "no interval" if None in ends else " to ".join(map(_PLAIN.number, ends))
        cosine, auroc, norm = map(_PLAIN.value, (entry.split_half_cosine, entry.auroc, entry.norm))
        rows.append([str(site), cosine, auroc, interval, norm, "noise" if entry.noise else ""])
    return {"diagnosis": rows, "noisy": [str(site) for site, entry in sorted(diagnosis.sites.items()) if entry.noise]}


class ShownReply(NamedTuple):
    """One reply."""

    condition: Condition
    text: str
    outcome: str  # such as `refused`, `answered` or `not scored`; empty if the run did not record any
    mark: str  # `good` or `bad`, by what is wanted of this set; empty where that is not known


class Exchange(NamedTuple):
    """A held-out prompt, and the replies to it side by side."""

    prompt: str
    replies: list[ShownReply]
    before_and_after: list[ShownReply]  # the base's and the edit's
    verdict: str  # what a reply is told to be: `refused`, or `shown`
    changed: bool  # whether the edited reply differs from the base's
    refused: bool | None  # whether the edited reply is that; `None` if unknown
    flip: str  # `now refused` or `no longer refused`; empty where neither is so, or nothing is known
    mark: str  # whether the flip is `good` or `bad`


def reply_sets(run: RunResults) -> dict[str, list[Exchange]]:
    """By name of the set, the exchanges for which some held-out condition has replies."""
    return {
        name: [_exchange(run, name, i, prompt) for i, prompt in enumerate(prompts)]
        for name, prompts in run.prompts.items()
        if any(condition.replies.get(name) for condition in run.side_by_side)
    }


def first_replies(sets: Mapping[str, Sequence[Exchange]]) -> list[Exchange]:
    """What to show first of the replies that changed: one flip for the better, one for the worse, and more."""
    changed = [exchange for exchange in chain(*sets.values()) if exchange.changed]
    ordered = sorted(changed, key=lambda exchange: not exchange.flip)
    first = [next((e for e in ordered if e.mark == mark), None) for mark in ("good", "bad")]
    return [e for e in [*first, *(e for e in ordered if e not in first)] if e is not None][:_FIRST]


def _exchange(run: RunResults, name: str, index: int, prompt: str) -> Exchange:
    conditions = [condition for condition in run.side_by_side if condition.replies.get(name)]
    verdict = next((word for word in _WORDS if any(f"{name}_{word}" in c.metrics for c in conditions)), "refused")
    wanted, words = run.wanted(f"{name}_{verdict}") > 0, _WORDS[verdict]
    outcomes = [one.outcomes[name][index] if one.outcomes.get(name) else None for one in conditions]
    marks = ["" if outcome is None else "good" if outcome == wanted else "bad" for outcome in outcomes]
    shown = [
        ShownReply(one, one.replies[name][index], words[outcome] if one.outcomes.get(name) else "", mark)
        for one, outcome, mark in zip(conditions, outcomes, marks, strict=True)
    ]
    compared = [conditions.index(one) for one in (run.base, run.edited) if one in conditions]
    both = len(compared) == 2
    before, after = (outcomes[i] for i in compared) if both else (None, None)
    flipped = before is not None and after is not None and before != after
    return Exchange(
        prompt,
        shown,
        [shown[i] for i in compared],
        verdict,
        changed=both and len({shown[i].text for i in compared}) == 2,
        refused=after,
        flip=f"{'now' if after else 'no longer'} {verdict}" if flipped else "",
        mark=marks[compared[1]] if flipped else "",
    )
