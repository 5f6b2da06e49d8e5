"""The tables of a page: texts ready to print, or conditions whose estimates the templates print metric by metric."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from steer2edit.core import WeightEdit
from steer2edit.core.expert_edits import top_experts
from steer2edit.estimates import Condition, Notation
from steer2edit.evaluation import Metric, metric_name
from steer2edit.report.figures import BlockExtent
from steer2edit.report.run_results import Diagnosis, RunResults

TOP = 20
_NOT_SHOWN = ("sanity_kl",)
"""Measured on a few short requests to throw configurations out; no figure of a model."""
_PLAIN, _SIGNED = Notation(".3f", typeset=True), Notation(".3f", signed=True, typeset=True)
_SIGNED_4 = replace(_SIGNED, digits=".4f")


@dataclass(frozen=True)
class Table:
    """Rows of texts; the first of each row is its head, the others are figures."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class ConditionTable:
    """Conditions, each with a remark, and the metrics that any of them has."""

    caption: str
    conditions: Sequence[Condition]
    remark: Callable[[Condition], str] = lambda _: ""

    @property
    def metrics(self) -> list[Metric]:
        """In their order."""
        names = dict.fromkeys(name for condition in self.conditions for name in condition.metrics)
        return [metric_name(name) for name in names if name not in _NOT_SHOWN]


def metric_table(run: RunResults) -> ConditionTable:
    """What was measured of the edit, the base and the nearest steering on held-out items, narrow enough for a phone."""
    one_of_each = [run.edited, run.held_out.first("base"), run.steered]
    return ConditionTable("Held-out items: estimate, 95 % interval and n.", [c for c in one_of_each if c is not None])


def run_tables(run: RunResults) -> dict[str, ConditionTable]:
    """The tables of a run by where they stand; data sets are those of a recipe."""

    def recommended(condition: Condition) -> str:
        chosen = condition.kind == "edit" and not condition.is_equal_drift and run.chosen.is_choice(condition)
        return "recommended" if chosen else "at equal drift" if condition.is_equal_drift else ""

    def chosen(condition: Condition) -> str:
        verdicts = {True: "within limits", False: "beyond a limit", None: ""}
        verdict = verdicts[run.chosen.within_limits(condition)] if condition.kind == "edit" else ""
        return ", ".join(filter(None, ["chosen" if run.chosen.is_choice(condition) else "", verdict]))

    behind = "estimate, 95 % interval, and n"
    left = "number of items n. Items that could not be scored are left out of n."
    validation = ConditionTable(f"Validation prompts: {behind}.", run.validation.conditions, chosen)
    if run.is_search:
        shown = [c for c in run.validation.conditions if c.kind != "edit"] + run.front_trials
        validation = ConditionTable(f"Validation items: {behind}.", shown, recommended)
    others = [c for c in run.held_out.conditions if c not in metric_table(run).conditions]
    held_out = f"The other conditions on held-out items: estimate, 95 % interval, and {left}"
    sets = f"What the recipe measures besides: {behind}. A metric is named after the set that was measured."
    found = {
        "held_out": ConditionTable(held_out, others, recommended if run.is_search else lambda _: ""),
        "validation": validation,
        "data_sets": ConditionTable(sets, run.data_sets.conditions, recommended),
    }
    return {name: table for name, table in found.items() if table.conditions}


def largest_components(edit: WeightEdit, extent: BlockExtent) -> Table:
    """λ and g of one block's components with the largest |λ|.

    By block, because each block has its own ρ: a head's λ and a neuron's are not on one scale.
    """
    found = WeightEdit({site: edit.sites[site] for site in extent.sites}).top_components(TOP) if extent.sites else []
    rows = [[str(name), _SIGNED_4.number(magnitude), _SIGNED_4.number(g)] for name, magnitude, g in found]
    return Table(f"{extent.style.title} with the largest |λ| (first {len(rows)})", ("component", "λ", "g"), rows)


def largest_experts(edit: WeightEdit) -> Table:
    """The experts with the largest Σ|λ|: that sum, those of the positive and the negative λ, and edited neurons."""
    rows = [
        [str(e), _PLAIN.number(e.mass), _SIGNED.number(e.raised), _SIGNED.number(e.lowered),
         f"{e.edited:,} of {e.neurons:,}"]
        for e in top_experts(edit, TOP)
    ]  # fmt: skip
    caption = f"Experts with the largest Σ|λ| (first {len(rows)}); neurons: how many are edited."
    return Table(caption, ("expert", "Σ|λ|", "Σ of λ > 0", "Σ of λ < 0", "neurons"), rows)


def diagnosis_table(diagnosis: Diagnosis) -> Table:
    """Split-half cosine, AUROC, its interval, norm and verdict of every site."""
    rows = []
    for site, entry in sorted(diagnosis.sites.items()):
        ends = (entry.auroc_low, entry.auroc_high)
        interval = "no interval" if None in ends else " to ".join(map(_PLAIN.number, ends))
        cosine, auroc, norm = map(_PLAIN.value, (entry.split_half_cosine, entry.auroc, entry.norm))
        rows.append([str(site), cosine, auroc, interval, norm, "noise" if entry.noise else ""])
    return Table(
        "Diagnosis of the steering vector of each site. AUROC with 95 % interval; norm: length of the vector.",
        ("site", "split-half cosine", "AUROC", "interval", "norm", "verdict"), rows,
    )  # fmt: skip
