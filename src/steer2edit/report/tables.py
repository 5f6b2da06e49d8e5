"""Rows of the report's tables, as text ready to print."""

from collections.abc import Sequence
from dataclasses import dataclass

from steer2edit.core import Block, WeightEdit
from steer2edit.estimates import NOT_SCORED, Condition
from steer2edit.evaluation import METRICS, Metric, metric_name
from steer2edit.report.blocks import STYLES, block_sites
from steer2edit.report.run_results import Chosen, Diagnosis, RunResults
from steer2edit.report.text import counts, signed

TOP_COMPONENTS = 20
NOT_SHOWN = ("sanity_kl",)
"""Measured on a few short requests to throw configurations out; no figure of a model."""


@dataclass(frozen=True)
class Cell:
    """One estimate: the number, its interval, and the counts behind it."""

    value: str
    interval: str = ""
    counts: str = ""
    scored: bool = True


@dataclass(frozen=True)
class MetricRow:
    """One metric across conditions."""

    title: str
    description: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class ConditionRow:
    """One condition across metrics, with what there is to remark on it."""

    label: str
    kind: str
    remark: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class ConditionTable:
    """Conditions as rows: for many of them, where `metric_rows` would grow too wide."""

    metrics: tuple[Metric, ...]
    rows: tuple[ConditionRow, ...]


@dataclass(frozen=True)
class BlockSummary:
    """How much of one block the edit touches; names are as in `blocks.BlockStyle`."""

    name: str
    unit: str
    title: str
    edited: int
    total: int
    strengthened: int

    @property
    def is_off(self) -> bool:
        """Whether the edit leaves the block out altogether."""
        return self.total == 0


def metrics_of(conditions: Sequence[Condition]) -> list[Metric]:
    """The metrics that any of the conditions has, known ones first."""
    present = {name for condition in conditions for name in condition.metrics} - set(NOT_SHOWN)
    return [metric_name(name) for name in [*(n for n in METRICS if n in present), *sorted(present - METRICS.keys())]]


def metric_rows(conditions: Sequence[Condition]) -> list[MetricRow]:
    """One row per metric that any of the conditions has."""
    return [
        MetricRow(metric.short, metric.description, tuple(cell(condition, metric) for condition in conditions))
        for metric in metrics_of(conditions)
    ]


def condition_table(run: RunResults, conditions: Sequence[Condition]) -> ConditionTable:
    """Every metric of every condition."""
    metrics = tuple(metrics_of(conditions))
    rows = []
    for condition in conditions:
        recommended = condition.kind == "edit" and not condition.is_equal_drift and run.chosen.is_choice(condition)
        remark = "recommended" if recommended else "at equal drift" if condition.is_equal_drift else ""
        cells = tuple(cell(condition, metric) for metric in metrics)
        rows.append(ConditionRow(condition.label, condition.kind, remark, cells))
    return ConditionTable(metrics, tuple(rows))


def cell(condition: Condition, metric: Metric) -> Cell:
    """One estimate of one condition. The base has no NLL increase or KL of its own: it is what they compare with."""
    if condition.kind == "base" and metric.against_base:
        return Cell("reference", scored=False)
    estimate = condition.metrics.get(metric.name)
    if estimate is None:
        return Cell("not measured", scored=False)
    if estimate.value is None:
        return Cell(metric.in_cells.value(estimate), "", counts(estimate), scored=False)
    return Cell(metric.in_cells.value(estimate), metric.in_cells.interval(estimate), counts(estimate))


def validation_rows(conditions: Sequence[Condition], chosen: Chosen) -> list[tuple[str, tuple[Cell, ...], str]]:
    """(label, cells of all metrics, remark) of every validation condition."""
    metrics = metrics_of(conditions)
    verdicts = {True: "within limits", False: "beyond a limit", None: ""}
    rows = []
    for condition in conditions:
        verdict = verdicts[chosen.within_limits(condition)] if condition.kind == "edit" else ""
        remarks = ["chosen"] if chosen.is_choice(condition) else []
        remark = ", ".join(remarks + [verdict] * bool(verdict))
        rows.append((condition.label, tuple(cell(condition, metric) for metric in metrics), remark))
    return rows


def top_components(edit: WeightEdit, block: Block) -> list[tuple[str, str, str]]:
    """(name, λ, g) of one block's components with the largest |λ|.

    By block, because each block has its own ρ: a head's λ and a neuron's are not on one scale.
    """
    sites = {site: edit.sites[site] for site in block_sites(edit, block)}
    found = WeightEdit(sites).top_components(TOP_COMPONENTS) if sites else []
    return [(str(component), signed(magnitude, 4), signed(g, 4)) for component, magnitude, g in found]


def block_summary(edit: WeightEdit, block: Block) -> BlockSummary:
    """Counts of edited components of one block."""
    magnitudes = [edit.sites[site].magnitude for site in block_sites(edit, block)]
    style = STYLES[block]
    return BlockSummary(
        name=style.name,
        unit=style.unit,
        title=style.title,
        edited=sum(int(magnitude.count_nonzero()) for magnitude in magnitudes),
        total=sum(magnitude.numel() for magnitude in magnitudes),
        strengthened=sum(int((magnitude > 0).sum()) for magnitude in magnitudes),
    )


def diagnosis_rows(diagnosis: Diagnosis) -> list[tuple[str, str, str, str, str, bool]]:
    """(site, split-half cosine, AUROC, its interval, norm, noise) of every site."""

    def number(value: float | None) -> str:
        return NOT_SCORED if value is None else f"{value:.3f}".replace("-", "−")

    rows = []
    for site, entry in sorted(diagnosis.sites.items()):
        known = entry.auroc_low is not None and entry.auroc_high is not None
        interval = f"{number(entry.auroc_low)} to {number(entry.auroc_high)}" if known else "no interval"
        cosine, auroc, norm = number(entry.split_half_cosine), number(entry.auroc), number(entry.norm)
        rows.append((str(site), cosine, auroc, interval, norm, entry.noise))
    return rows
