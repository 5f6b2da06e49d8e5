"""Replies side by side: one exchange per held-out prompt, with the reply under every condition."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from steer2edit.estimates import NOT_SCORED, Condition
from steer2edit.report.run_results import RunResults

_OUTCOMES = {True: "refused", False: "answered", None: NOT_SCORED}
FIRST = 3
"""Exchanges on the first screen."""


@dataclass(frozen=True)
class ShownReply:
    """One reply."""

    condition: Condition
    text: str
    outcome: str  # `refused`, `answered` or `not scored`; empty if the run did not record any
    mark: str  # `good` or `bad`, by what is wanted of this set; empty where that is not known


@dataclass(frozen=True)
class Exchange:
    """A prompt and its replies."""

    prompt: str
    replies: tuple[ShownReply, ...]
    changed: bool  # whether the edited reply differs from the base's
    refused: bool | None  # whether the edited reply is a refusal; `None` if unknown
    flip: str  # `now refused` or `no longer refused`; empty where neither is so, or nothing is known
    mark: str  # whether the flip is `good` or `bad`

    @property
    def tags(self) -> str:
        """Words the page's filter selects by."""
        return " ".join(
            name for name, on in (("changed", self.changed), ("refused", self.refused), ("flipped", self.flip)) if on
        )

    @property
    def before_and_after(self) -> list[ShownReply]:
        """The replies of the base and of the edit."""
        return [reply for reply in self.replies if reply.condition.kind != "steering"]


def reply_sets(run: RunResults) -> dict[str, list[Exchange]]:
    """By name of the set, the exchanges for which some held-out condition has replies."""
    attribute, direction = run.goal
    sets = {}
    for name, prompts in run.prompts.items():
        conditions = [condition for condition in run.side_by_side if condition.replies.get(name)]
        if conditions:
            refusal_is_good = (attribute == f"{name}_refused") == (direction > 0)
            sets[name] = [_exchange(p, i, name, conditions, refusal_is_good) for i, p in enumerate(prompts)]
    return sets


def first_replies(sets: Mapping[str, Sequence[Exchange]]) -> list[Exchange]:
    """What to show first of the replies that changed: one flip for the better, one for the worse, and more."""
    changed = [exchange for exchange in chain(*sets.values()) if exchange.changed]
    ordered = sorted(changed, key=lambda exchange: not exchange.flip)
    first = [next((e for e in ordered if e.mark == mark), None) for mark in ("good", "bad")]
    return [e for e in [*first, *(e for e in ordered if e not in first)] if e is not None][:FIRST]


def _exchange(prompt: str, index: int, name: str, conditions: Sequence[Condition], refusal_is_good: bool) -> Exchange:
    by_kind = {condition.kind: condition for condition in reversed(conditions)}
    base, edit = by_kind.get("base"), by_kind.get("edit")
    before, after = (c.outcomes[name][index] if c and c.outcomes.get(name) else None for c in (base, edit))
    flipped = before is not None and after is not None and before != after
    replies = []
    for condition in conditions:
        outcomes = condition.outcomes.get(name)
        outcome = outcomes[index] if outcomes else None
        text = _OUTCOMES[outcome] if outcomes else ""
        replies.append(ShownReply(condition, condition.replies[name][index], text, _mark(outcome, refusal_is_good)))
    return Exchange(
        prompt,
        tuple(replies),
        changed=base is not None and edit is not None and base.replies[name][index] != edit.replies[name][index],
        refused=after,
        flip=("now refused" if after else "no longer refused") if flipped else "",
        mark=_mark(after, refusal_is_good) if flipped else "",
    )


def _mark(refused: bool | None, refusal_is_good: bool) -> str:
    return "" if refused is None else "good" if refused == refusal_is_good else "bad"
