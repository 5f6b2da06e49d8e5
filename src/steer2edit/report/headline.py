"""The result in plain sentences, every number with its interval."""

from steer2edit.core import WeightEdit
from steer2edit.core.expert_edits import expert_edits
from steer2edit.estimates import Condition, Estimate
from steer2edit.evaluation import Metric, metric_name
from steer2edit.report.blocks import shown_blocks
from steer2edit.report.run_results import RunResults
from steer2edit.report.search_text import comparison_sentences
from steer2edit.report.tables import BlockSummary, block_summary, metrics_of


def headline(run: RunResults, edit: WeightEdit) -> list[str]:
    """What the edit changed on held-out prompts, what it cost, how steering compares, and what the edit is."""
    base, steered, edited = run.held_out.first("base"), run.steered, run.edited
    sentences = []
    if edited is None:
        sentences.append("This run has no held-out evaluation of the edit, so how it behaves is not known.")
    else:
        measured = metrics_of([edited])
        sentences += [_change(edited, base, metric) for metric in measured if not metric.against_base]
        sentences.append(_damage(edited))
    if steered is not None and run.comparison is None:
        sentences.append(_steering(steered))
    sentences += comparison_sentences(run)
    sentences.append(_extent(edit))
    return [sentence for sentence in sentences if sentence]


def _change(edited: Condition, base: Condition | None, metric: Metric) -> str:
    after = edited.metrics[metric.name]
    before = base.metrics.get(metric.name) if base is not None else None
    if before is None:
        return f"{metric.short}: {metric.in_words.sentence(after)} after the edit; the base was not measured."
    change = f"{metric.in_words.sentence(before)} before the edit, {metric.in_words.sentence(after)} after it."
    return f"{metric.short}: {change} {_compare(before, after)}".strip()


def _compare(before: Estimate, after: Estimate) -> str:
    """Whether two intervals overlap; nothing where one is missing."""
    if before.low is None or before.high is None or after.low is None or after.high is None:
        return ""
    if after.low > before.high or after.high < before.low:
        return "The two intervals do not overlap."
    return "The two intervals overlap."


def _damage(condition: Condition) -> str:
    named = {"nll_increase": "the NLL changes by", "kl": "the KL divergence from the base is"}
    parts = [
        f"{phrase} {metric_name(name).in_words.sentence(condition.metrics[name])}"
        for name, phrase in named.items()
        if name in condition.metrics
    ]
    return f"On the base's own benign answers, {' and '.join(parts)}." if parts else ""


def _steering(steered: Condition) -> str:
    measured = [metric for metric in metrics_of([steered]) if metric.name != "kl"]  # the table has it
    parts = [f"{metric.running} {metric.in_words.sentence(steered.metrics[metric.name])}" for metric in measured]
    return f"Activation steering for comparison, {steered.label}: {'; '.join(parts)}." if parts else ""


def _extent(edit: WeightEdit) -> str:
    *first, last = (_touched(block_summary(edit, block)) for block in shown_blocks(edit))
    sites = "one site" if len(edit.sites) == 1 else f"each of {len(edit.sites)} sites"
    changes = f"The edit is one rank-1 update at {sites}. It changes {', '.join(first)} and {last}."
    experts = expert_edits(edit)
    if not experts:
        return changes
    layers = len({expert.site for expert in experts})
    touched = sum(expert.edited > 0 for expert in experts)
    mixtures = "one mixture" if layers == 1 else f"{layers} mixtures"
    return f"{changes} Neurons of {touched:,} of {len(experts):,} experts in {mixtures} are among them."


def _touched(block: BlockSummary) -> str:
    if block.is_off:
        return f"no {block.name} {block.unit}s (that block is off)"
    return f"{block.edited:,} of {block.total:,} {block.name} {block.unit}s"
