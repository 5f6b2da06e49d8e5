"""The first screen: did the edit work, what did it cost, is it ahead of steering; by paired differences."""

from dataclasses import dataclass
from typing import Literal

from steer2edit.core import WeightEdit
from steer2edit.core.expert_edits import expert_edits
from steer2edit.estimates import NOT_SCORED, Condition, Estimate, Notation
from steer2edit.evaluation import COST, Metric, metric_name
from steer2edit.evaluation.statistics import paired
from steer2edit.report.figures import shown_blocks
from steer2edit.report.run_results import RunResults
from steer2edit.report.text import counts

Verdict = Literal["good", "bad", "open"]
_SHARE, _RATIO = Notation(".1f", " %", 100.0, signed=True, typeset=True), Notation(".2f", " times", typeset=True)
_UNKNOWN = Estimate(None, None, None, 0)


@dataclass(frozen=True)
class Answer:
    """One question of the first screen."""

    question: str
    verdict: Verdict  # what colour says: better, worse, or not to be told
    words: str  # the verdict in words
    figure: str  # the difference, in large print
    details: tuple[str, ...]  # what the figure is and rests on


def answers(run: RunResults) -> list[Answer]:
    """Did it work, what did it cost, is it ahead of steering: on held-out items."""
    base, edited = run.held_out.first("base"), run.edited
    if edited is None:
        why = "This run has no held-out evaluation of the edit, so how it behaves is not known."
        return [Answer("Did it work?", "open", "not known", "not measured", (why,))]
    return [_worked(run, edited, base), _cost(run, edited, base), _ahead(run, edited)]


def difference(after: Condition, before: Condition | None, name: str) -> Estimate:
    """The paired difference of a metric; without values by item its estimate alone, which no interval goes with."""
    if before is None or not (after.scored(name) and before.scored(name)):
        return _UNKNOWN
    own, other = after.values.get(name, ()), before.values.get(name, ())
    if own and len(own) == len(other):
        return paired(own, other)
    return Estimate((after.value(name) or 0.0) - (before.value(name) or 0.0), None, None, after.metrics[name].n)


def verdict(found: Estimate, direction: int = 1, neutral: float = 0.0) -> Verdict:
    """Good or bad where the interval lies on one side of what is neutral; `direction` is +1 where more is wanted."""
    above = found.low is not None and found.low > neutral
    below = found.high is not None and found.high < neutral
    if found.value is None or above == below:
        return "open"
    return "good" if above == (direction > 0) else "bad"


def _worked(run: RunResults, edited: Condition, base: Condition | None) -> Answer:
    name, direction = run.goal
    metric, found = metric_name(name), difference(edited, base, name)
    words = {"good": "yes", "bad": "no, the other way", "open": "no detectable change"}
    told = verdict(found, direction)
    return Answer(
        "Did it work?", told, words[told] if found.has_interval else "not to be told", metric.change.value(found),
        (f"{metric.short}: {_before_after(metric, edited, base)}", *_basis(metric, found)),
    )  # fmt: skip


def _before_after(metric: Metric, edited: Condition, base: Condition | None) -> str:
    before, after = (metric.in_words.value(None if c is None else c.metrics.get(metric.name)) for c in (base, edited))
    return f"{before} before, {after} after the edit."


def _basis(metric: Metric, found: Estimate) -> list[str]:
    if found.value is None:
        return []
    if not found.has_interval:
        return ["No values by item were kept, so there is no interval of the difference."]
    return [f"95 % interval of the paired difference: {metric.change.interval(found)}, {counts(found)}."]


def _cost(run: RunResults, edited: Condition, base: Condition | None) -> Answer:
    """Drift, and what of benign behaviour changed; bad where a limit is broken or something surely got worse."""
    attribute, _ = run.goal
    drift, within = metric_name(COST), run.chosen.within_limits(edited)
    told: Verdict = "open" if within is None else "good" if within else "bad"
    details = []
    for metric in (metric_name(name) for name in sorted(edited.metrics)):
        own = edited.metrics[metric.name]
        if metric.name == "nll_increase" and own.value is not None:
            details.append(f"{metric.short}: {metric.in_words.sentence(own)}.")
        elif metric.name != attribute and (metric.name in run.costs or metric.name.endswith("_refused")):
            change = difference(edited, base, metric.name)
            told = "bad" if verdict(change, run.wanted(metric.name)) == "bad" else told
            details.append(
                f"{metric.short}: {_before_after(metric, edited, base)} {' '.join(_basis(metric, change))}".strip()
            )
    limits = [f"{metric_name(n).running} at most {metric_name(n).bound(v)}" for n, v in run.chosen.limits.items()]
    if limits:
        details.append(f"Allowed: {', '.join(limits)}.")
    words = {"good": "within its limits", "bad": "too much", "open": "no limit was set"}
    if told == "open" and run.chosen.limits:
        words["open"] = f"a limit was {NOT_SCORED}"
    own = edited.metrics.get(COST, _UNKNOWN)
    interval = f"{drift.description}: 95 % interval {drift.in_words.interval(own)}, {counts(own)}."
    return Answer(
        "What did it cost?", told, words[told], f"KL {drift.in_words.value(own)}",
        (*([interval] if own.has_interval else []), *details),
    )  # fmt: skip


def _ahead(run: RunResults, edited: Condition) -> Answer:
    """Against steering at the same drift: measured so, interpolated, or at the nearest strength that was measured."""
    name, direction = run.goal
    metric, question = metric_name(name), "Is it ahead of steering?"
    equal = {c.kind: c for c in run.held_out.conditions if c.is_equal_drift}
    if {"edit", "steering"} <= equal.keys() and (found := difference(equal["edit"], equal["steering"], name)).value:
        how = f"{metric.short}, both set to the same drift on validation items."
    elif run.comparison is not None:
        found, of_it, direction = run.comparison.at_equal_cost, "more" if direction > 0 else "less", 1
        relative = run.comparison.relative
        share = "" if relative.value is None else f", {_with_range(_SHARE, relative)} of steering's own value there"
        how = f"{metric.short}, against steering at the edit's own drift; positive is better ({of_it} of it){share}."
    elif run.steered is not None:
        found = difference(edited, run.steered, name)
        drifts = [metric_name(COST).in_words.value(c.metrics.get(COST)) for c in (edited, run.steered)]
        how = f"{metric.short}, against {run.steered.label}, at KL {drifts[0]} and {drifts[1]}: not the same cost."
    else:
        return Answer(question, "open", "not known", "not measured", ("This run measured no activation steering.",))
    told = verdict(found, direction)
    words = {"good": "yes", "bad": "no, steering is", "open": "no detectable difference"}
    return Answer(
        question, told, words[told] if found.has_interval else "not to be told", metric.change.value(found),
        (how, *_basis(metric, found)),
    )  # fmt: skip


def extent(edit: WeightEdit) -> str:
    """How much of the model an edit touches, in a sentence or two."""
    found = [(one, f"{one.style.name} {one.style.unit}s") for one in shown_blocks(edit).values()]
    *first, last = (
        f"{one.edited:,} of {one.total:,} {what}" if one.sites else f"no {what} (that block is off)"
        for one, what in found
    )
    sites = "one site" if len(edit.sites) == 1 else f"each of {len(edit.sites)} sites"
    changes = f"The edit is one rank-1 update at {sites}. It changes {', '.join(first)} and {last}."
    experts = expert_edits(edit)
    if not experts:
        return changes
    layers = len({expert.site for expert in experts})
    touched = sum(expert.edited > 0 for expert in experts)
    mixtures = "one mixture" if layers == 1 else f"{layers} mixtures"
    return f"{changes} Neurons of {touched:,} of {len(experts):,} experts in {mixtures} are among them."


def tradeoff_sentences(run: RunResults) -> list[str]:
    """The front against steering as areas, and how both were set to the same drift; empty if nothing was compared."""
    names = {"edit": "the edit", "steering": "steering"}
    parts = [
        f"{names.get(name, name)} at strength {found.strength:.3g} (KL {found.drift:.3f}"
        f"{'' if found.reached else ', as near as it came'})"
        for name, found in run.calibrated.items()
    ]
    drift = [f"Set to the same drift on validation items: {', '.join(parts)}; the table has both."] if parts else []
    if run.comparison is None:
        return drift
    found = run.comparison
    areas = f"{found.hypervolume_edits:.4f} against {found.hypervolume_steering:.4f}"
    begun = (
        f"Area that the front dominates, up to a KL of {metric_name(COST).bound(found.largest_cost)}, edits by "
        "activation steering"
    )
    if found.ratio.value is None:
        return [f"{begun}: no ratio, because steering gains nothing there ({areas}).", *drift]
    sides: dict[Verdict, str] = {
        "good": "The interval lies on the edits' side.",
        "bad": "The interval lies on steering's side.",
        "open": "The interval reaches both sides, so neither is shown to be ahead." if found.ratio.has_interval else "",
    }
    told = sides[verdict(found.ratio, neutral=1.0)]
    return [f"{begun}: {_with_range(_RATIO, found.ratio)} ({areas}). {told}".strip(), *drift]


def _with_range(notation: Notation, found: Estimate) -> str:
    """`+12.5 points (+3.1 to +22.0 points)`."""
    return notation.value(found) + (f" ({notation.interval(found)})" if found.has_interval else "")
