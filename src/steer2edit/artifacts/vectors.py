"""Steering vectors in one safetensors file, and the files of others that are read in its place. See docs/formats.md."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steer2edit.artifacts.atomic import atomic_file
from steer2edit.artifacts.manifest import SCHEMA_VERSION, plain_json, require_version
from steer2edit.artifacts.official import is_official, site_tensors
from steer2edit.artifacts.tensors import read_tensors, require_file, same_bits, write_tensors
from steer2edit.core import ClassMeans, Site, SiteMeans, SteeringVectors
from steer2edit.errors import ArtifactError, InvalidValueError

KIND = "steering-vectors"
_PARTS = ("output_positive", "output_negative", "input_positive", "input_negative")
_NAME = re.compile(rf"(L(?:0|[1-9][0-9]*)\.(?:attn|mlp))(?:\.({'|'.join(_PARTS)}|input_mean))?")
_PLAIN = "v"  # a key that is a site's name alone is v itself
_OUTPUTS = ({_PLAIN}, set(_PARTS[:2]))
_INPUTS: tuple[set[str], ...] = (set(), {"input_mean"}, set(_PARTS[2:]))
_BLOCK_OUTPUT_FORMATS = {".gguf": "control vectors", ".svec": "CAST vectors"}

VectorSource = SteeringVectors | Path | str | Mapping[Site, Tensor] | Mapping[str, Tensor]


def save_vectors(vectors: SteeringVectors, path: Path | str, *, overwrite: bool = False) -> None:
    """Write vectors to one safetensors file, in float32, complete or not at all, and check it by reading it again.

    Args:
        vectors: what to write.
        path: a name that ends in `.safetensors` and does not exist.
        overwrite: replace an existing file.

    Raises:
        InvalidValueError: metadata or diagnosis is not JSON.
        ArtifactError: the name ends otherwise, the file exists or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ArtifactError(f"vectors are written as safetensors, got {path.name!r}: name it {path.stem}.safetensors.")
    tensors = {f"{site}.{part}": t for site, means in vectors.sites.items() for part, t in _parts(means).items()}
    header = {
        "schema_version": str(SCHEMA_VERSION),
        "kind": KIND,
        "metadata": json.dumps(plain_json(vectors.metadata, "vectors' metadata"), ensure_ascii=False),
        "diagnosis": json.dumps(plain_json(vectors.diagnosis, "vectors' diagnosis"), ensure_ascii=False),
    }
    with atomic_file(path, overwrite=overwrite) as scratch:
        write_tensors(tensors, scratch, header)
        read, read_header = read_tensors(scratch, "steering vectors")
        if read_header != header or read.keys() != tensors.keys() or not _all_same(read, tensors):
            raise ArtifactError(f"{path} reads back differently from what was written: the disk may be failing.")


def load_vectors(path: Path | str) -> SteeringVectors:
    """Read vectors: our own file, the official Steer2Edit directions, or plain tensors by site.

    Args:
        path: a `.safetensors` file that `save_vectors` wrote; one made elsewhere, with v [d] as `L3.attn` and
            optionally the input mean [m] as `L3.attn.input_mean`; or a `.pt` file with the official Steer2Edit
            directions or with v by site. A `.pt` file is read with `weights_only=True`: no code in it ever runs.

    Raises:
        ArtifactError: it is missing, truncated, of another format, of a newer version, or incomplete.
    """
    path = Path(path)
    require_file(path, "steering vectors")
    suffix = path.suffix.lower()
    if suffix in _BLOCK_OUTPUT_FORMATS:
        raise ArtifactError(
            f"{path} holds {_BLOCK_OUTPUT_FORMATS[suffix]}: one direction per block output, not one per projection. "
            "They are other quantities and are not converted silently. Extract vectors with steer2edit extract."
        )
    readers = {".safetensors": _load_safetensors, ".pt": _load_pt}
    if suffix not in readers:
        raise ArtifactError(f"{path}: steering vectors are read from {' or '.join(readers)} files, not {suffix!r}.")
    try:
        return readers[suffix](path)
    except InvalidValueError as error:
        raise ArtifactError(f"{path}: {error}") from error


def as_vectors(source: VectorSource) -> SteeringVectors:
    """Vectors from wherever a user has them: themselves, a file, or a mapping site → v.

    Args:
        source: vectors; a path for `load_vectors`; or a mapping from a site or its name (`L3.mlp`) to v [d],
            optionally with `L3.mlp.input_mean` → μ [m].

    Raises:
        ArtifactError: see `load_vectors`.
        InvalidValueError: a key is no site, or a tensor has another form.
    """
    if isinstance(source, SteeringVectors):
        return source
    if isinstance(source, Path | str):
        return load_vectors(source)
    return SteeringVectors(_assemble({str(key): tensor for key, tensor in source.items()}), {"origin": "imported"})


def _load_safetensors(path: Path) -> SteeringVectors:
    tensors, header = read_tensors(path, "steering vectors")
    if "kind" not in header:
        return _imported(tensors, path, "safetensors")
    if header["kind"] != KIND:
        raise ArtifactError(f"{path} holds {header['kind']!r}, but steering vectors are needed here.")
    version = header.get("schema_version", "")
    require_version(int(version) if version.isdecimal() else version, str(path))
    metadata, diagnosis = (_json_field(header, name, path) for name in ("metadata", "diagnosis"))
    if not isinstance(metadata, dict) or not isinstance(diagnosis, dict | None):
        raise ArtifactError(f"{path} is damaged: metadata and diagnosis in its header must be JSON objects.")
    return SteeringVectors(_assemble(tensors), metadata, diagnosis)


def _json_field(header: Mapping[str, str], name: str, path: Path) -> Any:
    try:
        return json.loads(header[name])
    except (KeyError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: its header has no readable JSON for {name!r} ({error}).") from error


def _load_pt(path: Path) -> SteeringVectors:
    content = _read_pt(path)
    if is_official(content):
        return _imported(site_tensors(content), path, "official Steer2Edit directions")
    if isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values()):
        return _imported({str(key): value for key, value in content.items()}, path, "torch")
    found = f"keys {', '.join(map(repr, list(content)[:5]))}" if isinstance(content, dict) else type(content).__name__
    raise ArtifactError(
        f"{path} holds neither the official Steer2Edit directions ('pre' and 'post') nor tensors by site (L3.attn), "
        f"but {found}. An edit of the official code cannot be used as vectors."
    )


def _read_pt(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or damaged pickle can raise anything; whatever it is, the file is refused
        reason = " ".join(str(error).split())
        if "GLOBAL" in reason or "REDUCE" in reason:
            raise ArtifactError(
                f"{path} is refused: besides tensors it holds pickled Python objects, which can run code when they "
                "are loaded. Nothing in it was run. Save only tensors, best as safetensors."
            ) from error
        raise ArtifactError(
            f"{path} is not a readable .pt file ({reason[:200]}): it is truncated, damaged, or of another format."
        ) from error


def _imported(tensors: Mapping[str, Tensor], path: Path, file_format: str) -> SteeringVectors:
    return SteeringVectors(_assemble(tensors), {"origin": "imported", "format": file_format, "file": path.name})


def _assemble(tensors: Mapping[str, Tensor]) -> dict[Site, SiteMeans]:
    """Sites from tensors by name.

    Raises:
        InvalidValueError: an unknown name, an incomplete group, or a tensor that is no vector of floats.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise InvalidValueError(
                f"{name!r} is not the name of a steering vector. Name v L<layer>.attn or L<layer>.mlp (L3.attn), and "
                "its input mean L3.attn.input_mean."
            )
        if not isinstance(tensor, Tensor):
            raise InvalidValueError(f"{name} must be a torch tensor, got {type(tensor).__name__}.")
        if tensor.ndim != 1 or not tensor.is_floating_point() or not tensor.numel():
            raise InvalidValueError(
                f"{name} must be a vector of floating-point numbers, got {str(tensor.dtype)[6:]} of shape "
                f"{list(tensor.shape)}."
            )
        groups.setdefault(match[1], {})[match[2] or _PLAIN] = tensor.detach().to("cpu", torch.float32)
    return {Site.parse(site): _site_means(site, parts) for site, parts in groups.items()}


def _site_means(site: str, parts: Mapping[str, Tensor]) -> SiteMeans:
    outputs = {part for part in parts if not part.startswith("input")}
    if outputs not in _OUTPUTS or parts.keys() - outputs not in _INPUTS:
        raise InvalidValueError(
            f"{site} has only {', '.join(parts)}: a site needs v, or output_positive and output_negative; and of its "
            "input nothing, input_mean, or input_positive and input_negative."
        )
    return SiteMeans(_output_means(site, parts), _input_means(site, parts))


def _output_means(site: str, parts: Mapping[str, Tensor]) -> ClassMeans:
    if _PLAIN in parts:
        return ClassMeans(parts[_PLAIN], torch.zeros_like(parts[_PLAIN]))
    return _pair(site, parts["output_positive"], parts["output_negative"])


def _input_means(site: str, parts: Mapping[str, Tensor]) -> ClassMeans | None:
    if "input_mean" in parts:
        return ClassMeans(parts["input_mean"], parts["input_mean"])
    if "input_positive" not in parts:
        return None
    return _pair(site, parts["input_positive"], parts["input_negative"])


def _pair(site: str, positive: Tensor, negative: Tensor) -> ClassMeans:
    if positive.shape != negative.shape:
        raise InvalidValueError(
            f"{site}: the positive mean has {positive.numel()} entries and the negative {negative.numel()}: they "
            "cannot belong to one projection."
        )
    return ClassMeans(positive, negative)


def _parts(means: SiteMeans) -> dict[str, Tensor]:
    tensors = [means.output.positive, means.output.negative]
    if means.input is not None:
        tensors += [means.input.positive, means.input.negative]
    return {part: tensor.detach().to("cpu", torch.float32) for part, tensor in zip(_PARTS, tensors, strict=False)}


def _all_same(read: Mapping[str, Tensor], written: Mapping[str, Tensor]) -> bool:
    return all(same_bits(read[name], written[name]) for name in written)
