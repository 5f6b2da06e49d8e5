"""Reading small GGUF files that are not trusted: every count and offset is checked against the file's size.

The reader of the `gguf` package believes the counts it finds: one array that claims 2⁶⁰ entries keeps it busy until the
memory is full. It is used for writing only.

    "GGUF", version u32, number of tensors u64, number of keys u64
    keys:     name, type u32, value             (a text is its length u64 and its bytes)
    tensors:  name, number of axes u32, sizes u64, type u32, offset u64
    padding to the alignment, then the tensors' data
"""

import mmap
import struct
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.errors import ArtifactError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY, _F32 = 8, 9, 0
_MOST_AXES = 4

Value = str | int | float | bool | None
"""Of a key; `None` for an array, whose content is not read."""


class _UnsoundError(ValueError):
    pass


class _Cursor:
    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise _UnsoundError(f"{size} bytes are expected at {self.at}, but the file has {len(self.data)} in all")
        self.at += size
        return self.data[self.at - size : self.at]

    def numbers(self, code: str) -> tuple[int, ...]:
        found: tuple[int, ...] = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))
        return found

    def text(self) -> str:
        return self.take(*self.numbers("Q")).decode("utf-8")


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
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(_Cursor(data), architecture, what)
    except (ValueError, OSError) as error:  # an empty file cannot be mapped: that is a ValueError too
        raise ArtifactError(
            f"{path} is not a readable GGUF file with {what} ({error}): it is truncated, damaged, or of another "
            "format. Get it again from where it was made."
        ) from error


def _read(cursor: _Cursor, architecture: str, what: str) -> "tuple[dict[str, Value], dict[str, Float[Tensor, ' _']]]":
    if cursor.take(4) != b"GGUF":
        raise _UnsoundError("it does not begin with GGUF")
    version, tensor_count, key_count = cursor.numbers("IQQ")
    if version not in (2, 3):
        raise _UnsoundError(f"version {version}, and versions 2 and 3 in little-endian are read")
    keys: dict[str, Value] = {}
    for _ in range(key_count):
        name = cursor.text()
        if name in keys:
            raise _UnsoundError(f"the key {name!r} is there twice")
        keys[name] = _value(cursor, *cursor.numbers("I"))
    if (found := keys.get("general.architecture")) != architecture:
        raise _UnsoundError(f"its architecture is {found!r}, and {what} have {architecture!r}")
    places: dict[str, tuple[int, int]] = {}
    for _ in range(tensor_count):
        name, size, offset = _tensor_info(cursor)
        if name in places:
            raise _UnsoundError(f"the tensor {name!r} is there twice")
        places[name] = size, offset
    alignment = keys.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise _UnsoundError(f"its alignment is {alignment!r}, which is no power of two")
    start = cursor.at + -cursor.at % alignment
    return keys, {name: _vector(cursor, name, size, start + offset) for name, (size, offset) in places.items()}


def _value(cursor: _Cursor, kind: int) -> Value:
    if kind == _TEXT:
        return cursor.text()
    if kind in _SCALARS:
        return cursor.numbers(_SCALARS[kind])[0]
    if kind != _ARRAY:
        raise _UnsoundError(f"a key of the unknown type {kind}")
    kind, count = cursor.numbers("IQ")
    if kind in _SCALARS:
        cursor.take(struct.calcsize(f"<{_SCALARS[kind]}") * count)
    elif kind == _TEXT:
        for _ in range(count):
            cursor.text()
    else:
        raise _UnsoundError(f"a list of the type {kind}")
    return None


def _tensor_info(cursor: _Cursor) -> tuple[str, int, int]:
    """Name, entries and offset of a vector in F32."""
    name, (axes,) = cursor.text(), cursor.numbers("I")
    if axes > _MOST_AXES:
        raise _UnsoundError(f"the tensor {name!r} has {axes} axes")
    shape = cursor.numbers("Q" * axes)
    kind, offset = cursor.numbers("IQ")
    if kind != _F32 or len(shape) != 1 or not shape[0]:
        raise _UnsoundError(
            f"the tensor {name!r} must be one row of F32, but is of type {kind} and shape {list(shape)}"
        )
    return name, shape[0], offset


def _vector(cursor: _Cursor, name: str, size: int, start: int) -> Float[Tensor, " _"]:
    if start + 4 * size > len(cursor.data):
        raise _UnsoundError(f"the tensor {name!r} reaches beyond the end of the file")
    return torch.frombuffer(bytearray(cursor.data[start : start + 4 * size]), dtype=torch.float32)
