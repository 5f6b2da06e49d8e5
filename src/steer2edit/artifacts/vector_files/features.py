"""Features of sparse autoencoders as vectors: a decoder row of a SAELens folder, or an export of Neuronpedia.

A SAELens folder has `cfg.json` and `sae_weights.safetensors`, whose `W_dec` [d_sae, d] writes feature i along row i:

    {"d_in": 576, "d_sae": 24576, "hook_name": "blocks.7.hook_mlp_out", "model_name": "..."}   (or in "metadata")

A transcoder writes at `hook_name_out`. Neuronpedia exports one vector: `vector` (or `steeringVector`), `hookName` (or
`hook`; or `layerNumber` and `hookType`) and `modelId`. Hooks are TransformerLens's or modules: see `hooked_place`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from steer2edit.artifacts.strict_json import read_json
from steer2edit.artifacts.vector_files.foreign import hooked_place
from steer2edit.core import BlockVectors, SteeringVectors
from steer2edit.errors import ArtifactError, InvalidValueError

_WEIGHTS = "sae_weights.safetensors"


def read_sae_feature(folder: Path, feature: int) -> SteeringVectors | BlockVectors:
    """The decoder row of a feature as v of the place that the SAE reads, or writes to.

    Args:
        folder: with `cfg.json` and `sae_weights.safetensors`.
        feature: its index, from 0.

    Raises:
        ArtifactError: a file is missing or damaged, the feature is out of range, the widths of the two files differ,
            or the hook is no place that can be written to.
    """
    config = read_json(folder / "cfg.json")
    known: Mapping[str, Any] = {**config, **(config["metadata"] if isinstance(config.get("metadata"), dict) else {})}
    row, shape = _decoder_row(folder / _WEIGHTS, feature)
    width = known.get("d_out", known.get("d_in"))
    if width != shape[1]:
        raise ArtifactError(
            f"{folder}: cfg.json says a width of {width}, and W_dec of {_WEIGHTS} has {shape[1]}: the two files are "
            "not of one SAE. Get both from the same place."
        )
    hook = known.get("hook_name_out") or known.get("hook_name") or known.get("hook_point")
    made = {
        "format": "SAELens",
        "file": folder.name,
        "feature": feature,
        "hook": hook,
        "model": known.get("model_name"),
    }
    return _at(hook, row, str(folder / "cfg.json"), made)


def read_neuronpedia(path: Path) -> SteeringVectors | BlockVectors:
    """The vector of a Neuronpedia export.

    Raises:
        ArtifactError: it is not JSON, has no vector, or its hook is no place that can be written to.
    """
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
    made = {"format": "Neuronpedia", "file": path.name, "model": content.get("modelId")}
    made |= {key: content.get(key) for key in ("index", "vectorLabel", "layer")}
    return _at(hook, torch.tensor(values, dtype=torch.float32), str(path), made)


def _decoder_row(path: Path, feature: int) -> tuple[Float[Tensor, " d"], list[int]]:
    """(row of W_dec, its shape); the rest of the file is not read."""
    try:
        with safe_open(path, framework="pt") as file:
            if "W_dec" not in file.keys():  # noqa: SIM118 - safe_open is no mapping
                raise ArtifactError(f"{path} has no W_dec, which a SAE's features are the rows of.")
            decoder = file.get_slice("W_dec")
            shape = list(decoder.get_shape())
            if len(shape) != 2 or not 0 <= feature < shape[0]:
                raise ArtifactError(f"{path} has W_dec of shape {shape}: give a --feature from 0 to {shape[0] - 1}.")
            return decoder[feature].float(), shape
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{path} is not a readable safetensors file ({error}): a SAELens folder has cfg.json and {_WEIGHTS}."
        ) from error


def _at(hook: object, vector: Tensor, where: str, made: Mapping[str, Any]) -> SteeringVectors | BlockVectors:
    if not bool(torch.isfinite(vector).all()) or not vector.any():
        raise ArtifactError(f"{where}: the vector is zero or not finite, so it has no direction.")
    try:
        place = hooked_place(hook)
    except InvalidValueError as error:
        raise ArtifactError(f"{where}: {error}") from error
    kept = {key: value for key, value in {**made, "hook": hook}.items() if value is not None}
    if isinstance(place, int):
        return BlockVectors.from_mapping({place: vector}, **kept)
    return SteeringVectors.from_mapping({place: vector}, **kept)
