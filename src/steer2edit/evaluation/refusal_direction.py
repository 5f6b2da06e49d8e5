"""Which way an edit moves refusals: told by its own files, and measured where a model is at hand."""

from dataclasses import dataclass
from typing import Literal

from steer2edit.core import Editing, WeightEdit
from steer2edit.engines import TransformersEngine
from steer2edit.estimates import POINTS, Estimate
from steer2edit.evaluation.reply_tasks import RefusalTask
from steer2edit.evaluation.statistics import paired
from steer2edit.models import LanguageModel
from steer2edit.steering.presets import safety_prompts

Direction = Literal["lowers", "raises", "unknown"]
REFUSAL_CONTRASTS = {"safety": 1, "safety-benign": 1, "over-refusal": -1}
"""Contrasts that are about refusals: whether their positive responses refuse, or comply."""
_REQUESTS = 48


@dataclass(frozen=True)
class RefusalDirection:
    """Which way an edit moves refusals."""

    direction: Direction  # as far as it is known
    why: str  # what it is told by
    measured: Estimate | None = None  # the edit's rate less the base's on held-out harmful requests

    @property
    def sentence(self) -> str:
        """What is to be said first of an edit; empty where it raises refusals."""
        if self.direction == "lowers":
            return f"DUAL USE: this edit lowers refusals. {self.why}"
        return "" if self.direction == "raises" else f"Whether this edit lowers refusals is not known. {self.why}"


def refusal_direction(edit: WeightEdit, strength: float = 1.0) -> RefusalDirection:
    """What an edit's own files tell.

    An edit of a contrast that is about refusals pushes towards its positive responses where its components have the
    sign of their importances, Σ λ g > 0, and away from them below: λ is made of g, and a negative strength turns it
    round. A directional ablation takes what its contrast has away.
    """
    vectors = edit.metadata.get("vectors")
    contrast = (vectors if isinstance(vectors, dict) else {}).get("contrast")
    name = contrast.get("name") if isinstance(contrast, dict) else contrast
    if name not in REFUSAL_CONTRASTS:
        known = f"name the contrast {name!r}, which is none of refusals that the package knows"
        said = known if name else "do not say which contrast it was made from"
        return RefusalDirection("unknown", f"Its files {said}: measure it with --model.")
    sign = REFUSAL_CONTRASTS[name]
    shows = f"the contrast {name}, which {'refuses' if sign > 0 else 'complies'}"
    if edit.metadata.get("method") == "ablation":
        return RefusalDirection("lowers" if sign > 0 else "raises", f"It is a directional ablation of {shows}.")
    along = strength * sum(float(own.magnitude.double() @ own.importance.double()) for own in edit.sites.values())
    if along == 0:
        return RefusalDirection("unknown", "Its components have no importances or magnitudes: measure it with --model.")
    push = f"push {'towards' if along > 0 else 'against'} it (Σ λ g {along:+.3g})"
    why = f"It was made from {shows}, and its components {push}."
    return RefusalDirection("raises" if along * sign > 0 else "lowers", why)


def measured_direction(model: LanguageModel, edit: WeightEdit) -> RefusalDirection:
    """What it does to refusals of held-out harmful requests; what its files tell, where the interval covers zero."""
    model.require_fit(edit)
    told = refusal_direction(edit)
    requests = safety_prompts("held_out")[0][:_REQUESTS]
    base, edited = RefusalTask("harmful", requests).measure(TransformersEngine(model), [None, Editing(edit)])
    change = paired(edited.outcomes["harmful"], base.outcomes["harmful"])
    why = f"Measured: edit less base {POINTS.text(change, n=True)} of harmful requests refused."
    if change.above(0) or change.below(0):
        return RefusalDirection("raises" if change.above(0) else "lowers", why, change)
    return RefusalDirection(told.direction, f"{told.why} {why}", change)
