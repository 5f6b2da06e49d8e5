"""How far rounding can move a number: the spacing of a dtype's numbers, and the interval a change lies in.

A checkpoint holds `W' = round(W + ΔW)`. What is read back, `W' − W`, is therefore ΔW up to half the distance between
two neighbouring numbers of the dtype, entry by entry: a large weight hides more than a small one.
"""

import torch
from jaxtyping import Float
from torch import Tensor

ROUNDED_TO = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
"""Dtypes that a checkpoint may have been rounded through."""

_EXPONENT = {torch.float32: (torch.int32, 0x7F800000), torch.float64: (torch.int64, 0x7FF0000000000000)}
_SLACK = 1 + 2**-10  # sums of our own and others' arithmetic in float32


def coarser(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """The dtype of the two with fewer digits."""
    return max(one, other, key=lambda dtype: torch.finfo(dtype).eps)


def working_dtype(stored: torch.dtype) -> torch.dtype:
    """The dtype to compute in, so that our own arithmetic is far finer than the rounding that is measured."""
    return torch.float32 if torch.finfo(stored).eps >= torch.finfo(torch.bfloat16).eps else torch.float64


def spacing(values: Float[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """Distance between a number of `dtype` and the next larger in magnitude: 2^⌊log₂|x|⌋ · ε.

    Args:
        values: numbers that `dtype` holds, in float32 or float64.
        dtype: a floating dtype.

    Returns:
        The distances; of numbers below the smallest normal one, the subnormal's.
    """
    integer, mask = _EXPONENT[values.dtype]
    info = torch.finfo(dtype)
    power = (values.view(integer) & mask).view(values.dtype)
    return power.clamp_min(info.tiny) * info.eps


def halfwidth(
    after: Float[Tensor, "*shape"], change: Float[Tensor, "*shape"], dtype: torch.dtype
) -> Float[Tensor, "*shape"]:
    """Largest distance between a change as it was meant and as it is read from rounded weights.

        ½ (spacing(W') + spacing(W' − W))

    The sum W + ΔW is rounded once; tools that merge in the weights' dtype round ΔW itself before.

    Args:
        after: W', in float32 or float64.
        change: W' − W, in the same.
        dtype: what W' (or W, if coarser) is stored in.
    """
    return (0.5 * _SLACK) * (spacing(after, dtype) + spacing(change, dtype))


def is_rounded(before: Float[Tensor, "*shape"], after: Float[Tensor, "*shape"], dtype: torch.dtype) -> bool:
    """Whether `after` is `before` rounded to `dtype`, in every entry. NaN equals NaN."""
    rounded = before.to(dtype).to(after.dtype)
    return bool(((rounded == after) | (rounded.isnan() & after.isnan())).all())
