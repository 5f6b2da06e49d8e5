"""Weights that are stored quantised: how to recognise them, and what an edit would lose in them.

Measured errors are those of an edit whose columns have 5 % of the norm of the weight's (docs/precision.md).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steer2edit.artifacts.checkpoints.safetensors_files import CheckpointFiles
from steer2edit.artifacts.manifest import read_json
from steer2edit.errors import ArtifactError

# what the tensors of a quantised weight W are called instead of, or beside, `W.weight` (fused experts: `W`)
_INSTEAD = (".qweight", ".weight_packed", "_blocks", "_packed")
_BESIDE = (".weight_scale", ".weight_scale_inv", ".weight.absmax", ".weight.quant_map", ".SCB", ".weight_format")
_BESIDE_FUSED = ("_scale_inv", "_scale")


@dataclass(frozen=True)
class _Loss:
    """Error of an edit after requantising, relative to ‖ΔW‖, and how much of its strength along u is left."""

    format: str
    error: float
    strength: float

    def __str__(self) -> str:
        return (
            f"{self.format}: rounded to it again, an edit of 5 % of the weight's norm is off by {self.error:.0%} of "
            f"its own size and keeps {self.strength:.0%} of its strength"
        )


_INT4 = _Loss("4-bit integers", 1.01, 0.10)
_MXFP4 = _Loss("MXFP4", 1.19, 0.34)
_FP8 = _Loss("FP8", 0.44, 0.94)
_INT8 = _Loss("8-bit integers", 0.18, 1.0)


def quantisation_config(directory: Path) -> Mapping[str, Any]:
    """`quantization_config` of a checkpoint's config.json (or of its text model's part); empty without one.

    Raises:
        ArtifactError: config.json is missing or damaged.
    """
    config = read_json(directory / "config.json")
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        found = part.get("quantization_config") or part.get("compression_config")
        if isinstance(found, dict):
            return found
    return {}


def quantised_tensors(files: CheckpointFiles) -> dict[str, str]:
    """Names that a checkpoint's quantised weights would have as plain ones, and the tensor that each is stored as."""
    found: dict[str, str] = {}
    for name, tensor in files.tensors.items():
        for suffix in _INSTEAD:
            if name.endswith(suffix):
                fused = suffix.startswith("_")
                found[name.removesuffix(suffix) + ("" if fused else ".weight")] = name
        for plain in _described(name):
            if plain in files.tensors:
                found[plain] = plain
        if name.endswith(".weight") and not tensor.is_plain_float:
            found[name] = name
    return found


def _described(name: str) -> Iterable[str]:
    """Names of the plain weights that a tensor of scales could belong to."""
    for suffix in _BESIDE:
        if name.endswith(suffix):
            yield name.removesuffix(suffix) + ".weight"
    for suffix in _BESIDE_FUSED:
        if name.endswith(suffix):
            yield name.removesuffix(suffix)


def refuse_quantised(files: CheckpointFiles, config: Mapping[str, Any], weight: str, stored: str) -> ArtifactError:
    """The error for an edit of a quantised weight: what would be lost, and what to do instead."""
    method = str(config.get("quant_method") or "a quantised format")
    loss = _loss(config, files, stored)
    return ArtifactError(
        f"{weight} is quantised in {files.directory} ({method}, stored as {stored}), so that the edit cannot be added "
        f"to it. {loss or 'Rounding it again could lose most of the edit'}. Use the edit as an adapter on this "
        "checkpoint, which rounds nothing of it (its directory loads with PEFT; see steer2edit export), or apply it "
        "to the unquantised checkpoint and quantise afterwards, to 8-bit integers at the least. Measure what will be "
        "served, either way: a 4-bit base may not act on an edit as the exact one does."
    )


def _loss(config: Mapping[str, Any], files: CheckpointFiles, stored: str) -> _Loss | None:
    method = str(config.get("quant_method", "")).lower()
    if method == "mxfp4" or stored.endswith("_blocks"):
        return _MXFP4
    tensor = files.tensors.get(stored)
    if "fp8" in method or (tensor is not None and tensor.dtype_name.startswith("F8")):
        return _FP8
    if method == "bitsandbytes":
        return _INT8 if config.get("load_in_8bit") else _INT4
    bits = _bits(config)
    if bits is not None:
        return _INT8 if bits >= 8 else _INT4
    if tensor is not None and tensor.dtype_name in ("I8", "U8"):
        return _INT8
    return None


def _bits(config: Mapping[str, Any]) -> int | None:
    """Bits per weight: GPTQ and AWQ say them at the top, compressed-tensors in the first of its groups."""
    groups = config.get("config_groups")
    group = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = group.get("weights") if isinstance(group, dict) else None
    bits = weights.get("num_bits") if isinstance(weights, dict) else config.get("bits", config.get("w_bit"))
    return bits if type(bits) is int else None
