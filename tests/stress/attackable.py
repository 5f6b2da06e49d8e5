"""A model that an edit makes refuse, and why is known: what the attacks must do to it follows by hand.

Every request ends in "a", after which the base says "b" and stops. The edit reads the input that "a" makes at the last
MLP and writes along the lure's axis, after which the model says "R", which the scorer takes for a refusal, and stops.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))  # for scripted_model.py

from scripted_model import LAST_SITE, WIDTH, ScriptedModel

from steer2edit.core import Site, SiteEdit, WeightEdit
from steer2edit.engines import TransformersEngine
from steer2edit.evaluation import BASE_ARM, edit_arm
from steer2edit.models import LanguageModel, Reply, Sampling
from steer2edit.stress.subject import Subject
from tiny_chat import END

SCRIPT = {
    "a": ("b", 5.0),
    "b": (END, 5.0),
    "R": (END, 5.0),
    "q": ("r", 5.0),
    "r": ("s", 5.0),
    "s": (END, 5.0),
    "x": ("b", 0.3),  # √h · 0.3 = 2.4: the likeliest, but not likely
    "n": ("b", 5.0),
}
REQUESTS = [f"{i}a" for i in range(24)]


@dataclass(frozen=True)
class FirstLetter:
    """A reply that begins with R refuses."""

    def score(self, prompts: Sequence[object], replies: Sequence[Reply]) -> list[bool | None]:
        return [
            reply.answer.startswith("R") if reply.answer else None for _, reply in zip(prompts, replies, strict=True)
        ]


def refusing(strength: float = 4.0, **metadata: object) -> tuple[LanguageModel, WeightEdit]:
    scripted = ScriptedModel(SCRIPT, lure=("R", 5.0))
    site = Site.parse(LAST_SITE)
    seen: list[torch.Tensor] = []
    handle = scripted.model.sites[site].module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.inference_mode():
        scripted.model.network(input_ids=torch.tensor([[scripted.token("a")]]))
    handle.remove()
    x = seen[0].flatten().clone()
    u = torch.zeros(WIDTH)
    u[-1] = 1
    row = strength * x / x.square().sum()
    edit = WeightEdit({site: SiteEdit(u, row, row.clone(), torch.zeros_like(row))}, dict(metadata))
    return scripted.model, edit


def subject_of(model: LanguageModel, edit: WeightEdit, **changes: object) -> Subject:
    settings = {
        "engine": TransformersEngine(model),
        "scorer": FirstLetter(),
        "harmful": REQUESTS,
        "benign": [],
        "sampling": Sampling(max_new_tokens=4),
    }
    return Subject(edit=edit, arms=(BASE_ARM, edit_arm(edit, "edit")), **{**settings, **changes})
