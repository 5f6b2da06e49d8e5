"""Files of tensors: safetensors, with text in the header; GGUF; `.pt`, which is only read, and nothing in it is run."""

import hashlib
import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from steer2edit.artifacts.atomic import require_read_back
from steer2edit.errors import ArtifactError

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16,
    "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip
"""torch's dtypes by the safetensors format's names; it has more, such as FP4, that torch has not."""
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_tensors(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, str]) -> None:
    """Write tensors with text in the header's `__metadata__`, and read them back; the same content, the same bytes."""
    owned = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    entries, begin = laid_out(owned, header)
    with path.open("wb") as file:
        file.write(begin)
        for name in entries:
            file.write(bytes_of(owned[name]))
    read, read_header = read_tensors(path, "tensors")
    same = read.keys() == owned.keys() and all(same_bits(read[name], owned[name]) for name in owned)
    require_read_back(same and read_header == header, path)


def write_gguf(
    path: Path, architecture: str, keys: Mapping[str, Any], tensors: Mapping[str, NDArray[np.float32]]
) -> None:
    """Write a GGUF file of float32 tensors, and by key texts, whole numbers (uint32) and others (float32)."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    for key, value in keys.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(key, value)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def laid_out(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[dict[str, Any], bytes]:
    """A safetensors file's header entries of plain tensors, in the order of their data, and what the file begins with.

    safetensors' own writer puts the metadata's texts in random order, which changes a file's hash from run to run.
    """
    entries: dict[str, Any] = {}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        begin, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]
        }  # fmt: skip
    header = {"__metadata__": dict(sorted(metadata.items())), **entries}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return entries, len(text).to_bytes(8, "little") + text


def read_tensors(path: Path, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors by name, and the header's texts; an ArtifactError, of `what` it should be, where it is unsound."""
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


def read_pt(path: Path, *, mapped: bool = False) -> Any:
    """The content of a file that `torch.save` wrote, read with `weights_only=True`: nothing in it is run.

    `mapped` leaves tensors in the file until they are used, unless it is of the format before torch 1.6. An
    ArtifactError where it is damaged, of another format, or holds Python objects.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch advises to load what is refused here
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path))
    except Exception as error:  # a hostile or damaged pickle can raise anything; whatever it is, the file is refused
        reason = " ".join(str(error).split())
        if "GLOBAL" in reason or "REDUCE" in reason:
            raise ArtifactError(
                f"{path} is refused: besides tensors it holds pickled Python objects, which can run code when they "
                "are loaded. Nothing in it was run. Save only tensors, best as safetensors."
            ) from error
        shown = reason.split("This file can still be loaded")[0][:200]  # torch goes on with how to load it unchecked
        raise ArtifactError(
            f"{path} is not a readable .pt file ({shown.strip()}): it is truncated, damaged, or of another format."
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


def bytes_of(tensor: Tensor) -> memoryview:
    """A contiguous tensor's memory."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data).cast("B")
