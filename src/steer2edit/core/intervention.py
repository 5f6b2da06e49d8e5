"""What may be done to a model while it runs: nothing, activation steering, a weight edit, or several of them."""

import sys
from dataclasses import dataclass
from typing import SupportsFloat

from steer2edit.core.edit import WeightEdit
from steer2edit.core.vectors import SteeringVectors
from steer2edit.errors import InvalidValueError


@dataclass(frozen=True)
class Steering:
    """Activation steering `y ← y + strength · v` at every site and every position. Source: §4.1."""

    vectors: SteeringVectors
    strength: float

    def __post_init__(self) -> None:
        finite_strength(self.strength)


@dataclass(frozen=True)
class Editing:
    """The weight edit applied at run time, `y ← y + strength · (x · a) u`."""

    edit: WeightEdit
    strength: float = 1.0

    def __post_init__(self) -> None:
        finite_strength(self.strength)


@dataclass(frozen=True)
class Combined:
    """Several at once: each adds to a site's output what it adds alone."""

    parts: "tuple[Steering | Editing, ...]"


Intervention = Steering | Editing | Combined | None


def finite_strength(strength: object) -> float:
    """The strength of an edit or of steering, which is a finite number."""
    if not isinstance(strength, SupportsFloat) or not abs(strength) <= sys.float_info.max:  # type: ignore[arg-type]
        raise InvalidValueError(f"strength must be a finite number, got {strength!r}. 1 applies an edit as it is.")
    return float(strength)
