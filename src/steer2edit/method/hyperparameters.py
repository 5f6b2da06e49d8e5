"""The method's settings: one definition each, checked once, from which the command line takes help and defaults."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from steer2edit.core import Block
from steer2edit.errors import InvalidValueError, did_you_mean
from steer2edit.method.directions import INPUT_DIRECTION_RULES, InputDirectionRule
from steer2edit.method.importance import IMPORTANCE_RULES, ImportanceRule
from steer2edit.method.magnitude import MAGNITUDE_RULES, MagnitudeRule, check_alpha, check_rho

COARSE_VALUES = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Hyperparameters:
    """Budget of the edit. Source: Theorem 3.3; `max_shift` goes beyond the paper.

    Args:
        rho_attn: ρ of the attention heads; `None` leaves them out.
        rho_mlp: ρ of the MLP neurons; `None` leaves them out.
        alpha: the l1 share α.
        max_shift: κ > 0 of `method.limit_shift`, or `None` (the paper's rule) for no limit.

    Raises:
        InvalidValueError: ρ ≤ 0, α outside [0, 1), κ ≤ 0, or both blocks off.
    """

    rho_attn: float | None
    rho_mlp: float | None
    alpha: float
    max_shift: float | None = None

    def __post_init__(self) -> None:
        if self.rho_attn is None and self.rho_mlp is None:
            raise InvalidValueError("rho_attn and rho_mlp are both off: nothing would be edited. Give at least one.")
        for name in ("rho_attn", "rho_mlp"):
            value = getattr(self, name)
            if value is not None:
                check_rho(value, name)
        check_alpha(self.alpha)
        if self.max_shift is not None and not 0 < self.max_shift < float("inf"):
            raise InvalidValueError(f"max_shift must be > 0, got {self.max_shift}. Leave it out for no limit.")

    def rho(self, block: Block) -> float | None:
        """ρ of a block, `None` if it is off."""
        return self.rho_attn if block == "attn" else self.rho_mlp

    def __str__(self) -> str:
        shown = ["off" if rho is None else f"{rho:g}" for rho in (self.rho_attn, self.rho_mlp)]
        limit = "" if self.max_shift is None else f" κ={self.max_shift:g}"
        return f"ρ_attn={shown[0]} ρ_mlp={shown[1]} α={self.alpha:g}{limit}"

    def to_json(self) -> dict[str, float | None]:
        """The values by name."""
        return asdict(self)


@dataclass(frozen=True)
class Rules:
    """Which rule gives k, g and λ. The defaults are the paper's; the others are its ablations (Appendix E)."""

    input_direction: InputDirectionRule = "sensitivity"
    importance: ImportanceRule = "cosine"
    magnitude: MagnitudeRule = "elastic-net"

    def __post_init__(self) -> None:
        known = {
            "input_direction": INPUT_DIRECTION_RULES,
            "importance": IMPORTANCE_RULES,
            "magnitude": MAGNITUDE_RULES,
        }
        for name, rules in known.items():
            if (value := getattr(self, name)) not in rules:
                raise InvalidValueError(f"unknown {name} rule {value!r}. {did_you_mean(value, rules)}")

    def to_json(self) -> dict[str, str]:
        """The three rules by name."""
        return asdict(self)


PAPER_RULES = Rules()


def grid(
    rho_attn: Sequence[float | None] = COARSE_VALUES,
    rho_mlp: Sequence[float | None] = COARSE_VALUES,
    alpha: Sequence[float] = COARSE_VALUES,
) -> list[Hyperparameters]:
    """Every combination; by default the paper's coarse grid {.1, .3, .5, .7, .9}³ (125 configurations)."""
    return [Hyperparameters(*values) for values in itertools.product(rho_attn, rho_mlp, alpha)]
