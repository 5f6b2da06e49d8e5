"""Rows of the report's tables, as text ready to print."""

from collections.abc import Sequence
from dataclasses import dataclass

from steer2edit.core import Block, WeightEdit
from steer2edit.evaluation.results import METRICS
from steer2edit.report.figures import block_sites
from steer2edit.report.metrics import DAMAGE, TARGET, Metric
from steer2edit.report.run_results import Chosen, ConditionResult, Diagnosis

TOP_COMPONENTS = 20


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
class BlockSummary:
    """How much of one block the edit touches."""

    name: str
    unit: str
    edited: int
    total: int
    strengthened: int

    @property
    def is_off(self) -> bool:
        """Whether the edit leaves the block out altogether."""
        return self.total == 0


def metric_rows(conditions: Sequence[ConditionResult]) -> list[MetricRow]:
    """One row per metric that any of the conditions has, known ones first."""
    present = {name for condition in conditions for name in condition.metrics}
    names = [name for name in METRICS if name in present] + sorted(present - METRICS.keys())
    metrics = [Metric.named(name) for name in names]
    return [
        MetricRow(metric.short, metric.description, tuple(cell(condition, metric) for condition in conditions))
        for metric in metrics
    ]


def cell(condition: ConditionResult, metric: Metric) -> Cell:
    """One estimate of one condition. The base has no damage of its own: it is what damage is measured against."""
    estimate = condition.metrics.get(metric.name)
    if estimate is None:
        reference = condition.kind == "base" and metric.name in DAMAGE
        return Cell("reference" if reference else "not measured", scored=False)
    unscored = f", {estimate.unscored} not scored" if estimate.unscored else ""
    counts = f"n = {estimate.n}{unscored}"
    if estimate.value is None:
        return Cell(metric.value(estimate), "", counts, scored=False)
    return Cell(metric.value(estimate), metric.interval(estimate), counts)


def validation_rows(conditions: Sequence[ConditionResult], chosen: Chosen) -> list[tuple[str, tuple[Cell, ...], str]]:
    """(label, the target and each damage metric, remark) of every validation condition."""
    metrics = [Metric.named(name) for name in (TARGET, *DAMAGE)]
    verdicts = {True: "within limits", False: "beyond a limit", None: ""}
    rows = []
    for condition in conditions:
        verdict = verdicts[chosen.within_limits(condition)] if condition.kind == "edit" else ""
        remarks = ["chosen"] if chosen.is_choice(condition) else []
        remark = ", ".join(remarks + [verdict] * bool(verdict))
        rows.append((condition.label, tuple(cell(condition, metric) for metric in metrics), remark))
    return rows


def top_components(edit: WeightEdit) -> list[tuple[str, str, str]]:
    """(name, λ, g) of the components with the largest |λ|."""
    return [(str(c), f"{magnitude:+.4f}", f"{g:+.4f}") for c, magnitude, g in edit.top_components(TOP_COMPONENTS)]


def block_summary(edit: WeightEdit, block: Block) -> BlockSummary:
    """Counts of edited components of one block."""
    magnitudes = [edit.sites[site].magnitude for site in block_sites(edit, block)]
    name, unit = ("attention", "heads") if block == "attn" else ("MLP", "neurons")
    return BlockSummary(
        name=name,
        unit=unit,
        edited=sum(int(magnitude.count_nonzero()) for magnitude in magnitudes),
        total=sum(magnitude.numel() for magnitude in magnitudes),
        strengthened=sum(int((magnitude > 0).sum()) for magnitude in magnitudes),
    )


def diagnosis_rows(diagnosis: Diagnosis) -> list[tuple[str, str, str, str, str, bool]]:
    """(site, split-half cosine, AUROC, its interval, norm, noise) of every site."""

    def number(value: float | None) -> str:
        return "not scored" if value is None else f"{value:.3f}"

    rows = []
    for site, entry in sorted(diagnosis.sites.items()):
        known = entry.auroc_low is not None and entry.auroc_high is not None
        interval = f"{number(entry.auroc_low)} to {number(entry.auroc_high)}" if known else "no interval"
        cosine, auroc, norm = number(entry.split_half_cosine), number(entry.auroc), number(entry.norm)
        rows.append((str(site), cosine, auroc, interval, norm, entry.noise))
    return rows
