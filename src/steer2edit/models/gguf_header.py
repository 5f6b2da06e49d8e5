"""The header of a GGUF file that is not trusted: every count and offset is checked against the file's size.

The reader of the `gguf` package believes the counts it finds: one array that claims 2⁶⁰ entries keeps it busy until the
memory is full.

    "GGUF", version u32, number of tensors u64, number of keys u64
    keys:     name, type u32, value             (a text is its length u64 and its bytes)
    tensors:  name, number of axes u32, sizes u64, type u32, offset u64
    padding to the alignment, then the tensors' data
"""

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_MOST_AXES = 4

Value = str | int | float | bool | None
"""Of a key; `None` for an array, whose content is not read."""


class UnsoundError(ValueError):
    """The file is truncated, damaged, or no GGUF."""


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor is in a file.

    Args:
        shape: in the order of numpy.
        type: of its numbers, as GGUF counts them.
        start: of its data in the file.
        size: of its data in bytes.
    """

    shape: tuple[int, ...]
    type: int
    start: int
    size: int

    @property
    def type_name(self) -> str:
        """`F32`, `Q4_K`."""
        return str(GGMLQuantizationType(self.type).name)


@dataclass(frozen=True)
class GgufHeader:
    """Keys and tensors of a file.

    Args:
        keys: by name.
        tensors: by name.
    """

    keys: dict[str, Value]
    tensors: dict[str, GgufTensor]

    @property
    def architecture(self) -> Value:
        """What llama.cpp calls the architecture."""
        return self.keys.get("general.architecture")


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does."""
    with path.open("rb") as stream:
        return stream.read(4) == b"GGUF"


@contextmanager
def gguf_bytes(path: Path) -> Iterator[mmap.mmap]:
    """The bytes of a file, mapped."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def gguf_header(data: mmap.mmap) -> GgufHeader:
    """What the header of a GGUF file says, each tensor within the file.

    Raises:
        UnsoundError: it is truncated, damaged, or no GGUF.
    """
    cursor = _Cursor(data)
    if cursor.take(4) != b"GGUF":
        raise UnsoundError("it does not begin with GGUF")
    version, tensor_count, key_count = cursor.numbers("IQQ")
    if version not in (2, 3):
        raise UnsoundError(f"version {version}, and versions 2 and 3 in little-endian are read")
    keys: dict[str, Value] = {}
    for _ in range(key_count):
        name = cursor.text()
        if name in keys:
            raise UnsoundError(f"the key {name!r} is there twice")
        keys[name] = _value(cursor, *cursor.numbers("I"))
    found = [_tensor(cursor) for _ in range(tensor_count)]
    alignment = keys.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise UnsoundError(f"its alignment is {alignment!r}, which is no power of two")
    start = cursor.at + -cursor.at % alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, offset, size in found:
        if name in tensors:
            raise UnsoundError(f"the tensor {name!r} is there twice")
        if start + offset + size > len(data):
            raise UnsoundError(f"the tensor {name!r} reaches beyond the end of the file")
        tensors[name] = GgufTensor(shape, kind, start + offset, size)
    return GgufHeader(keys, tensors)


class _Cursor:
    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise UnsoundError(f"{size} bytes are expected at {self.at}, but the file has {len(self.data)} in all")
        self.at += size
        return self.data[self.at - size : self.at]

    def numbers(self, code: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))

    def text(self) -> str:
        return self.take(*self.numbers("Q")).decode("utf-8")


def _value(cursor: _Cursor, kind: int) -> Value:
    if kind == _TEXT:
        return cursor.text()
    if kind in _SCALARS:
        number: Value = cursor.numbers(_SCALARS[kind])[0]
        return number
    if kind != _ARRAY:
        raise UnsoundError(f"a key of the unknown type {kind}")
    kind, count = cursor.numbers("IQ")
    if kind in _SCALARS:
        cursor.take(struct.calcsize(f"<{_SCALARS[kind]}") * count)
    elif kind == _TEXT:
        for _ in range(count):
            cursor.take(*cursor.numbers("Q"))
    else:
        raise UnsoundError(f"a list of the type {kind}")
    return None


def _tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int, int]:
    """Name, shape, type, offset and size in bytes."""
    name, (axes,) = cursor.text(), cursor.numbers("I")
    if axes > _MOST_AXES:
        raise UnsoundError(f"the tensor {name!r} has {axes} axes")
    shape = cursor.numbers("Q" * axes)
    kind, offset = cursor.numbers("IQ")
    if kind not in GGML_QUANT_SIZES:
        raise UnsoundError(f"the tensor {name!r} is of the unknown type {kind}")
    numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    return name, shape[::-1], kind, offset, -(-prod(shape) // numbers) * size
