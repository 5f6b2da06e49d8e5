"""Reading small GGUF files of vectors that are not trusted."""

import mmap
from pathlib import Path

import torch
from gguf import GGMLQuantizationType
from jaxtyping import Float
from torch import Tensor

from steer2edit.errors import ArtifactError
from steer2edit.models.gguf_header import GgufTensor, UnsoundError, Value, gguf_bytes, gguf_header


def read_gguf_vectors(
    path: Path, architecture: str, what: str
) -> "tuple[dict[str, Value], dict[str, Float[Tensor, ' _']]]":
    """All keys and tensors of a GGUF file that holds vectors in F32.

    Args:
        path: of the file.
        architecture: what its key `general.architecture` must be.
        what: what it should hold, for messages.

    Raises:
        ArtifactError: it is truncated, damaged, holds something else, or a tensor is not a vector in F32.
    """
    try:
        with gguf_bytes(path) as data:
            header = gguf_header(data)
            if header.architecture != architecture:
                raise UnsoundError(f"its architecture is {header.architecture!r}, and {what} have {architecture!r}")
            return header.keys, {name: _vector(data, name, tensor) for name, tensor in header.tensors.items()}
    except (ValueError, OSError) as error:  # an empty file cannot be mapped: that is a ValueError too
        raise ArtifactError(
            f"{path} is not a readable GGUF file with {what} ({error}): it is truncated, damaged, or of another "
            "format. Get it again from where it was made."
        ) from error


def _vector(data: mmap.mmap, name: str, tensor: GgufTensor) -> Float[Tensor, " _"]:
    if tensor.type != GGMLQuantizationType.F32 or len(tensor.shape) != 1 or not tensor.shape[0]:
        raise UnsoundError(
            f"the tensor {name!r} must be one row of F32, but is of type {tensor.type} and shape {list(tensor.shape)}"
        )
    return torch.frombuffer(bytearray(data[tensor.start : tensor.start + tensor.size]), dtype=torch.float32)
