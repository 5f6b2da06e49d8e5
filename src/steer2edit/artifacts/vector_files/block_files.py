"""Directions of block outputs in the formats of others: GGUF control vectors and `.svec` files (docs/formats.md).

Layers count from 0, and a direction is added to what its block hands on. A caution: those of llama.cpp's own
`cvector-generator` were *measured* one block earlier than they are applied; they are read as what they are applied to.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from steer2edit.artifacts.atomic import atomic_file, require_read_back
from steer2edit.artifacts.facts import Record
from steer2edit.artifacts.manifest import read_json
from steer2edit.artifacts.tensors import same_bits, write_gguf
from steer2edit.core import SteeringVectors
from steer2edit.errors import ArtifactError, MismatchError

BLOCK_SUFFIXES = (".gguf", ".svec")
_ARCHITECTURE = "controlvector"
_F32 = 0
_LAYER = "0|[1-9][0-9]{0,8}"


def save_block_vectors(
    vectors: SteeringVectors, path: Path | str, *, model_hint: str | None = None, overwrite: bool = False
) -> list[int]:
    """Write directions of block outputs as a GGUF control vector or a `.svec` file, and check it by reading it again.

    Both formats name the model's type, `model_hint`, which is taken from the metadata if it is there. Returns the
    layers that the format cannot hold and that were left out: layer 0 of a control vector.
    """
    path = Path(path)
    if path.suffix not in BLOCK_SUFFIXES:
        raise ArtifactError(f"directions of blocks are written as {' or '.join(BLOCK_SUFFIXES)}, got {path.name!r}.")
    if vectors.block_outputs is None:
        raise MismatchError(
            "these vectors hold one direction per projection, and none per block output, which is another quantity: a "
            "block's output also carries everything that the layers before it wrote. Extract again with "
            "--block-outputs, which measures both in the same pass (block_outputs=True)."
        )
    model = vectors.metadata.get("model")
    known = model.get("model_type") if isinstance(model, dict) else vectors.metadata.get("model_hint")
    if not (hint := model_hint or known) or not isinstance(hint, str):
        raise ArtifactError(
            f"{path.name} must name the type of the model, which these vectors do not know. Give it: --model-hint "
            "llama (model_hint), the model_type of the model's config.json."
        )
    is_gguf = path.suffix == ".gguf"
    write, read = (_write_gguf, read_control_vectors) if is_gguf else (_write_svec, read_svec)
    layers = vectors.block_outputs.items()
    directions = {layer: means.difference.contiguous() for layer, means in layers if layer or not is_gguf}
    if not directions:
        raise ArtifactError("these vectors have layer 0 only, and control vectors have no direction.0.")
    with atomic_file(path, overwrite=overwrite) as scratch:
        write(scratch, directions, hint, vectors)
        found = read(scratch).block_outputs or {}
        same = found.keys() == directions.keys() and all(same_bits(found[k].positive, directions[k]) for k in found)
        require_read_back(same, path)
    return [layer for layer in vectors.block_outputs if layer not in directions]


def _write_gguf(path: Path, directions: dict[int, Tensor], hint: str, _: SteeringVectors) -> None:
    keys = {f"{_ARCHITECTURE}.model_hint": hint, f"{_ARCHITECTURE}.layer_count": len(directions)}
    write_gguf(path, _ARCHITECTURE, keys, {f"direction.{layer}": v.numpy() for layer, v in directions.items()})


def _write_svec(path: Path, directions: dict[int, Tensor], hint: str, vectors: SteeringVectors) -> None:
    """Every float32 is written with the digits that give it back."""
    content = {
        "model_type": hint,
        "directions": {str(layer): direction.tolist() for layer, direction in directions.items()},
        "explained_variances": vectors.metadata.get("explained_variances", {}),
    }
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def read_control_vectors(path: Path) -> SteeringVectors:
    """Block directions from a GGUF file, without a direction.0 or another tensor; raises as `read_vectors`."""
    from steer2edit.models.gguf import UnsoundError, gguf_header

    directions = {}
    try:
        header = gguf_header(path)
        if header.architecture != _ARCHITECTURE:
            raise UnsoundError(
                f"its architecture is {header.architecture!r}, and control vectors have {_ARCHITECTURE!r}"
            )
        for name, own in header.tensors.items():
            if own.type != _F32 or len(own.shape) != 1 or not own.size:
                raise UnsoundError(
                    f"the tensor {name!r} must be one row of F32, but is of type {own.type} and shape {list(own.shape)}"
                )
            if not (layer := re.fullmatch(rf"direction\.({_LAYER})", name)):
                raise UnsoundError(f"it has a tensor {name!r}, and control vectors have direction.<layer> only")
            row = np.fromfile(path, np.float32, own.shape[0], offset=own.start)
            directions[int(layer[1])] = torch.from_numpy(row)
    except (ValueError, OSError) as error:  # an empty file cannot be mapped: that is a ValueError too
        raise ArtifactError(
            f"{path} is not a readable GGUF file with control vectors ({error}): it is truncated, damaged, or of "
            "another format. Get it again from where it was made."
        ) from error
    if 0 in directions:
        raise ArtifactError(
            f"{path} has a direction.0, which this format does not know: llama.cpp refuses such a file."
        )
    hint, count = (header.keys.get(f"{_ARCHITECTURE}.{key}") for key in ("model_hint", "layer_count"))
    if not isinstance(hint, str | None) or isinstance(count, str | float | bool):
        raise ArtifactError(f"{path}: model_hint must be text and layer_count a whole number, got {hint!r}, {count!r}.")
    made = {"format": "control vectors", "file": path.name, "model_hint": hint, "layer_count": count}
    return SteeringVectors.from_mapping(directions, **made)


def _only_row(value: Any) -> Any:
    rows = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    if len(rows) != 1:
        raise ValueError(f"it has {len(rows)} rows (by token, of a plane or by head), and one row per layer is read")
    return rows[0]


_Layer = Annotated[str, Field(pattern=rf"^({_LAYER})$")]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class _Svec(Record):
    """What is read of a `.svec` file."""

    model_type: str | None = None
    directions: dict[_Layer, Annotated[list[_Number], BeforeValidator(_only_row)]]
    explained_variances: dict[_Layer, _Number] | None = None


def read_svec(path: Path) -> SteeringVectors:
    """Block directions from a `.svec` file, and its explained variances as metadata; raises as `read_vectors`."""
    content = read_json(path)
    if content.get("num_heads") is not None:
        raise ArtifactError(f"{path}: it holds directions by attention head (num_heads), not of block outputs.")
    form = "It has a list of finite numbers for each layer, counted from 0, in `directions`."
    read = _Svec.read(content, f"{path} is no .svec file", form)
    known = {"explained_variances": read.explained_variances} if read.explained_variances else {}
    made = {"format": "CAST vectors", "file": path.name, "model_hint": read.model_type, **known}
    directions = {int(k): torch.tensor(v, dtype=torch.float64).float() for k, v in read.directions.items()}
    return SteeringVectors.from_mapping(directions, **made)
