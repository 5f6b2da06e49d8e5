"""The method's settings: one definition each, checked once, from which the command line takes help and defaults."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from steer2edit.core import Block
from steer2edit.errors import InvalidValueError, did_you_mean

COARSE_VALUES = (0.1, 0.3, 0.5, 0.7, 0.9)

InputDirectionRule = Literal["sensitivity", "mean", "svd", "gated"]
ImportanceRule = Literal["cosine", "dot", "effect"]
MagnitudeRule = Literal["elastic-net", "top-k", "ridge"]


@dataclass(frozen=True)
class Hyperparameters:
    """Budget of the edit; an InvalidValueError where ρ ≤ 0, α is outside [0, 1), or both blocks are off.

    Source: Theorem 3.3.
    """

    rho_attn: float | None  # ρ of the attention heads; `None` leaves them out
    rho_mlp: float | None  # ρ of the MLP neurons; `None` leaves them out
    alpha: float  # the l1 share α

    def __post_init__(self) -> None:
        if self.rho_attn is None and self.rho_mlp is None:
            raise InvalidValueError("rho_attn and rho_mlp are both off: nothing would be edited. Give at least one.")
        for name in ("rho_attn", "rho_mlp"):
            rho = getattr(self, name)
            if rho is not None and not 0 < rho < float("inf"):
                raise InvalidValueError(
                    f"{name} must be > 0, got {rho}: the magnitude divides by it. Use 'off' to leave a block out."
                )
        if not 0 <= self.alpha < 1:
            raise InvalidValueError(
                f"alpha must be in [0, 1), got {self.alpha}: the magnitude divides by 1 − alpha. Try 0.9."
            )

    @classmethod
    def from_json(cls, stored: Mapping[str, float | None]) -> "Hyperparameters":
        """What `to_json` gave, also of an earlier version, unless something is on that this version has not."""
        known = {field.name for field in fields(cls)}
        if beyond := [f"{name} = {value}" for name, value in stored.items() if name not in known and value is not None]:
            raise InvalidValueError(
                f"these hyper-parameters were made by another version: {', '.join(beyond)} is not of this one. The "
                "edit can be used as it is; to make it anew, extract with --effects and convert."
            )
        own: dict[str, Any] = {name: value for name, value in stored.items() if name in known}
        return cls(**own)

    def rho(self, block: Block) -> float | None:
        """ρ of a block, `None` if it is off."""
        return self.rho_mlp if block == "mlp" else self.rho_attn

    def __str__(self) -> str:
        shown = ["off" if rho is None else f"{rho:.3g}" for rho in (self.rho_attn, self.rho_mlp)]
        return f"ρ_attn={shown[0]} ρ_mlp={shown[1]} α={self.alpha:.3g}"

    def to_json(self) -> dict[str, float | None]:
        """The values by name."""
        return asdict(self)


@dataclass(frozen=True)
class Rules:
    """Which rule gives k, g and λ.

    The defaults are the paper's, and most others its ablations (Appendix E). Beyond it: the importance `effect` weighs
    components by measured effects and costs, and with it the input direction `gated` gives them a gate.
    """

    input_direction: InputDirectionRule = "sensitivity"
    importance: ImportanceRule = "cosine"
    magnitude: MagnitudeRule = "elastic-net"

    def __post_init__(self) -> None:
        known = {"input_direction": InputDirectionRule, "importance": ImportanceRule, "magnitude": MagnitudeRule}
        for name, rules in known.items():
            if (value := getattr(self, name)) not in get_args(rules):
                raise InvalidValueError(f"unknown {name} rule {value!r}. {did_you_mean(value, get_args(rules))}")
        if self.input_direction == "gated" and self.importance != "effect":
            raise InvalidValueError(
                "the input direction rule 'gated' is made of measured effects. Give the importance rule 'effect' too."
            )
        if self.importance == "effect" and (
            self.input_direction not in ("sensitivity", "gated") or self.magnitude != "elastic-net"
        ):
            raise InvalidValueError(
                "the importance rule 'effect' gives rows of its own: no other magnitude rule applies to it, and no "
                "input direction but gated. Leave them out."
            )

    def to_json(self) -> dict[str, str]:
        """The three rules by name."""
        return asdict(self)


PAPER_RULES = Rules()
GATED_RULES = Rules(input_direction="gated", importance="effect")
"""The rules of the recommended edit."""
EVERYTHING = Hyperparameters(1.0, 1.0, 0.0)
"""The budget of the recommended edit: all components of both blocks. Its strength is found by its drift."""


def grid(
    rho_attn: Sequence[float | None] = COARSE_VALUES,
    rho_mlp: Sequence[float | None] = COARSE_VALUES,
    alpha: Sequence[float] = COARSE_VALUES,
) -> list[Hyperparameters]:
    """Every combination; by default the paper's coarse grid {.1, .3, .5, .7, .9}³ (125 configurations)."""
    return [Hyperparameters(*values) for values in itertools.product(rho_attn, rho_mlp, alpha)]
