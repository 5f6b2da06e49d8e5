"""The edited checkpoint: the base's files with `W + strength · u aᵀ` in place of W, and nothing else changed."""

import json
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from steer2edit.artifacts.atomic import atomic_directory, flush, require_free
from steer2edit.artifacts.checkpoints.applied import earlier_edits, require_base, require_not_applied
from steer2edit.artifacts.checkpoints.base_checkpoint import BaseCheckpoint, base_checkpoint, open_base
from steer2edit.artifacts.checkpoints.checkpoint_manifest import (
    BaseCheckpointRecord,
    CheckpointManifest,
    EditedTensorRecord,
    applied_edits,
)
from steer2edit.artifacts.checkpoints.checkpoint_plan import (
    Plan,
    ScaledEdits,
    by_shard,
    plan_edits,
    require_shapes,
    require_strengths,
)
from steer2edit.artifacts.checkpoints.copying import Link, copy_file, require_link
from steer2edit.artifacts.checkpoints.loaded_base import base_of_loaded
from steer2edit.artifacts.checkpoints.patching import patched_copy, written_anew
from steer2edit.artifacts.checkpoints.safetensors_files import CheckpointFiles, open_checkpoint
from steer2edit.artifacts.checkpoints.side_files import SideFiles, find_side_files
from steer2edit.artifacts.manifest import now, package_versions, plain_json, write_manifest
from steer2edit.core import WeightEdit
from steer2edit.editing.runtime import require_fit
from steer2edit.errors import ArtifactError
from steer2edit.models import LanguageModel
from steer2edit.models.model_path import INDEX_FILE, SINGLE_FILE
from steer2edit.progress import Advance, step

_MB = 2**20


def apply_to_files(
    base: str | BaseCheckpoint,
    edits: ScaledEdits,
    directory: Path | str,
    *,
    link: Link = "copy",
    layout: Path | None = None,
    trust_remote_code: bool = False,
    allow_mismatch: bool = False,
    overwrite: bool = False,
) -> CheckpointManifest:
    """Write the edited checkpoint from the base's files, complete or not at all, without loading the model.

    Names, shards, headers and dtypes are the base's, and every byte of them but those of edited tensors, which are
    `W + Σ strength · u aᵀ`, added in float32 (float64 if W is) and rounded once. Memory is that of a few million
    numbers, whatever the size of the model. Weights in `pytorch_model.bin` are written as safetensors, one file for
    each, with the same names, dtypes and bits.

    Args:
        base: a Hub id (its local snapshot), a local directory, `smollm2`, or what `open_base` opened. It is only read.
        edits: with their strengths.
        directory: must not exist.
        link: how files without edited tensors are taken over: `copy`, `reflink` (insist on sharing their blocks), or
            `hardlink`. An edited file is always one of its own.
        layout: a layout file for an architecture that is not known.
        trust_remote_code: run the Python code that the checkpoint brings, to know its structure.
        allow_mismatch: accept edits of a model with another fingerprint; never one that is in the base already.
        overwrite: replace an existing artifact of this package.

    Returns:
        The manifest that was written.

    Raises:
        MismatchError: an edit is for another model or shape, or is in the base already.
        InvalidValueError: a strength is not finite, or an edited weight would not be.
        ModelError: there is no such model, or its files lack a projection.
        ArtifactError: the base is quantised or damaged; or the directory exists or cannot be written, or reads back
            differently.
    """
    require_link(link)
    require_strengths(edits)
    require_free(directory, overwrite=overwrite)
    if isinstance(base, str):
        base = open_base(base, layout=layout, trust_remote_code=trust_remote_code)
    require_shapes(base.model, edits)
    (require_not_applied if allow_mismatch else require_base)(base, [edit for edit, _ in edits])
    with atomic_directory(directory, overwrite=overwrite) as scratch:
        return _write_from_files(base, edits, base.describe(), scratch, link)


def save_checkpoint(
    model: LanguageModel,
    edit: WeightEdit,
    directory: Path | str,
    *,
    strength: float = 1.0,
    link: Link = "copy",
    allow_mismatch: bool = False,
    overwrite: bool = False,
) -> None:
    """Write the edited checkpoint of a model that is loaded, complete or not at all.

    Where the model comes from files on this machine and still equals them, this is `apply_to_files`. Otherwise it is
    that with the files which transformers saves of the model, in the dtype it has in memory.

    Args:
        model: the base. It is only read.
        edit: the edit.
        directory: must not exist.
        strength: factor of the edit.
        link: how files without edited tensors are taken over; see `apply_to_files`.
        allow_mismatch: accept an edit of a model with another fingerprint.
        overwrite: replace an existing artifact of this package.

    Raises:
        MismatchError: the edit is for another model or shape.
        InvalidValueError: strength is not finite, or an edited weight would not be.
        ArtifactError: the directory exists or cannot be written, or reads back differently.
    """
    edits = [(edit, strength)]
    require_link(link)
    require_fit(model, edit, allow_mismatch=allow_mismatch)
    require_strengths(edits)
    require_free(directory, overwrite=overwrite)
    base = base_of_loaded(model)
    with atomic_directory(directory, overwrite=overwrite) as scratch:
        if base is None:
            saved = scratch / "saved"
            model.network.save_pretrained(saved)
            in_memory = base_checkpoint(model, open_checkpoint(saved))
            _write_from_files(in_memory, edits, model.describe(), scratch, "copy", source="memory")
            shutil.rmtree(saved)
        else:
            _write_from_files(base, edits, model.describe(), scratch, link)
        if model.tokenizer is not None and not (scratch / "tokenizer_config.json").exists():
            model.tokenizer.save_pretrained(scratch)


def _write_from_files(
    base: BaseCheckpoint,
    edits: ScaledEdits,
    described: Mapping[str, Any],
    scratch: Path,
    link: Link,
    source: Literal["files", "memory"] = "files",
) -> CheckpointManifest:
    plan = plan_edits(base, edits)
    side = find_side_files(base.directory, base.files.shards)
    hashes: dict[str, str] = {}
    with _megabytes(base, side) as advance, ThreadPoolExecutor(1) as behind:
        flushing: list[Future[None]] = []
        for path in side.kept:
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            copy_file(base.directory / path, scratch / path, "copy", advance)
        for shard, in_shard in by_shard(base, plan).items():
            before, target = base.directory / shard, scratch / shard
            if shard in base.files.headers:
                hashes |= written_anew(target, base.files.headers[shard], base.files.of_shard(shard), in_shard, advance)
            elif in_shard:
                hashes |= patched_copy(before, target, in_shard, link, advance)
            else:
                copy_file(before, target, link, advance)
            flushing.append(behind.submit(flush, target))  # while the next file is written
        for future in flushing:
            future.result()
    if base.files.headers and SINGLE_FILE not in base.files.shards:
        _write_index(base.files, scratch)
    _require_same_structure(base, scratch)
    manifest = CheckpointManifest(
        created=now(),
        base=BaseCheckpointRecord(**described),
        edits=applied_edits(edits, [_with_model(edit, described) for edit, _ in edits]),
        source=source,
        edited_tensors=_tensor_records(plan, hashes),
        not_copied=[path.as_posix().encode("utf-8", "backslashreplace").decode() for path in side.left_out],
        versions=package_versions(),
        earlier_edits=earlier_edits(base),
    )
    write_manifest(manifest, scratch)
    return manifest


@contextmanager
def _megabytes(base: BaseCheckpoint, side: SideFiles) -> Iterator[Advance]:
    """A step of as many units as there are megabytes to write; the function yielded is told bytes."""
    total = sum((base.directory / path).stat().st_size for path in side.kept)
    total, done = total + sum(tensor.size for tensor in base.files.tensors.values()), 0
    with step("Writing the checkpoint (MB)", -(-total // _MB)) as advance:

        def count(size: int) -> None:
            nonlocal done
            done += size
            advance(done // _MB - (done - size) // _MB)

        yield count


def _write_index(files: CheckpointFiles, directory: Path) -> None:
    content = {
        "metadata": {"total_size": sum(tensor.size for tensor in files.tensors.values())},
        "weight_map": {name: tensor.file.name for name, tensor in files.tensors.items()},
    }
    (directory / INDEX_FILE).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _require_same_structure(base: BaseCheckpoint, scratch: Path) -> None:
    """What was written has the base's tensors, at the same places."""
    written = open_checkpoint(scratch)
    same = written.tensors.keys() == base.files.tensors.keys() and all(
        (found.dtype_name, found.shape, found.begin, found.file.name)
        == (tensor.dtype_name, tensor.shape, tensor.begin, tensor.file.name)
        for tensor, found in ((base.files.tensors[name], written.tensors[name]) for name in written.tensors)
    )
    if not same:
        raise ArtifactError(
            f"the copy of {base.directory} reads back differently from what was written: the disk may be failing, or "
            "the base was changed meanwhile. Nothing was kept; try again somewhere else."
        )


def _tensor_records(plan: Plan, hashes: Mapping[str, str]) -> dict[str, EditedTensorRecord]:
    return {
        tensor.name: EditedTensorRecord(
            file=tensor.file.name, sha256=hashes[tensor.name], site=planned.site, projections=planned.projections
        )
        for tensor, planned in sorted(plan.items(), key=lambda item: item[0].name)
    }


def _with_model(edit: WeightEdit, described: Mapping[str, Any]) -> dict[str, Any]:
    """The edit's metadata; one that does not say which model it is for gets the one it was applied to."""
    metadata: dict[str, Any] = plain_json(edit.metadata, "edit's metadata")
    made_on = {**described, **(metadata.get("model") or {})}
    if made_on["fingerprint"] is not None:
        metadata["model"] = made_on
    return metadata
