"""The edited checkpoint: the base's files with `W + strength · u aᵀ` in place of W, and nothing else changed."""

import filecmp
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from steer2edit.artifacts.atomic import MANIFEST_FILE, atomic_directory
from steer2edit.artifacts.base_files import BaseFiles, find_base_files
from steer2edit.artifacts.manifest import (
    BaseModelRecord,
    CheckpointManifest,
    now,
    package_versions,
    plain_json,
    write_manifest,
)
from steer2edit.artifacts.tensors import read_tensors, same_bits
from steer2edit.core import SiteEdit, WeightEdit
from steer2edit.editing.runtime import require_fit
from steer2edit.editing.weights import merged_weight
from steer2edit.errors import ArtifactError, InvalidValueError
from steer2edit.models import LanguageModel, SiteModule


def save_checkpoint(
    model: LanguageModel,
    edit: WeightEdit,
    directory: Path | str,
    *,
    strength: float = 1.0,
    allow_mismatch: bool = False,
    overwrite: bool = False,
) -> None:
    """Write the edited model as a checkpoint directory, complete or not at all, and check every tensor of it.

    Where the model comes from safetensors files on this machine, those are copied, and only the ones with edited
    tensors are written anew, so that names, shards and dtypes are the base's. Otherwise the model is saved from
    memory, in the dtype it has there. Edited tensors are `W + strength · u aᵀ`, added in float32 and rounded once.

    Args:
        model: the base. It is only read.
        edit: the edit.
        directory: must not exist.
        strength: factor of the edit.
        allow_mismatch: accept an edit of a model with another fingerprint.
        overwrite: replace an existing artifact of this package.

    Raises:
        MismatchError: the edit is for another model or shape.
        InvalidValueError: strength is not finite.
        ArtifactError: the directory exists or cannot be written, or reads back differently.
    """
    require_fit(model, edit, allow_mismatch=allow_mismatch)
    if not math.isfinite(strength):
        raise InvalidValueError(f"strength must be finite, got {strength}. 1 applies the edit as it is.")
    edits = {f"{model.sites[site].name}.weight": (model.sites[site], e) for site, e in edit.sites.items()}
    with atomic_directory(directory, overwrite=overwrite) as scratch:
        base = find_base_files(model)
        if base is None:
            tensors = _save_from_memory(model, edits, strength, scratch)
        else:
            tensors = _save_from_files(base, edits, strength, scratch)
        _save_tokenizer(model, scratch)
        write_manifest(_manifest(model, edit, strength, base, tensors), scratch)


_Edits = Mapping[str, tuple[SiteModule, SiteEdit]]


def _edited(stored: Tensor, site: SiteModule, edit: SiteEdit, strength: float) -> Tensor:
    """A stored weight with the edit, in the layout and dtype it is stored in."""
    if site.transposed:
        return merged_weight(stored.T, edit, strength).T.contiguous()
    return merged_weight(stored, edit, strength)


def _save_from_files(base: BaseFiles, edits: _Edits, strength: float, scratch: Path) -> dict[str, str]:
    """Copy the base's files with the edits; returns the file of each edited tensor."""
    kept, _ = base.split_entries()
    for path in kept:
        if path.is_dir():
            shutil.copytree(path, scratch / path.name)
        elif path.name != MANIFEST_FILE:
            shutil.copyfile(path, scratch / path.name)
    by_shard: dict[str, dict[str, tuple[SiteModule, SiteEdit]]] = {shard: {} for shard in base.shards}
    for own_name, site_edit in edits.items():
        shard, name = base.located[own_name]
        by_shard[shard][name] = site_edit
    for shard, in_shard in by_shard.items():
        if in_shard:
            _rewrite(base.directory / shard, scratch / shard, in_shard, strength)
        else:
            shutil.copyfile(base.directory / shard, scratch / shard)
            _require_same_check(filecmp.cmp(base.directory / shard, scratch / shard, shallow=False), scratch / shard)
    return {name: shard for shard, in_shard in by_shard.items() for name in in_shard}


def _rewrite(source: Path, target: Path, edits: _Edits, strength: float) -> None:
    tensors, header = read_tensors(source, "weights")
    for name, (site, edit) in edits.items():
        tensors[name] = _edited(tensors[name], site, edit, strength)
    save_file(tensors, target, header or None)
    _require_tensors(target, tensors)


def _save_from_memory(model: LanguageModel, edits: _Edits, strength: float, scratch: Path) -> dict[str, str]:
    """Save through transformers, with edited tensors in place of the model's own, which are only read."""
    state = model.network.state_dict()
    for name, (site, edit) in edits.items():
        state[name] = _edited(state[name], site, edit, strength)
    expected = dict(state)  # transformers empties what it is given
    model.network.save_pretrained(scratch, state_dict=state)
    files: dict[str, str] = {}
    for path in sorted(scratch.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            files |= dict.fromkeys(file.keys(), path.name)
        _require_tensors(path, expected)
    if missing := edits.keys() - files.keys():
        raise ArtifactError(
            f"transformers saved this model without {sorted(missing)[0]} under its own name, so the edit cannot be "
            "checked in the file. Save the edit as an adapter instead (steer2edit.save_edit)."
        )
    return {name: files[name] for name in edits}


def _require_tensors(path: Path, expected: Mapping[str, Tensor]) -> None:
    """Read a file back: each of its tensors must be, bit for bit, the expected one.

    transformers saves some tensors under the names of older checkpoints (GPT-NeoX: lm_head as embed_out); such a
    one must equal some expected tensor.
    """
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
            candidates = [expected[name]] if name in expected else expected.values()
            found = file.get_tensor(name)
            _require_same_check(any(same_bits(found, candidate) for candidate in candidates), path, name)


def _require_same_check(same: bool, path: Path, name: str = "it") -> None:
    if not same:
        raise ArtifactError(
            f"{path.name}: {name} reads back differently from what was written: the disk may be failing. Nothing was "
            "kept; save the checkpoint somewhere else."
        )


def _save_tokenizer(model: LanguageModel, scratch: Path) -> None:
    if model.tokenizer is not None and not (scratch / "tokenizer_config.json").exists():
        model.tokenizer.save_pretrained(scratch)


def _manifest(
    model: LanguageModel, edit: WeightEdit, strength: float, base: BaseFiles | None, tensors: dict[str, str]
) -> CheckpointManifest:
    metadata = plain_json(edit.metadata, "edit's metadata")
    metadata["model"] = {**model.describe(), **(metadata.get("model") or {})}
    return CheckpointManifest(
        created=now(),
        base=BaseModelRecord(**model.describe()),
        edit=metadata,
        strength=strength,
        source="memory" if base is None else "files",
        edited_tensors=dict(sorted(tensors.items())),
        not_copied=[] if base is None else [path.name for path in base.split_entries()[1]],
        versions=package_versions(),
    )
