"""A first look at an edit, in seconds: a few replies, and how much likelier the wanted responses became."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from steer2edit.core import SteeringVectors, WeightEdit
from steer2edit.editing.convert import PREVIEW_ROWS
from steer2edit.engines import Request, TransformersEngine
from steer2edit.estimates import CHANGE, NUMBER, Estimate
from steer2edit.evaluation import BASE_ARM, edit_arm, mean, paired_difference, steering_arm
from steer2edit.models import LanguageModel, Prompt, Sampling, encode_responses
from steer2edit.report.text import visible
from steer2edit.steering import ContrastSet

STRENGTH = 0.3
"""Of the steering beside the edit: strong enough to show what the vectors are of."""
_MOST_ROWS = 16
_PROMPTS = 4
_REPLY = Sampling(max_new_tokens=32)
_NOTHING = 0.02  # nats per token

Rows = Sequence[Mapping[str, tuple[Prompt, str]]]
"""(prompt, response) by `positive` and `negative`."""


@dataclass(frozen=True, repr=False)
class Preview:
    """What a few validation rows show of an edit.

    Args:
        prompts: what was asked.
        replies: by what the model ran under, the base first, steering next, the edit last.
        log_odds: of the positive against the negative responses, nats per token, by the same names.
        changes: of these to the base, paired.
    """

    prompts: tuple[Prompt, ...]
    replies: Mapping[str, tuple[str, ...]]
    log_odds: Mapping[str, Estimate]
    changes: Mapping[str, Estimate]

    @property
    def changed(self) -> int:
        """How many of the edit's replies are not the base's."""
        base, *_, edited = self.replies.values()
        return sum(a != b for a, b in zip(base, edited, strict=True))

    @property
    def nothing(self) -> bool:
        """Whether nothing can be seen of the edit."""
        change = list(self.changes.values())[-1].value
        return not self.changed and (change is None or abs(change) < _NOTHING)

    @property
    def sentences(self) -> list[str]:
        """What it comes to, in words."""
        steered, edited = self.changes
        replies = f"{self.changed} of {len(self.prompts)} replies differ from the base's"
        odds = (
            f"Log-odds of the wanted responses, nats per token: base {NUMBER.text(self.log_odds[BASE_ARM.label])}; "
            f"changed by {CHANGE.text(self.changes[edited])} with the {edited} and by "
            f"{CHANGE.text(self.changes[steered])} with {steered} (n = {self.changes[edited].n})."
        )
        if not self.nothing:
            return [f"With the edit {replies}.", odds]
        return [
            f"This edit changes nothing that can be seen: {replies}, and the log-odds hardly move. Make it stronger "
            "(a smaller rho, or --kl), or of measured effects (extract --effects).",
            odds,
        ]

    def __repr__(self) -> str:
        lines = []
        for index, prompt in enumerate(self.prompts):
            lines.append(f"  {prompt if isinstance(prompt, str) else prompt[-1]['content']}")
            lines += [f"    {name}: {' '.join(own[index].split())}" for name, own in self.replies.items()]
        return visible("\n".join([*lines, *self.sentences]))

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    def to_json(self) -> dict[str, Any]:
        """All of it by name."""
        log_odds, changes = (
            {name: one.to_json() for name, one in own.items()} for own in (self.log_odds, self.changes)
        )
        replies = {name: list(own) for name, own in self.replies.items()}
        return {"prompts": list(self.prompts), "replies": replies, "log_odds": log_odds, "changes": changes,
                "nothing": self.nothing}  # fmt: skip


def with_preview_rows(vectors: SteeringVectors, contrast: ContrastSet) -> SteeringVectors:
    """The vectors with a few validation rows of their contrast, which `preview` looks at an edit with."""
    known = contrast.validation
    pairs = [(known.positive[i], known.negative[j]) for i, j in known.pairs()[:_MOST_ROWS]]
    if not pairs:
        return vectors
    rows = [{"positive": list(more), "negative": list(less)} for more, less in pairs]
    return replace(vectors, metadata={**vectors.metadata, PREVIEW_ROWS: rows})


def preview(
    model: LanguageModel, vectors: SteeringVectors, edit: WeightEdit, strength: float = STRENGTH
) -> Preview | None:
    """A few replies of base, steered and edited model, and what became of the log-odds; `None` without rows for it.

    Args:
        model: the base model.
        vectors: with validation rows, as `extract` gives them.
        edit: what is looked at.
        strength: of steering beside it.
    """
    rows: Rows = vectors.metadata.get(PREVIEW_ROWS, ())
    if not rows:
        return None
    arms = [BASE_ARM, steering_arm(vectors, strength), edit_arm(edit, "edit")]
    engine, names = TransformersEngine(model), [arm.label for arm in arms]
    prompts = tuple(row["positive"][0] for row in rows[:_PROMPTS])
    requests = [Request(prompt, arm.intervention) for arm in arms for prompt in prompts]
    shown = [reply.shown for reply in engine.generate(requests, _REPLY, "Preview")]
    pairs = [(row[side][0], row[side][1]) for side in ("positive", "negative") for row in rows]
    margins = []
    for scores in engine.score(encode_responses(model, pairs), [arm.intervention for arm in arms], kl=False):
        more, less = scores[: len(rows)], scores[len(rows) :]
        margins.append([b.nll - a.nll for a, b in zip(more, less, strict=True)])
    return Preview(
        prompts,
        {name: tuple(shown[i * len(prompts) : (i + 1) * len(prompts)]) for i, name in enumerate(names)},
        {name: mean(own) for name, own in zip(names, margins, strict=True)},
        {name: paired_difference(own, margins[0]) for name, own in zip(names[1:], margins[1:], strict=True)},
    )
