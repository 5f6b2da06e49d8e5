"""Number formats that weights are stored in, and a model that computes with what is left of its weights in one.

Rounding is to nearest; no calibration data is used (GPTQ and AWQ start from the same grids and choose better points
on them). The formats are those of torchao and bitsandbytes; `benchmarks/weight_formats.py` compares them bit by bit
where torchao is installed.

Shapes: d = rows (a layer's outputs), m = columns (its inputs), b = blocks, n = columns of a block.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import norm
from torch import Tensor, nn

from steer2edit.models import LanguageModel

INT4_GROUP, NF4_BLOCK, MXFP4_BLOCK = 128, 64, 32
_NF4_EDGE = 0.9677083  # the outermost quantile, as published
_FP8_MAX, _MXFP4_MAX = 448.0, 6.0
_TINY = torch.finfo(torch.float32).eps  # least scale: a block of zeros stays one

Rounding = Callable[[Float[Tensor, "d m"]], Float[Tensor, "d m"]]


@dataclass(frozen=True)
class WeightFormat:
    """A way of storing weights."""

    name: str  # short
    grid: str  # where its points are, in words
    rounded: Rounding  # W [d, m] float32 → the stored values Q(W), float32


def _int8(weight: Float[Tensor, "d m"]) -> Float[Tensor, "d m"]:
    """−128 … 127 times a scale per row: its largest |entry| is 127.5 steps."""
    scale = (weight.abs().amax(dim=1, keepdim=True) / 127.5).clamp(min=_TINY)
    return (weight * (1.0 / scale)).round().clamp(-128, 127) * scale


def _fp8(weight: Float[Tensor, "d m"]) -> Float[Tensor, "d m"]:
    """e4m3 times a scale per row: its largest |entry| is 448."""
    scale = (weight.abs().amax(dim=1, keepdim=True) / _FP8_MAX).clamp(min=_TINY)
    return (weight / scale).clamp(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn).float() * scale


def _int4(block: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """−8 … 7 with a scale and a whole zero point: 15 steps from the least entry to the largest, 0 among them."""
    low, high = block.amin(dim=1, keepdim=True).clamp(max=0), block.amax(dim=1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 15).clamp(min=_TINY)
    zero = (-8 - (low / scale).round()).clamp(-8, 7)
    return (((block * (1.0 / scale)).round() + zero).clamp(-8, 7) - zero) * scale


def nf4_points() -> Float[Tensor, "16"]:
    """The 16 points of nf4: normal quantiles, 8 positive and 7 negative ones and 0, scaled to [−1, 1].

    Source: Dettmers et al. 2023, QLoRA.
    """
    positive, negative = (norm.ppf(np.linspace(_NF4_EDGE, 0.5, count)[:-1]) for count in (9, 8))
    points = torch.tensor([*-negative, 0.0, *positive]).sort().values
    return (points / points.max()).float()


def _nf4(block: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """The nearest point times the block's largest |entry|, without the second quantisation of that scale."""
    scale = block.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    points = nf4_points().to(block.device)
    nearest = torch.bucketize(block / scale, (points[1:] + points[:-1]) / 2)
    return points[nearest] * scale


def _mxfp4(block: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """±{0, ½, 1, 1½, 2, 3, 4, 6} times 2^(⌊log₂ max⌋ − 2); ties go to the even one, and beyond 6 is 6.

    Source: OCP Microscaling Formats (MX) Specification 1.0, 2023.
    """
    largest = block.abs().amax(dim=1, keepdim=True)
    exponent = torch.frexp(largest).exponent - 1  # ⌊log₂ largest⌋, exactly
    scale = torch.ldexp(torch.ones_like(largest), (exponent - 2).clamp(min=-127))
    x = (block / scale).clamp(-_MXFP4_MAX, _MXFP4_MAX)
    step = torch.where(x.abs() < 2, 0.5, torch.where(x.abs() < 4, 1.0, 2.0))
    return (x / step).round() * step * scale


def _by_block(size: int, rounded: Callable[[Float[Tensor, "b n"]], Float[Tensor, "b n"]]) -> Rounding:
    """In blocks of `size` columns along a row; where it does not divide them, the last one is shorter."""

    def by_block(weight: Float[Tensor, "d m"]) -> Float[Tensor, "d m"]:
        whole = weight.shape[1] // size * size
        parts = [(weight[:, :whole], size), (weight[:, whole:], weight.shape[1] - whole)]
        return torch.cat([rounded(p.reshape(-1, n)).view(p.shape) for p, n in parts if p.numel()], dim=1)

    return by_block


_EVERY = (
    WeightFormat("bf16", "8 significant bits", lambda weight: weight.to(torch.bfloat16).float()),
    WeightFormat("fp16", "11 significant bits", lambda weight: weight.to(torch.float16).float()),
    WeightFormat("int8", "symmetric, a scale per row", _int8),
    WeightFormat("fp8", "e4m3, a scale per row", _fp8),
    WeightFormat("int4", f"asymmetric, scale and zero point per {INT4_GROUP} columns", _by_block(INT4_GROUP, _int4)),
    WeightFormat("nf4", f"normal quantiles, a scale per {NF4_BLOCK} columns", _by_block(NF4_BLOCK, _nf4)),
    WeightFormat("mxfp4", f"e2m1, a power of two per {MXFP4_BLOCK} columns", _by_block(MXFP4_BLOCK, _mxfp4)),
)
FORMATS = {one.name: one for one in _EVERY}


def linear_weights(model: LanguageModel) -> "list[Float[Tensor, 'd m']]":
    """Weights of all linear layers, experts too, as views [d, m]: what quantisers store, embeddings apart."""
    output = model.network.get_output_embeddings()
    layers = [m for m in model.network.modules() if m is not output]
    views = [layer.weight.detach() for layer in layers if isinstance(layer, nn.Linear)]
    views += [layer.weight.detach().T for layer in layers if type(layer).__name__ == "Conv1D"]
    transposed = {p.module: p.transposed for site in model.sites.values() for p in site.routed}
    for experts, flipped in transposed.items():
        fused = [p.detach() for p in experts.parameters(recurse=False) if p.ndim == 3]
        views += [own.T if flipped else own for parameter in fused for own in parameter]
    return views


@contextmanager
def quantised(model: LanguageModel, format: WeightFormat) -> Iterator[None]:
    """Hold what is left of the weights of all linear layers after storing them in a format, within the context.

    The weights are those of now, an edit that is merged into them included. Values are taken out of the format in
    float32 and rounded to the model's dtype, in which it computes; on leaving, the old bits are back. They wait in main
    memory: a device may have no room for two models.
    """
    _ = model.fingerprint  # taken now, of the weights as they are
    views = linear_weights(model)
    originals = [view.to("cpu", copy=True) for view in views]
    try:
        for view in views:
            view.copy_(format.rounded(view.float()))
        yield
    finally:
        for view, original in zip(views, originals, strict=True):
            view.copy_(original)
