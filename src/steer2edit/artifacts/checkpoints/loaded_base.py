"""The files that a loaded model came from, if it still equals them."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from steer2edit.artifacts.checkpoints.base_checkpoint import BaseCheckpoint
from steer2edit.artifacts.checkpoints.safetensors_files import open_checkpoint
from steer2edit.artifacts.tensors import same_bits
from steer2edit.errors import ArtifactError, ModelError
from steer2edit.models import LanguageModel, stored_parameters
from steer2edit.models.model_path import has_weights


def base_of_loaded(model: LanguageModel) -> BaseCheckpoint | None:
    """The checkpoint of a loaded model, or `None` where the model in memory does not come from such files.

    A local directory or the Hub cache is accepted only if every projection, and every other tensor that is loaded as it
    is, is in the model's dtype bit for bit the model's.
    """
    directory = _directory(model)
    if directory is None or not has_weights(directory):
        return None
    try:
        base = BaseCheckpoint.of(model, open_checkpoint(directory))
    except (ArtifactError, ModelError):  # damaged or incomplete by now; the model in memory is whole
        return None
    same = not base.quantised and all(same_bits(stored.to(own.dtype), own) for stored, own in _pairs(base))
    return base if same else None


def _directory(model: LanguageModel) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in (model.network.name_or_path, model.name):
        if name and Path(name).is_dir():
            return Path(name)
    try:
        config = try_to_load_from_cache(str(model.network.name_or_path), "config.json", revision=model.revision)
    except HFValidationError:  # no Hub id at all
        return None
    return Path(config).parent if isinstance(config, str) else None


def _pairs(base: BaseCheckpoint) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of tensors as they are in the files and in the model."""
    state = base.model.network.state_dict()
    for own, name in stored_parameters(base.model, base.files.tensors).items():
        tensor = base.files.tensors[name]
        if not state[own].is_meta and tensor.shape == tuple(state[own].shape):
            rows = state[own].reshape(tensor.rows, tensor.columns)
            yield from ((tensor.read_rows(start, stop), rows[start:stop]) for start, stop in tensor.chunks())
    for projection in (p for site in base.model.sites.values() for p in site.projections):
        stored = base.find(projection)
        weight = projection.weight.T if stored.transposed else projection.weight
        yield from ((part, weight[own]) for own, part in stored.chunks())
