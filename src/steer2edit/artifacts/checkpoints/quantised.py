"""Weights that are stored quantised: how to recognise them, and what an edit would lose in them.

Measured errors are those of an edit whose columns have 5 % of the norm of the weight's (docs/precision.md).
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from steer2edit.artifacts.checkpoints.safetensors_files import CheckpointFiles
from steer2edit.artifacts.manifest import read_json
from steer2edit.errors import ArtifactError

# what the tensors of a quantised weight W are called instead of, or beside, `W.weight` (fused experts: `W`)
_INSTEAD = {".qweight": ".weight", ".weight_packed": ".weight", "_blocks": "", "_packed": ""}
_BESIDE = dict.fromkeys(
    (".weight_scale", ".weight_scale_inv", ".weight.absmax", ".weight.quant_map", ".SCB", ".weight_format"), ".weight"
) | {"_scale_inv": "", "_scale": ""}

_LOSSES = {"4-bit integers": (1.01, 0.10), "8-bit integers": (0.18, 1.0), "MXFP4": (1.19, 0.34), "FP8": (0.44, 0.94)}
"""Error of an edit after requantising, relative to ‖ΔW‖, and how much of its strength along u is left."""


def quantised_tensors(files: CheckpointFiles) -> dict[str, str]:
    """Names that a checkpoint's quantised weights would have as plain ones, and the tensor that each is stored as."""
    found: dict[str, str] = {}
    for name, tensor in files.tensors.items():
        found |= dict.fromkeys(_plain_names(name, _INSTEAD), name)
        found |= {plain: plain for plain in _plain_names(name, _BESIDE) if plain in files.tensors}
        if name.endswith(".weight") and not tensor.is_plain_float:
            found[name] = name
    return found


def _plain_names(name: str, endings: Mapping[str, str]) -> list[str]:
    return [name.removesuffix(suffix) + plain for suffix, plain in endings.items() if name.endswith(suffix)]


def quantised_error(files: CheckpointFiles, weight: str, stored: str) -> ArtifactError:
    """The error for an edit of a quantised weight: what would be lost, and what to do instead."""
    config = _quantisation_config(files)
    method = str(config.get("quant_method") or "a quantised format")
    loss = "Rounding it again could lose most of the edit"
    if format := _format(config, files, stored):
        error, strength = _LOSSES[format]
        loss = (
            f"{format}: rounded to it again, an edit of 5 % of the weight's norm is off by {error:.0%} of its own size "
            f"and keeps {strength:.0%} of its strength"
        )
    return ArtifactError(
        f"{weight} is quantised in {files.directory} ({method}, stored as {stored}), so that the edit cannot be added "
        f"to it. {loss}. Use the edit as an adapter on this checkpoint, which rounds nothing of it (its directory "
        "loads with PEFT; see steer2edit export), or apply it to the unquantised checkpoint and quantise afterwards, "
        "to 8-bit integers at the least. Measure what will be served, either way: a 4-bit base may not act on an edit "
        "as the exact one does."
    )


def _quantisation_config(files: CheckpointFiles) -> Mapping[str, Any]:
    """`quantization_config` of config.json (or of its text model's part); empty without one."""
    config = read_json(files.directory / "config.json")
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        found = part.get("quantization_config") or part.get("compression_config")
        if isinstance(found, dict):
            return found
    return {}


def _format(config: Mapping[str, Any], files: CheckpointFiles, stored: str) -> str | None:
    method = str(config.get("quant_method", "")).lower()
    dtype = files.tensors[stored].dtype_name if stored in files.tensors else ""
    if method == "mxfp4" or stored.endswith("_blocks"):
        return "MXFP4"
    if "fp8" in method or dtype.startswith("F8"):
        return "FP8"
    # GPTQ and AWQ say their bits at the top, compressed-tensors in the first of its groups
    said = re.search(r'"(?:bits|w_bit|num_bits)": (\d+)', json.dumps(config))
    bits = int(said[1]) if said else 8 if config.get("load_in_8bit") or dtype in ("I8", "U8") else None
    if method == "bitsandbytes":
        bits = 8 if config.get("load_in_8bit") else 4
    return None if bits is None else "8-bit integers" if bits >= 8 else "4-bit integers"
