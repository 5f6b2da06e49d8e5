"""The files that a loaded model came from, if it still equals them."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from steer2edit.artifacts.checkpoints.base_checkpoint import BaseCheckpoint, base_checkpoint
from steer2edit.artifacts.checkpoints.safetensors_files import CheckpointFiles, open_checkpoint
from steer2edit.artifacts.tensors import same_bits
from steer2edit.errors import ArtifactError, ModelError
from steer2edit.models import LanguageModel
from steer2edit.models.model_path import has_weights


def base_of_loaded(model: LanguageModel) -> BaseCheckpoint | None:
    """The checkpoint of a loaded model, or `None` where the model in memory does not come from such files.

    A local directory or the Hub cache is accepted only if every projection, and every other tensor that has one name
    in the files and in the model, is in the model's dtype bit for bit the model's.
    """
    directory = _directory(model)
    if directory is None or not has_weights(directory):
        return None
    try:
        base = base_checkpoint(model, open_checkpoint(directory))
    except (ArtifactError, ModelError):  # damaged or incomplete by now; the model in memory is whole
        return None
    return base if _holds(base, model) else None


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


def _holds(base: BaseCheckpoint, model: LanguageModel) -> bool:
    return not base.quantised and _has_its_tensors(base.files, model) and _has_its_projections(base, model)


def _has_its_tensors(files: CheckpointFiles, model: LanguageModel) -> bool:
    state, prefix = model.network.state_dict(), model.network.base_model_prefix
    for name, tensor in files.tensors.items():
        own = _own_name(name, prefix, state)
        if own is None or state[own].is_meta or tensor.shape != tuple(state[own].shape):
            continue
        rows = state[own].reshape(tensor.rows, tensor.columns)
        for start, stop in tensor.chunks():
            if not same_bits(tensor.read_rows(start, stop).to(rows.dtype), rows[start:stop]):
                return False
    return True


def _has_its_projections(base: BaseCheckpoint, model: LanguageModel) -> bool:
    for projection in (p for site in model.sites.values() for p in site.projections):
        located = base.located(projection)
        stored_layout = projection.weight.T if located.transposed else projection.weight
        for own, part in located.chunks():
            if not same_bits(part.to(projection.dtype), stored_layout[own]):
                return False
    return True


def _own_name(name: str, prefix: str, state: Mapping[str, Tensor]) -> str | None:
    """A file may name tensors with or without the prefix of the model without its head (`transformer.h.0...`)."""
    candidates = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
    return next((candidate for candidate in candidates if candidate in state), None)
