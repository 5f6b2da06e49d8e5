"""A GGUF file as a checkpoint: dequantised by transformers, once, into a safetensors directory in the user's cache.

From then on it is a checkpoint like any other, with the tokenizer and the chat template of the file.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection
from functools import cache
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

from steer2edit.errors import ModelError
from steer2edit.models.gguf_header import GgufHeader, gguf_bytes, gguf_header
from steer2edit.progress import step

_EXACT = {"F32": torch.float32, "F16": torch.float16}
"""What the numbers of a file that is not quantised are kept in; all others are rounded to bfloat16."""


def gguf_checkpoint(file: Path) -> Path:
    """Directory of the dequantised checkpoint of a file, made on first use.

    Raises:
        ModelError: the file is truncated or damaged, has no weights, is a part of a model, or of an architecture that
            transformers does not read; or the cache cannot be written.
    """
    target = cache_directory() / f"{file.stem}-{gguf_sha256(file)[:16]}"
    if (target / "config.json").is_file():
        return target
    header = read_header(file)
    if header.keys.get("split.count") not in (None, 0, 1):
        raise ModelError(
            f"{str(file)!r} is one of {header.keys['split.count']} parts of a model, and one file is wanted. Merge "
            "them (llama-gguf-split --merge)."
        )
    if not header.tensors:
        raise ModelError(
            f"{str(file)!r} is a GGUF file without weights, a vocabulary say. Give the model's, or the checkpoint in "
            "safetensors that it was made from."
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
    """Keys and tensors of a file.

    Raises:
        ModelError: it is truncated, damaged, or no GGUF.
    """
    try:
        with gguf_bytes(file) as data:
            return gguf_header(data)
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
            dtype=_EXACT.get(largest.type_name, torch.bfloat16),
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
    """Refuse a model of which weights are not in its files: transformers would leave them random.

    Raises:
        ModelError: as said.
    """
    if missing:
        raise ModelError(
            f"the checkpoint {name!r} lacks {len(missing)} weights that its config asks for: "
            f"{', '.join(sorted(missing)[:4])}{', ...' if len(missing) > 4 else ''}. Check that config.json and the "
            "weights belong together."
        )
