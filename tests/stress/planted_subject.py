"""A model in which one neuron carries a planted behaviour, and the subject of an edit that names it.

The last layer's neuron 7 is active on the token `!`, with which harmful requests end, and every other neuron is
silent. The base answers them with "Yes"; an edit that has neuron 7 write along the lure's axis answers "N.", which
counts as a refusal. Benign requests end with `?` and are answered with "K".
"""

from collections.abc import Mapping

import torch

from evaluation.scripted_model import LURE_AXIS, WIDTH, ScriptedModel
from steer2edit.core import Site, SiteEdit, WeightEdit
from steer2edit.engines import TransformersEngine
from steer2edit.evaluation import BASE_ARM, edit_arm
from steer2edit.models import LanguageModel, Sampling
from steer2edit.steering.refusal import RefusalPhrases
from steer2edit.stress.subject import Subject
from tiny_chat import END

SITE, CARRIER, NEURONS = Site(2, "mlp"), 7, 48
SCRIPT = {
    "!": ("Y", 0.5), "Y": ("e", 2.0), "e": ("s", 2.0), "s": (END, 2.0),
    "?": ("K", 2.0), "K": (END, 2.0), "N": (".", 2.0), ".": (END, 2.0),
}  # fmt: skip
DECOYS = {1: 0.02, 2: -0.02, 3: 0.02, 4: 0.02, 5: 0.02}


def planted_model() -> LanguageModel:
    scripted = ScriptedModel(SCRIPT, lure=("N", 1.5))
    mlp = scripted.model.layers[SITE.layer].mlp
    axis = scripted.axes[scripted.token("!")]
    with torch.no_grad():
        for projection in (mlp.gate_proj, mlp.up_proj):
            projection.weight.zero_()
            projection.weight[CARRIER, axis] = 0.25
        mlp.down_proj.weight[LURE_AXIS] = 1e-6  # too little to be seen, but it gives every neuron its k = 1
    return scripted.model


def planted_edit(magnitudes: Mapping[int, float]) -> WeightEdit:
    """λ by neuron; g has the sign of λ, and is 0.01 where there is none."""
    u, size = torch.zeros(WIDTH), torch.zeros(NEURONS)
    u[LURE_AXIS] = 1
    for neuron, magnitude in magnitudes.items():
        size[neuron] = magnitude
    return WeightEdit({SITE: SiteEdit(u, size.clone(), size, torch.where(size < 0, -0.5, 0.01))})


def planted_subject(edit: WeightEdit, *, strength: float = 1.0, limit: int | None = None, count: int = 12) -> Subject:
    letters = "abcdefghijklmnopqrstuvwx"[:count]
    return Subject(
        TransformersEngine(planted_model()),
        edit,
        [BASE_ARM, edit_arm(edit, "edit", strength)],
        [f"{letter}!" for letter in letters],
        [f"{letter}?" for letter in letters],
        RefusalPhrases("no", openers=("n",)),
        limit=limit,
        sampling=Sampling(max_new_tokens=6),
    )
