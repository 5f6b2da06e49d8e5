"""Weights in a `.bin` file of torch, as the safetensors file that they are written as: same names, dtypes and bits."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steer2edit.artifacts.checkpoints.stored_tensor import DTYPES, StoredTensor
from steer2edit.artifacts.vector_files.pt_files import read_pt
from steer2edit.errors import ArtifactError

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def open_pickled(source: Path, target: Path) -> tuple[dict[str, StoredTensor], bytes]:
    """The tensors of a `.bin` file, each with its place in a safetensors file, and what that file begins with.

    Tensors that share memory are each written: which of them the model ties is the config's to say.

    Args:
        source: the file; nothing in it is run, and where torch can map it into memory, it is not read as a whole.
        target: the safetensors file that is to be.

    Raises:
        ArtifactError: it is damaged, or holds anything else than plain tensors by name.
    """
    content = read_pt(source, mapped=True)
    if not isinstance(content, Mapping) or not all(isinstance(n, str) and _is_plain(t) for n, t in content.items()):
        raise ArtifactError(f"{source} does not hold plain tensors by name, and nothing else: it is no checkpoint's.")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in sorted(content.items(), key=lambda item: (-item[1].itemsize, item[0])):
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    tensors = {
        name: stored_tensor(target, name, header[name], 8 + len(text), tensor.detach().contiguous())
        for name, tensor in content.items()
    }
    return tensors, len(text).to_bytes(8, "little") + text


def stored_tensor(
    file: Path, name: str, entry: Mapping[str, Any], data: int, values: Tensor | None = None
) -> StoredTensor:
    """A tensor as the header of a safetensors file, whose data begin at a byte, says it."""
    begin, end = entry["data_offsets"]
    return StoredTensor(file, name, entry["dtype"], tuple(entry["shape"]), data + begin, data + end, values)


def _is_plain(tensor: Any) -> bool:
    """A tensor with memory of its own for every number: one that repeats a few could be of any size."""
    plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.dtype in _NAMES
    return plain and tensor.nbytes <= tensor.untyped_storage().nbytes()
