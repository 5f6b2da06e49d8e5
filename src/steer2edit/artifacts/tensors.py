"""Reading and writing safetensors files: float tensors by name, text by name in the header."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from steer2edit.errors import ArtifactError

_HEADER_ALIGNMENT = 8


def write_tensors(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, str]) -> None:
    """Write tensors with text in the header, and read them back; the same content gives the same bytes.

    Args:
        tensors: by name; copied to the CPU, each into memory of its own.
        path: of the file.
        header: the safetensors header's `__metadata__`.

    Raises:
        ArtifactError: what is there is not what was written, bit for bit.
    """
    owned = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    data = memoryview(save(owned, dict(header)))
    size = int.from_bytes(data[:8], "little")
    content = json.loads(bytes(data[8 : 8 + size]))
    # safetensors writes the header's texts in random order, which would change the file's hash from run to run
    content["__metadata__"] = dict(sorted(content["__metadata__"].items()))
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(data[8 + size :])
    read, read_header = read_tensors(path, "tensors")
    same = read.keys() == owned.keys() and all(same_bits(read[name], owned[name]) for name in owned)
    if not same or read_header != header:
        raise ArtifactError(
            f"{path} reads back differently from what was written: the disk may be failing. Nothing was kept; write to "
            "another place."
        )


def read_tensors(path: Path, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors by name, and the header's texts.

    Args:
        path: of the file.
        what: what it should be, for messages.

    Raises:
        ArtifactError: it is missing, truncated, damaged, or no safetensors file.
    """
    require_file(path, what)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{path} is not a readable safetensors file ({error}): it is truncated, damaged, or of another format. "
            f"Get the {what} again from where they were made."
        ) from error


def require_file(path: Path, what: str) -> None:
    """Raise an ArtifactError unless `path` is a file."""
    if path.is_dir():
        raise ArtifactError(f"{path} is a directory, but the {what} are one file. Give the file itself.")
    if not path.is_file():
        raise ArtifactError(f"there is no file {path} with {what}. Check the path.")


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits (NaN equals itself, and −0 is not 0)."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    raw = [tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    if all(t.numel() % 8 == 0 and t.storage_offset() % 8 == 0 for t in raw):
        raw = [t.view(torch.int64) for t in raw]  # eight bytes at a time: a checkpoint has billions
    return torch.equal(*raw)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
