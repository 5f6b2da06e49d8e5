"""Vectors as other tools hold them, by the places of ours: a site, or a layer for what the whole block puts out."""

import re
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Block, BlockVectors, Site, SteeringVectors
from steer2edit.errors import InvalidValueError

_OFFICIAL = re.compile(r"model\.layers\[(\d+)\]\.(self_attn\.o_proj|mlp\.down_proj)")
_HOOKPOINT = re.compile(r"(?:[A-Za-z_]+\.)*?(?:layers|h|blocks)\.(0|[1-9][0-9]{0,8})(?:\.([A-Za-z0-9_.]+))?")
_MEANS = {"pos_mean": "positive", "neg_mean": "negative"}


@runtime_checkable
class LayerActivations(Protocol):
    """What is read of an object of the steering-vectors library, which itself is not needed."""

    layer_activations: Mapping[int, Tensor]
    layer_type: str


def from_object(vector: LayerActivations) -> SteeringVectors | BlockVectors:
    """Vectors of sites (`self_attn`, `mlp`: what these put out is what their projection puts out) or of block outputs.

    Raises:
        InvalidValueError: another layer type, no layer, or a tensor that is no vector.
    """
    rows = {}
    for layer, tensor in vector.layer_activations.items():
        if not isinstance(layer, int) or isinstance(layer, bool) or not isinstance(tensor, Tensor):
            raise InvalidValueError(
                f"layer_activations must be tensors by layer number, got {layer!r}: {type(tensor).__name__}."
            )
        rows[layer] = _one_row(tensor, f"layer {layer}: an activation")
    made = {"format": "steering-vectors", "layer_type": vector.layer_type}
    blocks: dict[str, Block] = {"self_attn": "attn", "mlp": "mlp"}
    if vector.layer_type == "decoder_block":
        return BlockVectors.from_mapping(rows, **made)
    if vector.layer_type not in blocks:
        raise InvalidValueError(
            f"layer_type {vector.layer_type!r} is no place that writes to the residual stream: train the vector on "
            "decoder_block, self_attn or mlp."
        )
    block = blocks[vector.layer_type]
    return SteeringVectors.from_mapping({Site(layer, block): tensor for layer, tensor in rows.items()}, **made)


def is_official(content: object) -> bool:
    """Whether this is meant to be a directions file of the official Steer2Edit code."""
    return isinstance(content, dict) and bool({"pre", "post"} & content.keys())


def official_tensors(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a directions file of the official code by our names; v itself where it has only the direction.

        {"pre" | "post": {"pos_mean" | "neg_mean" | "direction": {module: tensor}}}

    "post" is a projection's output y, "pre" its input x; modules are named `model.layers[{i}].self_attn.o_proj` and
    `model.layers[{i}].mlp.down_proj`; direction = pos_mean − neg_mean.

    Raises:
        InvalidValueError: there are no outputs, or something is not as described above.
    """
    groups = {name: _groups(content, where) for where, name in (("post", "output"), ("pre", "input"))}
    means = {
        f"{site}.{side}_{_MEANS[group]}": tensor
        for side, found in groups.items()
        for group in _MEANS.keys() & found.keys()
        for site, tensor in found[group].items()
    }
    if _MEANS.keys() & groups["output"].keys():
        return means
    if "direction" not in groups["output"]:
        raise InvalidValueError(
            "these directions of the official code have no 'post' (projection outputs) with pos_mean and neg_mean, or "
            "direction: there is nothing to steer along."
        )
    return means | groups["output"]["direction"]


def _groups(content: Mapping[str, Any], where: str) -> dict[str, dict[str, Tensor]]:
    groups = dictionary(content.get(where, {}), repr(where))
    return {name: _by_site(groups[name], f"{where}.{name}") for name in (*_MEANS, "direction") if groups.get(name)}


def _by_site(tensors: object, where: str) -> dict[str, Tensor]:
    sites = {}
    for key, tensor in dictionary(tensors, where).items():
        match = _OFFICIAL.fullmatch(str(key))
        if match is None or not isinstance(tensor, Tensor):
            raise InvalidValueError(
                f"{where}: {key!r} is not a tensor named model.layers[<i>].self_attn.o_proj or "
                "model.layers[<i>].mlp.down_proj."
            )
        sites[f"L{int(match[1])}.{'mlp' if match[2].startswith('mlp') else 'attn'}"] = tensor
    return sites


def dictionary(value: object, what: str) -> dict[Any, Any]:
    """The value, if it is a dictionary."""
    if not isinstance(value, dict):
        raise InvalidValueError(f"{what} must be a dictionary, got {type(value).__name__}.")
    return value


def is_steered(content: object) -> bool:
    """Whether this is meant to be a file of lm-eval's model `steered`."""
    entries = list(content.values()) if isinstance(content, dict) else content
    return (
        isinstance(entries, list)
        and bool(entries)
        and all(isinstance(e, dict) and "steering_vector" in e for e in entries)
    )


def steered_vectors(content: Any, **metadata: Any) -> SteeringVectors | BlockVectors:
    """Vectors of sites, or of block outputs, as the hookpoints of a file of lm-eval's model `steered` say.

        {"layers.7.self_attn.o_proj": {"steering_vector": v, "steering_coefficient": c, "action": "add", "bias": None}}

    `add` adds c·v to what the named module puts out, so the steering vector here is c·v. A projection, or the whole
    attention or MLP around it, is one of our sites; a whole layer (`layers.7`) is a block output. The documentation of
    lm-eval shows a list with `hookpoint` in each entry, its code reads the mapping: both are read here.

    Raises:
        InvalidValueError: an unknown hookpoint or action, hookpoints of both kinds, or an entry that is incomplete.
    """
    entries = content if isinstance(content, dict) else {entry.get("hookpoint"): entry for entry in content}
    if len(entries) != len(content):
        raise InvalidValueError("a hookpoint is missing or there twice: name every one once.")
    found: dict[Any, Tensor] = {}
    for hookpoint, entry in entries.items():
        place = _place(hookpoint)
        if place in found:
            raise InvalidValueError(f"{hookpoint!r}: {place} is there twice, under two names.")
        found[place] = _shift(hookpoint, entry)
    metadata["coefficients"] = {str(name): float(entry["steering_coefficient"]) for name, entry in entries.items()}
    kinds = {type(place) for place in found}
    if len(kinds) > 1:
        raise InvalidValueError(
            "it has hookpoints of projections and of whole layers, which are different quantities. Put them into two "
            "files."
        )
    return (BlockVectors if int in kinds else SteeringVectors).from_mapping(found, **metadata)


def hooked_place(hook: object) -> Site | int:
    """A TransformerLens hook, or a module, as one of our sites, or as the layer whose output it is.

        blocks.7.hook_attn_out, blocks.7.hook_mlp_out    what the attention, the MLP puts out: a site
        blocks.7.hook_resid_post, blocks.8.hook_resid_pre    the output of layer 7

    Raises:
        InvalidValueError: it is another place.
    """
    residual = re.fullmatch(r"blocks\.(\d{1,9})\.hook_resid_(pre|post)", str(hook))
    if residual is None:
        return _place(hook)
    layer = int(residual[1]) - (residual[2] == "pre")
    if layer < 0:
        raise InvalidValueError(f"{hook!r} is what the embedding puts out, which no projection writes.")
    return layer


def _place(hookpoint: object) -> Site | int:
    match = _HOOKPOINT.fullmatch(hookpoint) if isinstance(hookpoint, str) else None
    block = _block(match[2]) if match and match[2] else None
    if match is None or (match[2] and block is None):
        raise InvalidValueError(
            f"{hookpoint!r} is no place that can be used: name a layer (layers.7), its attention or MLP "
            "(layers.7.mlp), or the output projection of one (layers.7.mlp.down_proj); or "
            "hook_attn_out, hook_mlp_out or hook_resid_post of TransformerLens."
        )
    return int(match[1]) if block is None else Site(int(match[1]), block)


_WORDS: Mapping[str, Block] = {
    "attn": "attn", "attention": "attn", "mamba": "ssm", "mlp": "mlp", "feed": "mlp", "ffn": "mlp",
}  # fmt: skip
_OUTPUTS = re.compile(r"(o|c|out|down)_proj|(linear_)?out|output_linear|w2|Wo|fc2|fc_out|dense(_4h_to_h)?")


def _block(path: str) -> Block | None:
    """The block of a module within a layer: an attention, mixer or MLP as a whole, or the projection it ends in."""
    outer, _, last = path.rpartition(".")
    if path == "fc2":
        return "mlp"
    words = re.split(r"[._]", outer or last)
    return next((_WORDS[word] for word in words if word in _WORDS and (not outer or _OUTPUTS.fullmatch(last))), None)


def _shift(hookpoint: object, entry: Mapping[str, Any]) -> Float[Tensor, " d"]:
    vector, coefficient, action = (entry.get(key) for key in ("steering_vector", "steering_coefficient", "action"))
    if action != "add":
        raise InvalidValueError(
            f"{hookpoint!r} has the action {action!r}: only 'add' is a steering vector. 'clamp' replaces what the "
            "activation has along a direction, which is no addition."
        )
    if isinstance(coefficient, bool) or not isinstance(coefficient, int | float):
        raise InvalidValueError(f"{hookpoint!r}: steering_coefficient must be a number, got {coefficient!r}.")
    if not isinstance(vector, Tensor):
        raise InvalidValueError(f"{hookpoint!r}: steering_vector must be a tensor, got {type(vector).__name__}.")
    return coefficient * _one_row(vector, f"{hookpoint!r}: steering_vector").detach().to("cpu", torch.float32)


def _one_row(tensor: Tensor, what: str) -> Float[Tensor, " d"]:
    if not tensor.is_floating_point() or tensor.numel() != max(tensor.shape, default=0):
        raise InvalidValueError(
            f"{what} must be one row of floating-point numbers, got {str(tensor.dtype)[6:]} of shape "
            f"{list(tensor.shape)}."
        )
    return tensor.reshape(-1)
