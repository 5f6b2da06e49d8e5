"""The result in plain sentences, every number with its interval."""

from steer2edit.core import WeightEdit
from steer2edit.evaluation.statistics import Estimate
from steer2edit.report.metrics import TARGET, Metric
from steer2edit.report.run_results import ConditionResult, RunResults
from steer2edit.report.tables import BlockSummary, block_summary


def headline(run: RunResults, edit: WeightEdit) -> list[str]:
    """What the edit changed on held-out prompts, what it cost, how steering compares, and what the edit is."""
    base, steered, edited = (run.held_out.first(kind) for kind in ("base", "steering", "edit"))
    sentences = []
    if edited is None:
        sentences.append("This run has no held-out evaluation of the edit: nothing below says how it behaves.")
    else:
        sentences += [_change(edited, base, name) for name in (TARGET, "benign_refused") if name in edited.metrics]
        sentences += [_damage(edited)] if _damage(edited) else []
    if steered is not None:
        sentences.append(_steering(steered))
    sentences.append(_extent(edit))
    return sentences


def _change(edited: ConditionResult, base: ConditionResult | None, name: str) -> str:
    metric = Metric.named(name)
    what = metric.short[0].lower() + metric.short[1:]
    after = edited.metrics[name]
    before = base.metrics.get(name) if base is not None else None
    if before is None:
        return f"Held-out {what}: {metric.sentence(after)} after the edit. The base was not measured."
    return (
        f"Held-out {what}: {metric.sentence(before)} before the edit, {metric.sentence(after)} after it. "
        f"{_compare(before, after)}"
    ).strip()


def _compare(before: Estimate, after: Estimate) -> str:
    if None in (before.low, before.high, after.low, after.high):
        return ""
    assert before.low is not None and before.high is not None  # for the type checker
    assert after.low is not None and after.high is not None
    if after.low > before.high or after.high < before.low:
        return "The intervals do not overlap."
    return "The intervals overlap, so this may be chance."


def _damage(condition: ConditionResult) -> str:
    named = {"nll_increase": "NLL changes by", "kl": "KL to the base is"}
    parts = [
        f"{phrase} {Metric.named(name).sentence(condition.metrics[name])}"
        for name, phrase in named.items()
        if name in condition.metrics
    ]
    return f"On the base's own benign answers, {' and '.join(parts)}." if parts else ""


def _steering(steered: ConditionResult) -> str:
    parts = [
        f"{metric.short} {metric.sentence(steered.metrics[metric.name])}"
        for metric in map(Metric.named, (TARGET, "benign_refused", "nll_increase"))
        if metric.name in steered.metrics
    ]
    return f"Activation steering for comparison ({steered.label}): {'; '.join(parts)}." if parts else ""


def _extent(edit: WeightEdit) -> str:
    blocks = " and ".join(_touched(block_summary(edit, block)) for block in ("attn", "mlp"))
    sites = "one site" if len(edit.sites) == 1 else f"each of {len(edit.sites)} sites"
    return f"The edit is one rank-1 update at {sites}; it changes {blocks}."


def _touched(block: BlockSummary) -> str:
    if block.is_off:
        return f"no {block.name} {block.unit} (that block is off)"
    return f"{block.edited:,} of {block.total:,} {block.name} {block.unit}"
