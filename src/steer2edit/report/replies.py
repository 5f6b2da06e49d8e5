"""Replies side by side: one exchange per held-out prompt, with the reply under every condition."""

from collections.abc import Sequence
from dataclasses import dataclass

from steer2edit.estimates import NOT_SCORED, Condition
from steer2edit.report.run_results import RunResults

_OUTCOMES = {True: "refused", False: "answered", None: NOT_SCORED}


@dataclass(frozen=True)
class Exchange:
    """A prompt and its replies."""

    prompt: str  # what the user asked
    # (condition, text, outcome) of each; the outcome is `refused`, `answered` or `not scored`, and `None` if the run
    # did not record any
    replies: tuple[tuple[Condition, str, str | None], ...]
    changed: bool  # whether the edited reply differs from the base's
    refused: bool | None  # whether the edited reply is a refusal; `None` if unknown
    flipped: bool | None  # whether one of the two is a refusal and the other is not; `None` if unknown

    @property
    def tags(self) -> str:
        """Words the page's filter selects by."""
        return " ".join(name for name in ("changed", "refused", "flipped") if getattr(self, name))


def reply_sets(run: RunResults) -> dict[str, list[Exchange]]:
    """By name of the set, the exchanges for which some held-out condition has replies."""
    sets = {}
    for name, prompts in run.prompts.items():
        conditions = [condition for condition in run.side_by_side if condition.replies.get(name)]
        if conditions:
            sets[name] = [_exchange(prompt, index, name, conditions) for index, prompt in enumerate(prompts)]
    return sets


def _exchange(prompt: str, index: int, name: str, conditions: Sequence[Condition]) -> Exchange:
    by_kind = {condition.kind: condition for condition in reversed(conditions)}
    base, edit = by_kind.get("base"), by_kind.get("edit")
    before, after = (c.outcomes[name][index] if c and c.outcomes.get(name) else None for c in (base, edit))
    return Exchange(
        prompt,
        tuple((c, c.replies[name][index], _outcome(c, name, index)) for c in conditions),
        changed=base is not None and edit is not None and base.replies[name][index] != edit.replies[name][index],
        refused=after,
        flipped=None if before is None or after is None else before != after,
    )


def _outcome(condition: Condition, name: str, index: int) -> str | None:
    outcomes = condition.outcomes.get(name)
    return _OUTCOMES[outcomes[index]] if outcomes else None
