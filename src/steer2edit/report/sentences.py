"""The result in plain sentences, every number with its interval."""

from steer2edit.core import WeightEdit
from steer2edit.core.expert_edits import expert_edits
from steer2edit.estimates import NOT_SCORED, Condition, Estimate, Notation
from steer2edit.evaluation import COST, Metric, metric_name
from steer2edit.report.blocks import BlockExtent, shown_blocks
from steer2edit.report.run_results import RunResults
from steer2edit.report.tables import metrics_of
from steer2edit.report.text import counts

_SHARE, _RATIO = Notation(".1f", " %", 100.0, signed=True, typeset=True), Notation(".2f", " times", typeset=True)


def headline(run: RunResults, edit: WeightEdit) -> list[str]:
    """What the edit changed on held-out prompts, what it cost, how steering compares, and what the edit is."""
    base, steered, edited = run.held_out.first("base"), run.steered, run.edited
    sentences = []
    if edited is None:
        sentences.append("This run has no held-out evaluation of the edit, so how it behaves is not known.")
    else:
        sentences += [_change(edited, base, metric) for metric in metrics_of([edited]) if not metric.against_base]
        sentences.append(_damage(edited))
    if steered is not None and run.comparison is None:
        sentences.append(_steering(steered))
    return [sentence for sentence in [*sentences, *comparison_sentences(run), _extent(edit)] if sentence]


def _change(edited: Condition, base: Condition | None, metric: Metric) -> str:
    after, write = edited.metrics[metric.name], metric.in_words.sentence
    before = base.metrics.get(metric.name) if base is not None else None
    if before is None:
        return f"{metric.short}: {write(after)} after the edit; the base was not measured."
    change = f"{metric.short}: {write(before)} before the edit, {write(after)} after it."
    if before.low is None or before.high is None or after.low is None or after.high is None:
        return change
    apart = after.low > before.high or after.high < before.low
    return f"{change} The two intervals {'do not overlap' if apart else 'overlap'}."


def _damage(condition: Condition) -> str:
    named = {"nll_increase": "the NLL changes by", "kl": "the KL divergence from the base is"}
    parts = [
        f"{phrase} {metric_name(name).in_words.sentence(condition.metrics[name])}"
        for name, phrase in named.items()
        if name in condition.metrics
    ]
    return f"On the base's own benign answers, {' and '.join(parts)}." if parts else ""


def _steering(steered: Condition) -> str:
    measured = [metric for metric in metrics_of([steered]) if metric.name != COST]  # the table has it
    parts = [f"{metric.running} {metric.in_words.sentence(steered.metrics[metric.name])}" for metric in measured]
    return f"Activation steering for comparison, {steered.label}: {'; '.join(parts)}." if parts else ""


def _extent(edit: WeightEdit) -> str:
    *first, last = map(_touched, shown_blocks(edit).values())
    sites = "one site" if len(edit.sites) == 1 else f"each of {len(edit.sites)} sites"
    changes = f"The edit is one rank-1 update at {sites}. It changes {', '.join(first)} and {last}."
    experts = expert_edits(edit)
    if not experts:
        return changes
    layers = len({expert.site for expert in experts})
    touched = sum(expert.edited > 0 for expert in experts)
    mixtures = "one mixture" if layers == 1 else f"{layers} mixtures"
    return f"{changes} Neurons of {touched:,} of {len(experts):,} experts in {mixtures} are among them."


def _touched(extent: BlockExtent) -> str:
    what = f"{extent.style.name} {extent.style.unit}s"
    return f"{extent.edited:,} of {extent.total:,} {what}" if extent.sites else f"no {what} (that block is off)"


def comparison_sentences(run: RunResults) -> list[str]:
    """Edits against activation steering, and both at equal drift; empty if the run compared nothing."""
    found = [] if run.comparison is None else [_at_equal_cost(run), _hypervolume(run)]
    return found + [sentence for sentence in [_equal_drift(run)] if sentence]


def _at_equal_cost(run: RunResults) -> str:
    assert run.comparison is not None
    (attribute, direction), cost = run.goal, metric_name(COST)
    gap, relative, metric = run.comparison.at_equal_cost, run.comparison.relative, metric_name(attribute)
    if gap.value is None:
        return f"Edit against activation steering at equal {cost.running}: {NOT_SCORED}."
    share = "" if relative.value is None else f", or {_with_range(_SHARE, relative)} of steering's own value there"
    return (
        f"Edit against activation steering at the edit's own {cost.running}, {metric.running}, where positive is "
        f"better ({'more' if direction > 0 else 'less'} of it): {_with_range(metric.change, gap)}{share}; "
        f"bootstrap over the items, {counts(gap)}. {_verdict(gap, 0.0)}"
    )


def _hypervolume(run: RunResults) -> str:
    found = run.comparison
    assert found is not None
    edge = metric_name(COST).bound(found.largest_cost)
    areas = f"{found.hypervolume_edits:.4f} against {found.hypervolume_steering:.4f}"
    begun = f"Area that the front dominates, up to a KL of {edge}, edits by activation steering"
    if found.ratio.value is None:
        return f"{begun}: no ratio, because steering gains nothing there ({areas})."
    return f"{begun}: {_with_range(_RATIO, found.ratio)} ({areas}). {_verdict(found.ratio, 1.0)}"


def _with_range(notation: Notation, found: Estimate) -> str:
    """`+12.5 points (+3.1 to +22.0 points)`."""
    return notation.value(found) + (f" ({notation.interval(found)})" if found.has_interval else "")


def _equal_drift(run: RunResults) -> str:
    names = {"edit": "the edit", "steering": "steering"}
    parts = [
        f"{names.get(name, name)} at strength {found.strength:.3g} (KL {found.drift:.3f}"
        f"{'' if found.reached else ', as near as it came'})"
        for name, found in run.calibrated.items()
    ]
    return f"Set to the same drift on validation items: {', '.join(parts)}; the table has both." if parts else ""


def _verdict(found: Estimate, neutral: float) -> str:
    """Which of the two is ahead, as far as the interval tells."""
    if found.low is None:
        return ""
    if found.low > neutral:
        return "The interval lies on the edits' side."
    if found.high is not None and found.high < neutral:
        return "The interval lies on steering's side."
    return "The interval reaches both sides, so neither is shown to be ahead."
