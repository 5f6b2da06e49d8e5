"""Replies side by side: one exchange per held-out prompt, with the reply under every condition."""

from collections.abc import Sequence
from dataclasses import dataclass

from steer2edit.estimates import Condition, ConditionKind
from steer2edit.report.run_results import RunResults

_OUTCOMES = {True: "refused", False: "answered", None: "not scored"}


@dataclass(frozen=True)
class Reply:
    """One reply; `outcome` is `refused`, `answered`, `not scored`, or `None` if the run did not record outcomes."""

    kind: ConditionKind
    label: str
    text: str
    outcome: str | None


@dataclass(frozen=True)
class Exchange:
    """A prompt and its replies.

    Args:
        prompt: what the user asked.
        replies: one per condition.
        changed: whether the edited reply differs from the base's.
        refused: whether the edited reply is a refusal; `None` if unknown.
        flipped: whether one of the two is a refusal and the other is not; `None` if unknown.
    """

    prompt: str
    replies: tuple[Reply, ...]
    changed: bool
    refused: bool | None
    flipped: bool | None

    @property
    def tags(self) -> str:
        """Words the page's filter selects by."""
        flags = {"changed": self.changed, "refused": self.refused, "flipped": self.flipped}
        return " ".join(name for name, is_set in flags.items() if is_set)


@dataclass(frozen=True)
class ReplySet:
    """The exchanges of one prompt set."""

    name: str
    exchanges: tuple[Exchange, ...]

    @property
    def has_outcomes(self) -> bool:
        """Whether refusals are known for some reply of the edited model."""
        return any(exchange.refused is not None for exchange in self.exchanges)


def reply_sets(run: RunResults) -> list[ReplySet]:
    """One set per name in the prompts for which some held-out condition has replies."""
    sets = []
    for name, prompts in run.prompts.items():
        conditions = [condition for condition in run.side_by_side if condition.replies.get(name)]
        if conditions:
            exchanges = (_exchange(prompt, index, name, conditions) for index, prompt in enumerate(prompts))
            sets.append(ReplySet(name, tuple(exchanges)))
    return sets


def _exchange(prompt: str, index: int, name: str, conditions: Sequence[Condition]) -> Exchange:
    replies = tuple(_reply(condition, name, index) for condition in conditions)
    kinds = [condition.kind for condition in conditions]
    before = replies[kinds.index("base")] if "base" in kinds else None
    after = replies[kinds.index("edit")] if "edit" in kinds else None
    pair = None if before is None or after is None else (before.outcome, after.outcome)
    scored = pair is not None and set(pair) <= {"refused", "answered"}
    return Exchange(
        prompt=prompt,
        replies=replies,
        changed=before is not None and after is not None and before.text != after.text,
        refused=None if after is None or after.outcome in (None, "not scored") else after.outcome == "refused",
        flipped=pair[0] != pair[1] if pair is not None and scored else None,
    )


def _reply(condition: Condition, name: str, index: int) -> Reply:
    outcomes = condition.outcomes.get(name)
    outcome = _OUTCOMES[outcomes[index]] if outcomes else None
    return Reply(condition.kind, condition.label, condition.replies[name][index], outcome)
