"""What a search compared and tried, in plain sentences."""

from steer2edit.estimates import NOT_SCORED, Estimate, Notation
from steer2edit.evaluation import COST, attribute_of, metric_name
from steer2edit.report.run_results import RunResults
from steer2edit.report.text import counts

_SHARE, _RATIO = Notation(".1f", " %", 100.0, signed=True, typeset=True), Notation(".2f", " times", typeset=True)


def comparison_sentences(run: RunResults) -> list[str]:
    """Edits against activation steering, and both at equal drift; empty if the run compared nothing."""
    found = [] if run.comparison is None else [_at_equal_cost(run), _hypervolume(run)]
    return found + [sentence for sentence in [_equal_drift(run)] if sentence]


def _at_equal_cost(run: RunResults) -> str:
    assert run.comparison is not None
    metric, cost = metric_name(run.attribute), metric_name(COST)
    gap, relative = run.comparison.at_equal_cost, run.comparison.relative
    if gap.value is None:
        return f"Edit against activation steering at equal {cost.running}: {NOT_SCORED}."
    wanted = "more" if attribute_of(run.behaviour)[1] > 0 else "less"
    share = "" if relative.value is None else f", or {_with_range(_SHARE, relative)} of steering's own value there"
    return (
        f"Edit against activation steering at the edit's own {cost.running}, {metric.running}, where positive is "
        f"better ({wanted} of it): {_with_range(metric.change, gap)}{share}; "
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


def trial_rows(run: RunResults) -> list[tuple[str, str]]:
    """(how trials ended, how many) of a search, and the sum."""
    tried = run.trials.get("tried", 0)
    words = {"complete": "measured on all validation items"}
    rows = [(words.get(name, name), count) for name, count in run.trials.items() if name != "tried"]
    ordered = sorted(rows, key=lambda row: (row[0] != words["complete"], -row[1]))
    return [(name, f"{count}") for name, count in [*ordered, ("tried in all", tried)]]
