"""The files a model was loaded from, where they are on this machine."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from steer2edit.artifacts.tensors import same_bits
from steer2edit.models import LanguageModel

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_OTHER_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".npz", ".ot"}
_KEPT_DIRECTORIES = {"additional_chat_templates"}


@dataclass(frozen=True)
class BaseFiles:
    """A checkpoint directory and where each of the model's tensors is in it.

    Args:
        directory: of the checkpoint.
        shards: names of the safetensors files with the weights.
        located: (file, tensor name in the file) by name in the model.
    """

    directory: Path
    shards: tuple[str, ...]
    located: Mapping[str, tuple[str, str]]

    def split_entries(self) -> tuple[list[Path], list[Path]]:
        """(what belongs to the checkpoint besides its shards, what does not).

        Weights in other formats do not: they would still hold the unedited model.
        """
        kept: list[Path] = []
        left_out: list[Path] = []
        for path in sorted(self.directory.iterdir()):
            if path.name in self.shards:
                continue
            (kept if _belongs(path) else left_out).append(path)
        return kept, left_out


def _belongs(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return path.name in _KEPT_DIRECTORIES
    if path.name.endswith(".index.json"):
        return path.name == _INDEX
    return path.suffix not in _OTHER_WEIGHTS


def find_base_files(model: LanguageModel) -> BaseFiles | None:
    """The safetensors files of a model, or `None` where the model in memory does not come from such files.

    A local directory or the Hub cache is accepted only if every tensor in it that the model has is, in the model's
    dtype, bit for bit the model's, and every site is among them.
    """
    directory = _directory(model)
    shards = _shards(directory) if directory else ()
    if directory is None or not shards:
        return None
    state = model.network.state_dict()
    located: dict[str, tuple[str, str]] = {}
    for shard, name, tensor in _tensors(directory, shards):
        own = _own_name(name, model.network.base_model_prefix, state)
        if own is None or state[own].is_meta:
            continue
        if not same_bits(tensor.to(state[own].dtype), state[own]):
            return None
        located[own] = (shard, name)
    if any(f"{site.name}.weight" not in located for site in model.sites.values()):
        return None
    return BaseFiles(directory, shards, located)


def _directory(model: LanguageModel) -> Path | None:
    for name in (model.network.name_or_path, model.name):
        if name and Path(name).is_dir():
            return Path(name)
    return _cached_snapshot(str(model.network.name_or_path), model.revision)


def _cached_snapshot(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:  # no Hub id at all
        return None
    return Path(config).parent if isinstance(config, str) else None


def _shards(directory: Path) -> tuple[str, ...]:
    if (directory / _SINGLE).is_file():
        return (_SINGLE,)
    if not (directory / _INDEX).is_file():
        return ()
    names = set(json.loads((directory / _INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    return tuple(sorted(names)) if all((directory / name).is_file() for name in names) else ()


def _tensors(directory: Path, shards: tuple[str, ...]) -> Iterator[tuple[str, str, Tensor]]:
    for shard in shards:
        with safe_open(directory / shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                yield shard, name, file.get_tensor(name)


def _own_name(name: str, prefix: str, state: Mapping[str, Tensor]) -> str | None:
    """A file may name tensors with or without the prefix of the model without its head (`transformer.h.0...`)."""
    candidates = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
    return next((candidate for candidate in candidates if candidate in state), None)
