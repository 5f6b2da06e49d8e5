"""Vectors as other tools hold them, by the places of ours: a site, or a layer for what the whole block puts out.

Files of lm-eval's model `steered`, and features of sparse autoencoders: a SAELens folder, whose `W_dec` [d_sae, d]
writes feature i along row i, or an export of Neuronpedia. See docs/formats.md.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steer2edit.artifacts.checkpoints.files import open_tensors
from steer2edit.artifacts.manifest import read_json
from steer2edit.core import Block, Site, SteeringVectors
from steer2edit.errors import ArtifactError, InvalidValueError

_WEIGHTS = "sae_weights.safetensors"
_HOOKPOINT = re.compile(r"(?:[A-Za-z_]+\.)*?(?:layers|h|blocks)\.(0|[1-9][0-9]{0,8})(?:\.([A-Za-z0-9_.]+))?")


def is_steered(content: object) -> bool:
    """Whether this is meant to be a file of lm-eval's model `steered`."""
    entries = list(content.values()) if isinstance(content, dict) else []
    return bool(entries) and all(isinstance(e, dict) and "steering_vector" in e for e in entries)


def steered_vectors(content: Mapping[Any, Any], **metadata: Any) -> SteeringVectors:
    """Vectors of sites, or of block outputs, as the hookpoints of a file of lm-eval's model `steered` say.

        {"layers.7.self_attn.o_proj": {"steering_vector": v, "steering_coefficient": c, "action": "add", "bias": None}}

    `add` adds c·v to what the named module puts out, so the steering vector here is c·v. An InvalidValueError where a
    hookpoint or action is unknown, an entry incomplete, or hookpoints are of both kinds.
    """
    found: dict[Any, Tensor] = {}
    for hookpoint, entry in content.items():
        place = hooked_place(hookpoint)
        action, coefficient, vector = (entry.get(k) for k in ("action", "steering_coefficient", "steering_vector"))
        if place in found:
            raise InvalidValueError(f"{hookpoint!r}: {place} is there twice, under two names.")
        if action != "add":
            raise InvalidValueError(
                f"{hookpoint!r} has the action {action!r}: only 'add' is a steering vector. 'clamp' replaces what the "
                "activation has along a direction, which is no addition."
            )
        if isinstance(coefficient, bool) or not isinstance(coefficient, int | float):
            raise InvalidValueError(f"{hookpoint!r}: steering_coefficient must be a number, got {coefficient!r}.")
        if (
            not isinstance(vector, Tensor)
            or not vector.is_floating_point()
            or vector.numel() != max(vector.shape, default=0)
        ):
            got = f"{str(vector.dtype)[6:]} of shape {list(vector.shape)}" if isinstance(vector, Tensor) else vector
            raise InvalidValueError(f"{hookpoint!r}: steering_vector must be one row of floats, got {got}.")
        found[place] = coefficient * vector.detach().to("cpu", torch.float32).reshape(-1)
    metadata["coefficients"] = {str(name): float(entry["steering_coefficient"]) for name, entry in content.items()}
    if len({type(place) for place in found}) > 1:
        raise InvalidValueError(
            "it has hookpoints of projections and of whole layers, which are different quantities. Put them into two "
            "files."
        )
    return SteeringVectors.from_mapping(found, **metadata)


def hooked_place(hook: object) -> Site | int:
    """A TransformerLens hook, or a module, as one of our sites, or as the layer whose output it is.

        blocks.7.hook_attn_out, blocks.7.hook_mlp_out    what the attention, the MLP puts out: a site
        blocks.7.hook_resid_post, blocks.8.hook_resid_pre    the output of layer 7

    An InvalidValueError where it is another place.
    """
    if residual := re.fullmatch(r"blocks\.(\d{1,9})\.hook_resid_(pre|post)", str(hook)):
        layer = int(residual[1]) - (residual[2] == "pre")
        if layer < 0:
            raise InvalidValueError(f"{hook!r} is what the embedding puts out, which no projection writes.")
        return layer
    match = _HOOKPOINT.fullmatch(hook) if isinstance(hook, str) else None
    block = _block(match[2]) if match and match[2] else None
    if match is None or (match[2] and block is None):
        raise InvalidValueError(
            f"{hook!r} is no place that can be used: name a layer (layers.7), its attention or MLP "
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


def read_sae_feature(folder: Path, feature: int) -> SteeringVectors:
    """The decoder row of a feature, counted from 0, as v of the place that the SAE reads, or writes to.

    An ArtifactError where a file is missing or damaged, the feature is out of range, the widths of the two files
    differ, or the hook is no place that can be written to.
    """
    config, path = read_json(folder / "cfg.json"), folder / _WEIGHTS
    known: Mapping[str, Any] = {**config, **(config["metadata"] if isinstance(config.get("metadata"), dict) else {})}
    decoder = open_tensors(path).get("W_dec")
    if decoder is None:
        raise ArtifactError(f"{path} has no W_dec, which a SAE's features are the rows of.")
    if len(decoder.shape) != 2 or not 0 <= feature < decoder.rows:
        raise ArtifactError(
            f"{path} has W_dec of shape {list(decoder.shape)}: give a --feature from 0 to {decoder.rows - 1}."
        )
    width = known.get("d_out", known.get("d_in"))
    if width != decoder.columns:
        raise ArtifactError(
            f"{folder}: cfg.json says a width of {width}, and W_dec of {_WEIGHTS} has {decoder.columns}: the two files "
            "are not of one SAE. Get both from the same place."
        )
    row = decoder.read_rows(feature, feature + 1)[0].float()
    hook = known.get("hook_name_out") or known.get("hook_name") or known.get("hook_point")
    made = {"format": "SAELens", "file": folder.name, "feature": feature, "model_name": known.get("model_name")}
    return _at(hook, row, str(folder / "cfg.json"), made)


def read_neuronpedia(path: Path) -> SteeringVectors:
    """The vector of a Neuronpedia export; raises as `read_sae_feature`, and where it has no vector."""
    content = read_json(path)
    values = content.get("vector") or content.get("steeringVector")
    if not isinstance(values, list) or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise ArtifactError(
            f"{path} has no vector: an export of Neuronpedia has a list of numbers under 'vector', and 'hookName' and "
            f"'modelId'; found {', '.join(map(repr, list(content)[:8])) or 'nothing'}."
        )
    hook = content.get("hookName") or content.get("hook")
    if hook is None and {"layerNumber", "hookType"} <= content.keys():
        hook = f"blocks.{content['layerNumber']}.{content['hookType']}"
    made = {"format": "Neuronpedia", "file": path.name, "model_name": content.get("modelId")}
    made |= {key: content.get(key) for key in ("index", "vectorLabel", "layer")}
    return _at(hook, torch.tensor(values, dtype=torch.float32), str(path), made)


def _at(hook: object, vector: Tensor, where: str, made: Mapping[str, Any]) -> SteeringVectors:
    if not bool(torch.isfinite(vector).all()) or not vector.any():
        raise ArtifactError(f"{where}: the vector is zero or not finite, so it has no direction.")
    known = {key: value for key, value in {**made, "hook": hook}.items() if value is not None}
    try:
        return SteeringVectors.from_mapping({hooked_place(hook): vector}, **known)
    except InvalidValueError as error:
        raise ArtifactError(f"{where}: {error}") from error
