"""Which entries of a checkpoint's directory belong to it besides its shards: config, tokenizer, code, and so on."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from steer2edit.artifacts.atomic import MANIFEST_FILE
from steer2edit.artifacts.checkpoints.safetensors_files import require_inside
from steer2edit.models.model_path import INDEX_FILE, SINGLE_FILE

_WEIGHTS = {
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".keras", ".msgpack", ".npz", ".npy"),
    *(".gguf", ".ggml", ".onnx", ".onnx_data", ".ot", ".tflite", ".mlmodel", ".nemo", ".pdparams", ".engine", ".data"),
}
_DESCRIBES = {
    "adapter_config.json": "adapter_model.",
    "params.json": "consolidated.",
    "openvino_model.xml": "openvino_model.",
}
"""Files that engines read first, by the beginning of the weights without which they lead nowhere."""


class SideFiles(NamedTuple):
    """Files of a checkpoint besides its shards, as paths within its directory."""

    own: list[Path]  # what belongs to the checkpoint
    # weights that are not the checkpoint's, which would still be unedited, and what cannot be loaded without them:
    # their indices and settings, and what else is in a folder of theirs, but for code; hidden entries; folders that are
    # links; pipes, sockets and devices
    left_out: list[Path]


def find_side_files(directory: Path, shards: Collection[str]) -> SideFiles:
    """Sort a checkpoint directory's entries.

    Raises:
        ArtifactError: a file that belongs to the checkpoint is a link that leads out of it, or nowhere.
    """
    entries = [path for path in _entries(directory, Path()) if str(path) not in (MANIFEST_FILE, *shards)]
    weights = [path for path in entries if path.suffix.lower() in _WEIGHTS]
    found = SideFiles([], [])
    for path in entries:
        whole = directory / path
        special = whole.exists() and not whole.is_file()
        if not special and path not in weights and _belongs(path, weights, SINGLE_FILE not in shards):
            require_inside(whole, directory)
            found.own.append(path)
        else:
            found.left_out.append(path)
    return found


def _entries(directory: Path, within: Path) -> Iterator[Path]:
    """Files of a folder and of those in it; a hidden folder, or one that is a link, as an entry of its own."""
    for entry in sorted(os.scandir(directory / within), key=lambda entry: entry.name):
        path = within / entry.name
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            yield from _entries(directory, path)
        else:
            yield path


def _belongs(path: Path, weights: Collection[Path], indexed: bool) -> bool:
    if path.name.startswith("."):
        return False
    if path.name.endswith(".index.json"):
        return indexed and str(path) == INDEX_FILE
    beside = [other.name for other in weights if other.parent == path.parent]
    if path.parent != Path():
        return not beside or path.suffix == ".py"
    described = _DESCRIBES.get(path.name)
    return described is None or not any(name.startswith(described) for name in beside)
