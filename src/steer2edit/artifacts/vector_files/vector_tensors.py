"""Steering vectors as tensors by name, which is what files hold.

    L3.attn                                      v of a site
    L3.attn.output_positive, .output_negative    class means of a site's output
    L3.attn.input_mean                           μ of a site
    L3.attn.input_positive, .input_negative      class means of a site's input
    L3.mlp.tokens_positive, .tokens_negative     of a mixture of experts: tokens by expert
    L3.mlp.usage_positive, .usage_negative       of a mixture of experts: mean routing weight by expert
    L3.attn.effect, .drift, .agreement           what a site's columns do, and the agreement of two halves of the data
    B3, B3.output_positive, .output_negative     the same of the output of a whole layer

docs/formats.md says which of them belong together.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from steer2edit.core import BLOCKS, ClassMeans, RoutingMeans, Site, SiteEffects, SiteMeans, SteeringVectors
from steer2edit.errors import InvalidValueError

_PARTS = ("output_positive", "output_negative", "input_positive", "input_negative")
_ROUTING = ("tokens_positive", "tokens_negative", "usage_positive", "usage_negative")
_EFFECTS = ("effect", "drift", "gated", "agreement")
_LAYER = "0|[1-9][0-9]{0,8}"
_SITE_PARTS = "|".join((*_PARTS, *_ROUTING, *_EFFECTS, "input_mean"))
_SITE = re.compile(rf"(L(?:{_LAYER})\.(?:{'|'.join(BLOCKS)}))(?:\.({_SITE_PARTS}))?")
_BLOCK = re.compile(rf"B({_LAYER})(?:\.({'|'.join(_PARTS[:2])}))?")
_PLAIN = "v"  # a key that is a site's or a layer's name alone is v itself
_OUTPUT, _INPUT = (_PLAIN, *_PARTS[:2]), ("input_mean", *_PARTS[2:])
_GROUPS = (_OUTPUT, _INPUT, _ROUTING, _EFFECTS)

Content = tuple[dict[Site, SiteMeans], dict[int, ClassMeans] | None]
"""Means by site, and those of block outputs by layer, if there are any."""


def named_tensors(vectors: SteeringVectors) -> dict[str, Tensor]:
    """Every mean by its name, float32, on the CPU."""
    tensors = {f"{site}.{part}": t for site, means in vectors.sites.items() for part, t in _site_parts(means).items()}
    for layer, means in (vectors.block_outputs or {}).items():
        tensors |= {f"B{layer}.{part}": t for part, t in zip(_PARTS, _pair_of(means), strict=False)}
    return tensors


def plain_tensors(vectors: SteeringVectors) -> dict[str, Tensor]:
    """v and μ alone: `L3.attn` [d], `L3.attn.input_mean` [m], and `B3` [d] of block outputs."""
    tensors = {str(site): means.steering_vector for site, means in vectors.sites.items()}
    tensors |= {f"{s}.input_mean": m.input.midpoint for s, m in vectors.sites.items() if m.input is not None}
    return tensors | {f"B{layer}": means.difference for layer, means in (vectors.block_outputs or {}).items()}


def assemble(tensors: Mapping[str, Tensor]) -> Content:
    """Means by site and by layer from tensors by name.

    Raises:
        InvalidValueError: an unknown name, an incomplete group, or a tensor that is no vector of floats.
    """
    sites: dict[str, dict[str, Tensor]] = {}
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        site, block = _SITE.fullmatch(name), _BLOCK.fullmatch(name)
        if site is None and block is None:
            raise InvalidValueError(
                f"{name!r} is not the name of a steering vector. Name v L<layer>.attn or L<layer>.mlp (L3.attn), and "
                "its input mean L3.attn.input_mean."
            )
        vector = _checked(name, tensor)
        if site:
            sites.setdefault(site[1], {})[site[2] or _PLAIN] = vector
        elif block:
            layers.setdefault(int(block[1]), {})[block[2] or _PLAIN] = vector
    by_site = {Site.parse(site): _site_means(site, parts) for site, parts in sites.items()}
    return by_site, {layer: _class_means(f"B{layer}", parts, _OUTPUT) for layer, parts in layers.items()} or None


def _checked(name: str, tensor: object) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise InvalidValueError(f"{name} must be a torch tensor, got {type(tensor).__name__}.")
    if tensor.ndim != 1 or not tensor.is_floating_point() or not tensor.numel():
        raise InvalidValueError(
            f"{name} must be a vector of floating-point numbers, got {str(tensor.dtype)[6:]} of shape "
            f"{list(tensor.shape)}."
        )
    return tensor.detach().to("cpu", torch.float32)


def _site_means(site: str, parts: Mapping[str, Tensor]) -> SiteMeans:
    outputs, inputs, routing, effects = ({p: parts[p] for p in group if p in parts} for group in _GROUPS)
    if routing and (set(_ROUTING) - routing.keys() or len({tensor.numel() for tensor in routing.values()}) != 1):
        raise InvalidValueError(f"{site}: of its experts it needs {', '.join(_ROUTING)}, one entry per expert in each.")
    if effects and (set(_EFFECTS) - effects.keys() or effects["agreement"].numel() != 1):
        raise InvalidValueError(f"{site}: of its effects it needs {', '.join(_EFFECTS)}, the last one number.")
    return SiteMeans(
        _class_means(site, outputs, _OUTPUT),
        _class_means(site, inputs, _INPUT) if inputs else None,
        RoutingMeans(*(ClassMeans(*(routing[p] for p in pair)) for pair in (_ROUTING[:2], _ROUTING[2:])))
        if routing
        else None,
        SiteEffects(effects["effect"], effects["drift"], effects["gated"], effects["agreement"].item())
        if effects
        else None,
    )


def _class_means(name: str, parts: Mapping[str, Tensor], group: tuple[str, str, str]) -> ClassMeans:
    """From a pair, or from one tensor: v, which is a difference, or μ, which is the middle."""
    single, *pair = group
    if parts.keys() == {single}:
        tensor = parts[single]
        return ClassMeans(tensor, torch.zeros_like(tensor) if single == _PLAIN else tensor)
    if parts.keys() != set(pair):
        only = f"only {', '.join(parts)}" if parts else f"no {single}"
        raise InvalidValueError(f"{name} has {only}: it needs {single}, or {' and '.join(pair)}.")
    positive, negative = (parts[part] for part in pair)
    if positive.shape != negative.shape:
        raise InvalidValueError(
            f"{name}: the positive mean has {positive.numel()} entries and the negative {negative.numel()}: they "
            "cannot belong to one projection."
        )
    return ClassMeans(positive, negative)


def _site_parts(means: SiteMeans) -> dict[str, Tensor]:
    tensors = [*_pair_of(means.output), *(_pair_of(means.input) if means.input is not None else ())]
    parts = dict(zip(_PARTS, tensors, strict=False))
    if means.routing is not None:
        tensors = [*_pair_of(means.routing.tokens), *_pair_of(means.routing.usage)]
        parts |= dict(zip(_ROUTING, tensors, strict=True))
    if means.effects is not None:
        found = (*means.effects.tensors, torch.tensor([means.effects.agreement]))
        parts |= dict(zip(_EFFECTS, (tensor.detach().to("cpu", torch.float32) for tensor in found), strict=True))
    return parts


def _pair_of(means: ClassMeans) -> tuple[Tensor, Tensor]:
    return means.positive.detach().to("cpu", torch.float32), means.negative.detach().to("cpu", torch.float32)
