"""The parts of an edit that a causal check compares, with the controls drawn for them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from steer2edit.core import WeightEdit
from steer2edit.estimates import Estimate
from steer2edit.stress.causal.component_edits import (
    Directions,
    only,
    random_components,
    shuffled,
    strongest,
    without,
)

Kind = Literal["edit", "top", "rest", "random", "matched", "shuffled"]
_STRENGTHS = (0.2, 5.0)


@dataclass(frozen=True)
class Part:
    """An edit derived from the edit.

    Args:
        kind: which derivation; `matched` is a random draw at the drift of the top components.
        label: the arm's.
        edit: what is applied.
        top: the n it belongs to; `None` for the whole edit and its shuffles.
        strength: it is applied at, relative to the edit's.
        unedited: for a random draw, whether it is of components that the edit leaves alone.
    """

    kind: Kind
    label: str
    edit: WeightEdit
    top: int | None = None
    strength: float = 1.0
    unedited: bool = True


def parts_of(edit: WeightEdit, counts: Sequence[int], directions: Directions, draws: int, seed: int) -> list[Part]:
    """Shuffles of the edit, then for every n: the top, all but the top, and random draws.

    Args:
        edit: the edit.
        counts: n of the top components.
        directions: k of every component, of those too that are not edited.
        draws: random draws per n; shuffles are half as many, rounded up.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = [
        Part("shuffled", f"shuffled {draw}", shuffled(edit, directions, generator))
        for draw in range(1, (draws + 1) // 2 + 1)
    ]
    for count in counts:
        chosen = strongest(edit, count)
        parts.append(Part("top", f"top {count}", only(edit, chosen), count))
        parts.append(Part("rest", f"all but top {count}", without(edit, chosen), count))
        for draw in range(1, draws + 1):
            drawn, unedited = random_components(edit, chosen, directions, generator)
            parts.append(Part("random", f"random {count}, draw {draw}", drawn, count, unedited=unedited))
    return parts


def at_equal_drift(parts: Sequence[Part], drift: Mapping[str, Estimate]) -> list[Part]:
    """Every random draw again, at the strength at which its KL would be that of its top components.

    A KL grows with the square of a small strength, so that s = √(KL_top / KL_random), kept within 0.2 and 5.

    Args:
        parts: with the top components of every draw.
        drift: mean KL by label.
    """
    tops = {part.top: drift[part.label].value or 0.0 for part in parts if part.kind == "top"}
    matched = []
    for part in parts:
        own = drift[part.label].value or 0.0
        if part.kind != "random" or own <= 0 or tops[part.top] <= 0:
            continue
        strength = min(max(math.sqrt(tops[part.top] / own), _STRENGTHS[0]), _STRENGTHS[1])
        label = f"{part.label}, equal drift"
        matched.append(Part("matched", label, part.edit, part.top, strength, part.unedited))
    return matched
