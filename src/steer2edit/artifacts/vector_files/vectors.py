"""Steering vectors in one safetensors file, and the files of others that are read in its place. See docs/formats.md."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from steer2edit.artifacts.atomic import atomic_file
from steer2edit.artifacts.manifest import SCHEMA_VERSION, plain_json, require_version
from steer2edit.artifacts.tensors import read_tensors, require_file, write_tensors
from steer2edit.artifacts.vector_files.block_files import read_control_vectors, read_svec
from steer2edit.artifacts.vector_files.features import read_neuronpedia
from steer2edit.artifacts.vector_files.foreign import (
    LayerActivations,
    from_object,
    is_official,
    is_steered,
    official_tensors,
    steered_vectors,
)
from steer2edit.artifacts.vector_files.pt_files import is_official_edit, read_pt
from steer2edit.artifacts.vector_files.vector_tensors import assemble, named_tensors, plain_tensors
from steer2edit.core import BlockVectors, Site, SteeringVectors, UseAt, site_vectors
from steer2edit.errors import ArtifactError, InvalidValueError

KIND = "steering-vectors"

VectorSource = (
    SteeringVectors | BlockVectors | LayerActivations | Path | str | Mapping[Site, Tensor] | Mapping[str, Tensor]
)


def save_vectors(vectors: SteeringVectors, path: Path | str, *, overwrite: bool = False, plain: bool = False) -> None:
    """Write vectors to one safetensors file, in float32, complete or not at all, and check it by reading it again.

    Args:
        vectors: what to write.
        path: a name that ends in `.safetensors` and does not exist.
        overwrite: replace an existing file.
        plain: for other programs: only v and μ, as `L3.attn` and `L3.attn.input_mean`, without metadata.

    Raises:
        InvalidValueError: metadata or diagnosis is not JSON.
        ArtifactError: the name ends otherwise, the file exists or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ArtifactError(f"vectors are written as safetensors, got {path.name!r}: name it {path.stem}.safetensors.")
    tensors = plain_tensors(vectors) if plain else named_tensors(vectors)
    header = {"format": "pt"} if plain else _header(vectors)
    with atomic_file(path, overwrite=overwrite) as scratch:
        write_tensors(tensors, scratch, header)


def _json(value: Any, what: str) -> str:
    """JSON that is text: half of a surrogate pair, as in a file name that is not UTF-8, is escaped."""
    text = json.dumps(plain_json(value, what), ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode()


def _header(vectors: SteeringVectors) -> dict[str, str]:
    return {
        "schema_version": str(SCHEMA_VERSION),
        "kind": KIND,
        "metadata": _json(vectors.metadata, "vectors' metadata"),
        "diagnosis": _json(vectors.diagnosis, "vectors' diagnosis"),
    }


def load_vectors(path: Path | str, use_at: UseAt | None = None) -> SteeringVectors:
    """Read vectors: our own file, or any of the formats of others that `read_vectors` reads.

    Args:
        path: of the file.
        use_at: for a file that holds directions of block outputs, and only for such a file: which projections of the
            same layer take them as their steering vectors, `attn`, `mlp` or `both`.

    Raises:
        ArtifactError: see `read_vectors`; or it holds directions of block outputs and `use_at` was not given, or the
            other way round.
    """
    path = Path(path)
    found = read_vectors(path)
    if isinstance(found, BlockVectors) and use_at is None:
        raise ArtifactError(
            f"{path} holds {found.metadata.get('format', 'vectors')}: one direction per block output, not one per "
            "projection. They are other quantities and are not converted silently. Extract vectors with steer2edit "
            f"extract; or say at which projections to use them: steer2edit vectors {path.name} --use-at mlp|attn|both "
            f"--to {path.stem}.safetensors (use_at)."
        )
    return _used_at(found, use_at, str(path))


def read_vectors(path: Path | str) -> SteeringVectors | BlockVectors:
    """Read a file of vectors as what it is.

    Args:
        path: a `.safetensors` file that `save_vectors` wrote; one made elsewhere, with v [d] as `L3.attn` and
            optionally the input mean [m] as `L3.attn.input_mean`; a `.pt` file with the official Steer2Edit
            directions, with v by site, or for lm-eval's model `steered`; a GGUF control vector; a `.svec` file; or an
            export of Neuronpedia. A `.pt` file is read with `weights_only=True`: no code in it ever runs.

    Returns:
        Vectors by site, or by block where that is what the file holds.

    Raises:
        ArtifactError: it is missing, truncated, of another format, of a newer version, or incomplete.
    """
    path = Path(path)
    require_file(path, "steering vectors")
    readers = {".safetensors": _load_safetensors, ".pt": _load_pt, ".gguf": read_control_vectors, ".svec": read_svec}
    readers |= {".json": read_neuronpedia}
    suffix = path.suffix.lower()
    if suffix == ".csv":
        raise ArtifactError(
            f"{path}: a .csv of lm-eval names features of sparse autoencoders that lm-eval then loads; there are no "
            "vectors in it. Save them by hookpoint as .pt."
        )
    if suffix not in readers:
        raise ArtifactError(f"{path}: steering vectors are read from {' or '.join(readers)} files, not {suffix!r}.")
    try:
        return readers[suffix](path)
    except InvalidValueError as error:
        raise ArtifactError(f"{path}: {error}") from error


def as_vectors(source: VectorSource, use_at: UseAt | None = None) -> SteeringVectors:
    """Vectors from wherever a user has them: themselves, a file, an object, or a mapping site → v.

    Args:
        source: vectors; a path for `load_vectors`; an object of the steering-vectors library; or a mapping from a
            site or its name (`L3.mlp`) to v [d], optionally with `L3.mlp.input_mean` → μ [m].
        use_at: as in `load_vectors`, for directions of block outputs.

    Raises:
        ArtifactError: see `load_vectors`.
        InvalidValueError: a key is no site, or a tensor has another form.
    """
    if isinstance(source, Path | str):
        return load_vectors(source, use_at)
    found = _in_memory(source)
    if isinstance(found, BlockVectors) and use_at is None:
        raise InvalidValueError(
            "these are directions of block outputs, not of projections, and are not converted silently. Say where to "
            "use them: use_at='mlp', 'attn' or 'both'."
        )
    return _used_at(found, use_at, "the source")


def as_block_vectors(source: VectorSource) -> BlockVectors:
    """Directions of block outputs: themselves, from a file, from an object, or measured along with vectors.

    Raises:
        ArtifactError: see `read_vectors`.
        MismatchError: there are only vectors of projections.
    """
    found = read_vectors(source) if isinstance(source, Path | str) else _in_memory(source)
    return found if isinstance(found, BlockVectors) else BlockVectors.of(found)


def _in_memory(source: VectorSource) -> SteeringVectors | BlockVectors:
    if isinstance(source, SteeringVectors | BlockVectors):
        return source
    if isinstance(source, LayerActivations):
        return from_object(source)
    if not isinstance(source, Mapping):
        raise InvalidValueError(f"vectors are given by site (L3.mlp), as a file or as an object, got {source!r:.80}.")
    sites, layers = assemble({str(key): tensor for key, tensor in source.items()})
    return SteeringVectors(sites, {"origin": "imported"}, block_outputs=layers)


def _used_at(found: SteeringVectors | BlockVectors, use_at: UseAt | None, where: str) -> SteeringVectors:
    if isinstance(found, BlockVectors):
        assert use_at is not None
        return site_vectors(found, use_at)
    if use_at is not None:
        raise ArtifactError(f"{where} holds vectors of projections already: leave out --use-at (use_at).")
    return found


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
    sites, layers = assemble(tensors)
    return SteeringVectors(sites, metadata, diagnosis, layers)


def _json_field(header: Mapping[str, str], name: str, path: Path) -> Any:
    try:
        return json.loads(header[name])
    except (KeyError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: its header has no readable JSON for {name!r} ({error}).") from error


def _load_pt(path: Path) -> SteeringVectors | BlockVectors:
    content = read_pt(path)
    if is_official(content):
        return _imported(official_tensors(content), path, "official Steer2Edit directions")
    if is_steered(content):
        return steered_vectors(content, format="lm-eval steered", file=path.name)
    if isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values()):
        return _imported({str(key): value for key, value in content.items()}, path, "torch")
    found = f"keys {', '.join(map(repr, list(content)[:5]))}" if isinstance(content, dict) else type(content).__name__
    edit = " It is an edit of the official code: steer2edit import-edit reads it." if is_official_edit(content) else ""
    raise ArtifactError(
        f"{path} holds neither the official Steer2Edit directions ('pre' and 'post'), nor tensors by site (L3.attn), "
        f"nor hookpoints of lm-eval, but {found}.{edit}"
    )


def _imported(tensors: Mapping[str, Tensor], path: Path, file_format: str) -> SteeringVectors:
    sites, layers = assemble(tensors)
    made = {"origin": "imported", "format": file_format, "file": path.name}
    return SteeringVectors(sites, made, block_outputs=layers)
