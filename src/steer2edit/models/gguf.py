"""A GGUF file as a checkpoint: dequantised by transformers, once, into a safetensors directory in the user's cache.

From then on it is a checkpoint like any other, with the tokenizer and the chat template of the file. The file is not
trusted: every count and offset of its header is checked against its size. The reader of the `gguf` package believes the
counts it finds: one array that claims 2⁶⁰ entries keeps it busy until the memory is full.

    "GGUF", version u32, number of tensors u64, number of keys u64
    keys:     name, type u32, value             (a text is its length u64 and its bytes)
    tensors:  name, number of axes u32, sizes u64, type u32, offset u64
    padding to the alignment, then the tensors' data
"""

import hashlib
import mmap
import os
import shutil
import struct
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

from steer2edit.errors import ModelError
from steer2edit.progress import step

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_MOST_AXES = 4
_EMBEDDING = "token_embd.weight"
_EXACT = {"F32": torch.float32, "F16": torch.float16}
"""What the numbers of a file that is not quantised are kept in; all others are rounded to bfloat16."""

Value = str | int | float | bool | None
"""Of a key; `None` for an array, whose content is not read."""


class UnsoundError(ValueError):
    """The file is truncated, damaged, or no GGUF."""


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor is in a file."""

    shape: tuple[int, ...]  # in the order of numpy
    type: int  # of its numbers, as GGUF counts them
    start: int  # of its data in the file
    size: int  # of its data in bytes


@dataclass(frozen=True)
class GgufHeader:
    """Keys and tensors of a file, by name."""

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


def gguf_header(path: Path) -> GgufHeader:
    """What the header of a GGUF file says, each tensor within the file; a ValueError where it is not sound."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _header(_Cursor(data))


def _header(cursor: "_Cursor") -> GgufHeader:
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
        keys[name] = cursor.value(*cursor.numbers("I"))
    found = [cursor.tensor() for _ in range(tensor_count)]
    alignment = keys.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise UnsoundError(f"its alignment is {alignment!r}, which is no power of two")
    start = cursor.at + -cursor.at % alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, offset, size in found:
        if name in tensors:
            raise UnsoundError(f"the tensor {name!r} is there twice")
        if start + offset + size > len(cursor.data):
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

    def value(self, kind: int) -> Value:
        if kind == _TEXT:
            return self.text()
        if kind in _SCALARS:
            number: Value = self.numbers(_SCALARS[kind])[0]
            return number
        if kind != _ARRAY:
            raise UnsoundError(f"a key of the unknown type {kind}")
        kind, count = self.numbers("IQ")
        if kind not in (_TEXT, *_SCALARS):
            raise UnsoundError(f"a list of the type {kind}")
        if kind in _SCALARS:
            self.take(struct.calcsize(f"<{_SCALARS[kind]}") * count)
        for _ in range(count if kind == _TEXT else 0):
            self.take(*self.numbers("Q"))
        return None

    def tensor(self) -> tuple[str, tuple[int, ...], int, int, int]:
        """Name, shape, type, offset and size in bytes."""
        name, (axes,) = self.text(), self.numbers("I")
        if axes > _MOST_AXES:
            raise UnsoundError(f"the tensor {name!r} has {axes} axes")
        shape = self.numbers("Q" * axes)
        kind, offset = self.numbers("IQ")
        if kind not in GGML_QUANT_SIZES:
            raise UnsoundError(f"the tensor {name!r} is of the unknown type {kind}")
        numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        return name, shape[::-1], kind, offset, -(-prod(shape) // numbers) * size


def gguf_checkpoint(file: Path) -> Path:
    """Directory of the dequantised checkpoint of a file, made on first use."""
    target = cache_directory() / f"{file.stem}-{gguf_sha256(file)[:16]}"
    if (target / "config.json").is_file():
        return target
    header = read_header(file)
    if (parts := header.keys.get("split.count")) not in (None, 0, 1):
        raise ModelError(
            f"{str(file)!r} is one of {parts} parts of a model, and one file is wanted: llama-gguf-split --merge."
        )
    if _EMBEDDING not in header.tensors:  # transformers would make a model of its default size for it, at random
        kind = header.keys.get("general.type") or header.architecture
        raise ModelError(
            f"{str(file)!r} is a GGUF file without a model's weights ({_EMBEDDING}): it says that it is {kind!r}. Give "
            "the model's, or what it was made from: the checkpoint in safetensors, the PEFT adapter or the edit."
        )
    try:
        with step(f"Dequantising {file.name}, once", 1) as advance:
            _convert(file, header, target)
            advance(1)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        size = sum(prod(tensor.shape) for tensor in header.tensors.values()) * 2 / 1e9
        raise ModelError(
            f"cannot put the model {file.name} into {target}: {reason}. Set STEER2EDIT_CACHE to a directory that can "
            f"be written and has {size:.1f} GB of space."
        ) from error
    return target


def read_header(file: Path) -> GgufHeader:
    """Keys and tensors of a file. Raises ModelError: it is truncated, damaged, or no GGUF."""
    try:
        return gguf_header(file)
    except ValueError as error:  # also of an empty file, which cannot be mapped, and of names that are no text
        raise ModelError(
            f"{str(file)!r} is not a sound GGUF file ({error}): it is truncated or damaged. Get it again."
        ) from error


def gguf_sha256(file: Path) -> str:
    """SHA-256 of a file, which is the identity of its model."""
    found = file.stat()
    return _sha256(file.resolve(), found.st_size, found.st_mtime_ns)


@cache
def _sha256(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cache_directory() -> Path:
    """STEER2EDIT_CACHE, or a directory of ours in XDG_CACHE_HOME or ~/.cache; a variable that is empty is not set."""
    own = os.environ.get("STEER2EDIT_CACHE")
    return Path(os.path.expanduser(own or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "steer2edit")))


def _convert(source: Path, header: GgufHeader, target: Path) -> None:
    """Dequantise into a temporary directory beside the target, then rename: complete or absent."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        network, tokenizer = _dequantised(source, header)
        network.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        scratch.chmod(0o755)
        try:
            scratch.rename(target)
        except OSError:
            if not (target / "config.json").is_file():  # otherwise another process was faster, with the same result
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _dequantised(source: Path, header: GgufHeader) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    place = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    largest = max(header.tensors.values(), key=lambda tensor: tensor.size)
    try:
        network, loaded = AutoModelForCausalLM.from_pretrained(
            **place,
            quantization_config=GgufConfig(gguf_file=source.name, dequantize=True),
            dtype=_EXACT.get(GGMLQuantizationType(largest.type).name, torch.bfloat16),
            output_loading_info=True,
        )
        require_complete(str(source), loaded["missing_keys"])
        return network, AutoTokenizer.from_pretrained(**place)
    except ModelError:
        raise
    except Exception as error:  # the readers of configs, tokenizers and weights raise what they like
        reason = " ".join(str(error).split())[:300]
        if "not supported" in reason:
            reason = f"transformers reads GGUF of {', '.join(GGUF_SUPPORTED_ARCHITECTURES)}"
        raise ModelError(
            f"cannot read the GGUF file {str(source)!r} of the architecture {header.architecture!r}: {reason}. Give "
            "the checkpoint in safetensors that it was made from."
        ) from error


def require_complete(name: str, missing: Collection[str]) -> None:
    """Refuse a model of which weights are not in its files: transformers would leave them random. Raises ModelError."""
    if missing:
        raise ModelError(
            f"the checkpoint {name!r} lacks {len(missing)} weights that its config asks for: "
            f"{', '.join(sorted(missing)[:4])}{', ...' if len(missing) > 4 else ''}. Check that config.json and the "
            "weights belong together."
        )
