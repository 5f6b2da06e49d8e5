"""Directions of block outputs in the formats of others: GGUF control vectors and `.svec` files.

A control vector, as repeng and llama.cpp hold it, is one GGUF file:

    general.architecture        "controlvector"
    controlvector.model_hint    the model's type, e.g. "llama"
    controlvector.layer_count   number of directions, u32
    direction.<L>               [d], F32: added to the output of block L, counted from 0

Both programs add direction.L to what block L hands on, so L is our layer. Neither uses block 0: llama.cpp refuses a
file that has direction.0, and repeng leaves it out unless asked. A caution: the directions of llama.cpp's own
`cvector-generator` were *measured* one block earlier than they are applied (what it names direction.L is the output
of block L − 1). They are read as what they are applied to.

A `.svec` file, of CAST (activation-steering) and AISteer360, is JSON:

    {"model_type": "llama", "directions": {"3": [0.1, ...]}, "explained_variances": {"3": 0.9}}

Layers count from 0 and a direction belongs to the block's output. AISteer360 writes a direction as a list of rows: with
one row it is the same thing; more rows (by token, a plane, or by head) are other objects and are refused.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.artifacts.atomic import atomic_file
from steer2edit.artifacts.strict_json import parse_object
from steer2edit.artifacts.tensors import same_bits
from steer2edit.core import BlockVectors
from steer2edit.errors import ArtifactError, InvalidValueError

BLOCK_SUFFIXES = (".gguf", ".svec")
_ARCHITECTURE = "controlvector"
_F32 = 0
_LAYER = re.compile(r"0|[1-9][0-9]{0,8}")


def save_block_vectors(
    blocks: BlockVectors, path: Path | str, *, model_hint: str | None = None, overwrite: bool = False
) -> list[int]:
    """Write block directions as a GGUF control vector or a `.svec` file, and check it by reading it again.

    Args:
        blocks: the directions, e.g. `BlockVectors.of(vectors)` or `as_block_vectors(source)`.
        path: a name that ends in `.gguf` or `.svec` and does not exist.
        model_hint: the model's type, e.g. `llama`, which both formats name; taken from the metadata if it is there.
        overwrite: replace an existing file.

    Returns:
        The layers that the format cannot hold and that were left out: layer 0 of a control vector.

    Raises:
        ArtifactError: another ending, an unknown model type, or the file exists or cannot be written.
    """
    path = Path(path)
    if path.suffix not in BLOCK_SUFFIXES:
        raise ArtifactError(
            f"directions of block outputs are written as {' or '.join(BLOCK_SUFFIXES)}, got {path.name!r}."
        )
    hint = model_hint or _known_model_type(blocks)
    if not hint:
        raise ArtifactError(
            f"{path.name} must name the type of the model, which these vectors do not know. Give it: --model-hint "
            "llama (model_hint), the model_type of the model's config.json."
        )
    write, read = (_write_gguf, read_control_vectors) if path.suffix == ".gguf" else (_write_svec, read_svec)
    left_out: list[int] = [layer for layer in blocks.layers if not layer and path.suffix == ".gguf"]
    directions = {layer: blocks.direction(layer).contiguous() for layer in blocks.layers if layer not in left_out}
    if not directions:
        raise ArtifactError("these vectors have layer 0 only, and control vectors have no direction.0.")
    with atomic_file(path, overwrite=overwrite) as scratch:
        write(scratch, directions, hint, blocks)
        found = read(scratch).layers
        if found.keys() != directions.keys() or not all(
            same_bits(found[layer].positive, direction) for layer, direction in directions.items()
        ):
            raise ArtifactError(f"{path} reads back differently from what was written: the disk may be failing.")
    return left_out


def _known_model_type(blocks: BlockVectors) -> str | None:
    """The model's type, as far as the metadata says it."""
    model = blocks.metadata.get("model")
    hint = model.get("model_type") if isinstance(model, dict) else blocks.metadata.get("model_hint")
    return hint if isinstance(hint, str) else None


def read_control_vectors(path: Path) -> BlockVectors:
    """Block directions from a GGUF file.

    Raises:
        ArtifactError: it is no such file, has a direction.0, another tensor, or a direction that is not finite.
    """
    keys, vectors = _gguf_vectors(path)
    directions = {}
    for name, vector in vectors.items():
        before, layer = name[:10], name[10:]
        if before != "direction." or not _LAYER.fullmatch(layer):
            raise ArtifactError(f"{path} has a tensor {name!r}: control vectors have direction.<layer> only.")
        if layer == "0":
            raise ArtifactError(
                f"{path} has a direction.0, which this format does not know: llama.cpp refuses the whole file. "
                "Write it again without, or with the layers numbered as llama.cpp numbers them."
            )
        directions[int(layer)] = vector
    hint, count = (keys.get(f"{_ARCHITECTURE}.{key}") for key in ("model_hint", "layer_count"))
    if not isinstance(hint, str | None) or isinstance(count, str | float | bool):
        raise ArtifactError(f"{path}: model_hint must be text and layer_count a whole number, got {hint!r}, {count!r}.")
    made = {"format": "control vectors", "file": path.name, "model_hint": hint, "layer_count": count}
    return _from(path, directions, made)


def _gguf_vectors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """All keys and tensors of a GGUF file of control vectors, which are all rows of F32."""
    from steer2edit.models.gguf_header import UnsoundError, gguf_bytes, gguf_header

    vectors = {}
    try:
        with gguf_bytes(path) as data:
            header = gguf_header(data)
            if header.architecture != _ARCHITECTURE:
                raise UnsoundError(
                    f"its architecture is {header.architecture!r}, and control vectors have {_ARCHITECTURE!r}"
                )
            for name, own in header.tensors.items():
                if own.type != _F32 or len(own.shape) != 1 or not own.size:
                    raise UnsoundError(
                        f"the tensor {name!r} must be one row of F32, but is of type {own.type} and shape "
                        f"{list(own.shape)}"
                    )
                content = bytearray(data[own.start : own.start + own.size])
                vectors[name] = torch.frombuffer(content, dtype=torch.float32)
    except (ValueError, OSError) as error:  # an empty file cannot be mapped: that is a ValueError too
        raise ArtifactError(
            f"{path} is not a readable GGUF file with control vectors ({error}): it is truncated, damaged, or of "
            "another format. Get it again from where it was made."
        ) from error
    return header.keys, vectors


def read_svec(path: Path) -> BlockVectors:
    """Block directions from a `.svec` file; what it says of explained variances is kept in the metadata.

    Raises:
        ArtifactError: it is not JSON, of another form, has directions of several rows, or one that is not finite.
    """
    content = parse_object(path.read_bytes(), str(path))
    try:
        model_type = content.get("model_type")
        if not isinstance(model_type, str | None):
            raise InvalidValueError(f"model_type must be text, got {model_type!r}.")
        if content.get("num_heads") is not None:
            raise InvalidValueError("it holds directions by attention head (num_heads), not of block outputs.")
        directions = {layer: _row(layer, rows) for layer, rows in _by_layer(content, "directions").items()}
        made: dict[str, Any] = {"format": "CAST vectors", "file": path.name, "model_hint": model_type}
        if content.get("explained_variances"):
            variances = _by_layer(content, "explained_variances")
            made["explained_variances"] = {str(layer): _number(layer, value) for layer, value in variances.items()}
    except InvalidValueError as error:
        raise ArtifactError(f"{path}: {error}") from error
    return _from(path, directions, made)


def _from(path: Path, directions: dict[int, Tensor], made: dict[str, Any]) -> BlockVectors:
    try:
        return BlockVectors.from_mapping(directions, **made)
    except InvalidValueError as error:
        raise ArtifactError(f"{path}: {error}") from error


def _write_gguf(path: Path, directions: dict[int, Tensor], hint: str, _: BlockVectors) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, _ARCHITECTURE)
    writer.add_string(f"{_ARCHITECTURE}.model_hint", hint)
    writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(directions))
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction.numpy())
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _write_svec(path: Path, directions: dict[int, Tensor], hint: str, blocks: BlockVectors) -> None:
    """Every float32 is written with the digits that give it back."""
    content = {
        "model_type": hint,
        "directions": {str(layer): direction.tolist() for layer, direction in directions.items()},
        "explained_variances": blocks.metadata.get("explained_variances", {}),
    }
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _by_layer(content: dict[str, Any], key: str) -> dict[int, Any]:
    values = content.get(key)
    if not isinstance(values, dict):
        raise InvalidValueError(f"{key!r} must be an object by layer, got {type(values).__name__}.")
    for layer in values:
        if _LAYER.fullmatch(layer) is None:
            raise InvalidValueError(f"{key!r}: {layer!r} is not a layer. Layers count from 0.")
    return {int(layer): value for layer, value in values.items()}


def _row(layer: int, value: Any) -> Float[Tensor, " d"]:
    rows = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    if len(rows) != 1:
        raise InvalidValueError(
            f"layer {layer} has {len(rows)} rows: directions by token, of a plane or by head are not directions of "
            "block outputs. One row per layer is read."
        )
    if not isinstance(rows[0], list) or not all(type(number) in (int, float) for number in rows[0]):
        raise InvalidValueError(f"layer {layer}: a direction must be a list of numbers.")
    return torch.tensor([_number(layer, number) for number in rows[0]], dtype=torch.float64).to(torch.float32)


def _number(layer: int, value: Any) -> float:
    try:
        if type(value) in (int, float) and abs(number := float(value)) < float("inf"):
            return number
    except OverflowError:  # a whole number of hundreds of digits
        pass
    raise InvalidValueError(f"layer {layer}: {str(value)[:40]} is not a finite number.")
