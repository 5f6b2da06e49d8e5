"""The ways in which an edit and a number format come together."""

from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Way = Literal["rounded", "requantised", "adapter"]


def carried(
    way: Way,
    rounding: Callable[[Float[Tensor, "d m"]], Float[Tensor, "d m"]],
    weight: Float[Tensor, "d m"],
    stored: Float[Tensor, "d m"],
    change: Float[Tensor, "d m"],
) -> Float[Tensor, "d m"]:
    """The weight that a model computes with: `weight` is W, `stored` is Q(W), `change` is ΔW.

    rounded: Q(W + ΔW); requantised: Q(Q(W) + ΔW); adapter: Q(W) + ΔW.
    """
    if way == "rounded":
        return rounding(weight + change)
    return rounding(stored + change) if way == "requantised" else stored + change
