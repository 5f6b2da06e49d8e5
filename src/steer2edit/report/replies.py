"""Replies side by side: one exchange per held-out prompt, with the reply under every condition."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from steer2edit.estimates import NOT_SCORED, Condition
from steer2edit.report.run_results import RunResults

_WORDS = {"refused": ("refused", "answered"), "shown": ("shown", "not shown")}
"""By what a set's verdicts are of, the last word of its metric: what a reply is that has it, and one that has not."""
FIRST = 3
"""Exchanges on the first screen."""


@dataclass(frozen=True)
class ShownReply:
    """One reply."""

    condition: Condition
    text: str
    outcome: str  # such as `refused`, `answered` or `not scored`; empty if the run did not record any
    mark: str  # `good` or `bad`, by what is wanted of this set; empty where that is not known


@dataclass(frozen=True)
class Exchange:
    """A prompt and its replies."""

    prompt: str
    replies: tuple[ShownReply, ...]
    before_and_after: tuple[ShownReply, ...]  # the base's and the edit's
    verdict: str  # what a reply is told to be: `refused`, or `shown`
    changed: bool  # whether the edited reply differs from the base's
    refused: bool | None  # whether the edited reply is that; `None` if unknown
    flip: str  # `now refused` or `no longer refused`; empty where neither is so, or nothing is known
    mark: str  # whether the flip is `good` or `bad`

    @property
    def tags(self) -> str:
        """Words the page's filter selects by."""
        return " ".join(
            name for name, on in (("changed", self.changed), ("refused", self.refused), ("flipped", self.flip)) if on
        )


def reply_sets(run: RunResults) -> dict[str, list[Exchange]]:
    """By name of the set, the exchanges for which some held-out condition has replies."""
    sets = {}
    for name, prompts in run.prompts.items():
        if any(condition.replies.get(name) for condition in run.side_by_side):
            sets[name] = [_exchange(run, name, i, prompt) for i, prompt in enumerate(prompts)]
    return sets


def first_replies(sets: Mapping[str, Sequence[Exchange]]) -> list[Exchange]:
    """What to show first of the replies that changed: one flip for the better, one for the worse, and more."""
    changed = [exchange for exchange in chain(*sets.values()) if exchange.changed]
    ordered = sorted(changed, key=lambda exchange: not exchange.flip)
    first = [next((e for e in ordered if e.mark == mark), None) for mark in ("good", "bad")]
    return [e for e in [*first, *(e for e in ordered if e not in first)] if e is not None][:FIRST]


def _exchange(run: RunResults, name: str, index: int, prompt: str) -> Exchange:
    conditions = [condition for condition in run.side_by_side if condition.replies.get(name)]
    verdict = next((word for word in _WORDS if any(f"{name}_{word}" in c.metrics for c in conditions)), "refused")
    wanted = run.wanted(f"{name}_{verdict}") > 0
    outcomes = [condition.outcomes[name][index] if condition.outcomes.get(name) else None for condition in conditions]
    shown = [
        ShownReply(one, one.replies[name][index], _said(verdict, one, name, outcome), _mark(outcome, wanted))
        for one, outcome in zip(conditions, outcomes, strict=True)
    ]
    compared = [conditions.index(one) for one in (run.held_out.first("base"), run.edited) if one in conditions]
    both = len(compared) == 2
    before, after = (outcomes[i] for i in compared) if both else (None, None)
    flipped = before is not None and after is not None and before != after
    return Exchange(
        prompt,
        tuple(shown),
        tuple(shown[i] for i in compared),
        verdict,
        changed=both and len({shown[i].text for i in compared}) == 2,
        refused=after,
        flip=f"{'now' if after else 'no longer'} {verdict}" if flipped else "",
        mark=_mark(after, wanted) if flipped else "",
    )


def _said(verdict: str, condition: Condition, name: str, outcome: bool | None) -> str:
    if not condition.outcomes.get(name):
        return ""
    return NOT_SCORED if outcome is None else _WORDS[verdict][0 if outcome else 1]


def _mark(outcome: bool | None, wanted: bool) -> str:
    return "" if outcome is None else "good" if outcome == wanted else "bad"
