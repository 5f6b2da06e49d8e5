"""The edited checkpoint: the base's files with `W + strength · u aᵀ` in place of W, and nothing else changed."""

import filecmp
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from steer2edit.artifacts.atomic import MANIFEST_FILE, atomic_directory, require_free, require_read_back
from steer2edit.artifacts.checkpoints.base import BaseCheckpoint, open_base
from steer2edit.artifacts.checkpoints.files import CheckpointFiles, open_checkpoint, require_inside
from steer2edit.artifacts.checkpoints.patching import edited_chunks, write_files
from steer2edit.artifacts.edits.low_rank import ScaledEdits
from steer2edit.artifacts.facts import BaseCheckpointRecord
from steer2edit.artifacts.manifest import (
    AppliedEditRecord,
    CheckpointManifest,
    EditedTensorRecord,
    plain_json,
    write_manifest,
)
from steer2edit.artifacts.tensors import same_bits
from steer2edit.core import finite_strength
from steer2edit.errors import ArtifactError, InvalidValueError
from steer2edit.models.model_path import INDEX_FILE, SINGLE_FILE
from steer2edit.progress import step

_WEIGHTS = {
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".keras", ".msgpack", ".npz", ".npy"),
    *(".gguf", ".ggml", ".onnx", ".onnx_data", ".ot", ".tflite", ".mlmodel", ".nemo", ".pdparams", ".engine", ".data"),
}
_OF_OTHER_WEIGHTS = {"adapter_config.json", "params.json", "openvino_model.xml"}
"""Files that engines read first, and that lead nowhere without weights in other formats."""


class SideFiles(NamedTuple):
    """Files of a checkpoint besides its shards (config, tokenizer, code, ...), as paths within its directory."""

    own: list[Path]  # what belongs to the checkpoint
    # weights that are not the checkpoint's, which would still be unedited, with their indices and settings; hidden
    # entries; folders that are links; pipes, sockets and devices
    left_out: list[Path]


def find_side_files(files: CheckpointFiles) -> SideFiles:
    """Sort a directory's entries; an ArtifactError where a file of its own is a link out of it, or to nowhere."""
    found, index = SideFiles([], []), [] if SINGLE_FILE in files.shards else [INDEX_FILE]
    for path in _entries(files.directory, Path()):
        whole = files.directory / path
        if str(path) in (MANIFEST_FILE, *files.shards):
            continue
        other = path.suffix.lower() in _WEIGHTS or path.name in _OF_OTHER_WEIGHTS or path.name.startswith(".")
        other = other or (path.name.endswith(".index.json") and str(path) not in index)
        if other or (whole.exists() and not whole.is_file()):
            found.left_out.append(path)
        else:
            require_inside(whole, files.directory)
            found.own.append(path)
    return found


def _entries(directory: Path, within: Path) -> Iterator[Path]:
    """Files of a folder and of those in it; a hidden folder, or one that is a link, as an entry of its own."""
    for entry in sorted(os.scandir(directory / within), key=lambda entry: entry.name):
        path = within / entry.name
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            yield from _entries(directory, path)
        else:
            yield path


def apply_to_files(
    base: str | BaseCheckpoint,
    edits: ScaledEdits,
    directory: Path | str,
    *,
    allow_mismatch: bool = False,
    overwrite: bool = False,
) -> CheckpointManifest:
    """Write the edited checkpoint from the base's files, complete or not at all, without loading the model.

    Names, shards, headers and dtypes are the base's, and every byte of them but those of edited tensors, which are
    `W + Σ strength · u aᵀ`, added in float32 (float64 if W is) and rounded once. Memory is that of a few million
    numbers. Weights in `pytorch_model.bin` are written as safetensors, with the same names, dtypes and bits. Raises
    as `BaseCheckpoint.require_fit`, `BaseCheckpoint.find` and `write_files`.
    """
    if not edits:
        raise InvalidValueError("there is no edit to apply: give at least one, with its strength.")
    strengths = [finite_strength(strength) for _, strength in edits]
    if not any(strengths):
        raise InvalidValueError("the strength must not be 0: that writes a copy of the base. 1 applies it as it is.")
    require_free(directory, overwrite=overwrite)
    if isinstance(base, str):
        base = open_base(base)
    base.require_fit(edits, allow_mismatch=allow_mismatch)
    with atomic_directory(directory, overwrite=overwrite) as scratch:
        return _write(base, edits, scratch)


def _write(base: BaseCheckpoint, edits: ScaledEdits, scratch: Path) -> CheckpointManifest:
    described, plan, side = base.describe(), base.plan(edits), find_side_files(base.files)
    hashes = write_files(base.files, [*side.own, *map(Path, base.files.shards)], scratch, plan)
    if base.files.headers and SINGLE_FILE not in base.files.shards:
        total = sum(tensor.end - tensor.begin for tensor in base.files.tensors.values())
        names = {name: tensor.file.name for name, tensor in base.files.tensors.items()}
        index = json.dumps({"metadata": {"total_size": total}, "weight_map": names}, ensure_ascii=False, indent=2)
        (scratch / INDEX_FILE).write_text(f"{index}\n", encoding="utf-8")
    copy, own = (
        {name: (t.file.name, t.dtype_name, t.shape, t.begin) for name, t in files.tensors.items()}
        for files in (open_checkpoint(scratch), base.files)
    )
    require_read_back(copy == own, f"the copy of {base.directory}")
    edited = {
        tensor.name: EditedTensorRecord(
            file=tensor.file.name,
            sha256=hashes[tensor.name],
            site=str(additions[0].site),
            projections=list(dict.fromkeys(addition.projection.key for addition in additions)),
        )
        for tensor, additions in sorted(plan.items(), key=lambda item: item[0].name)
    }
    applied = []
    for edit, strength in edits:
        metadata = plain_json(edit.metadata, "edit's metadata")
        made_on = {**described, **(metadata.get("model") or {})}  # one that does not say its model gets this one
        if made_on["fingerprint"] is not None:
            metadata["model"] = made_on
        applied.append(AppliedEditRecord(edit=metadata, strength=strength, sha256=edit.digest()))
    manifest = CheckpointManifest(
        base=BaseCheckpointRecord.model_validate(described),
        edits=applied,
        source="files",
        edited_tensors=edited,
        not_copied=[path.as_posix().encode("utf-8", "backslashreplace").decode() for path in side.left_out],
        earlier_edits=base.earlier_edits,
    )
    write_manifest(manifest, scratch)
    return manifest


def verify_checkpoint(base: BaseCheckpoint, edits: ScaledEdits, written: Path | str) -> int:
    """Compare every byte of a written checkpoint with what it must be; how many tensors that are.

    Every tensor that is not edited must have the base's bytes, every edited one those that the edits give, and every
    other file must be the base's: else an ArtifactError.
    """
    written, plan = Path(written), base.plan(edits)
    found = open_checkpoint(written)
    if found.tensors.keys() != base.files.tensors.keys():
        raise ArtifactError(f"{written} does not have the tensors of {base.directory}: it is not that base, edited.")
    with step("Comparing tensors", len(found.tensors)) as advance:
        for name, tensor in base.files.tensors.items():
            own = found.tensors[name]
            same = (own.dtype_name, own.shape) == (tensor.dtype_name, tensor.shape)
            if same and tensor in plan:
                chunks = edited_chunks(tensor, plan[tensor])
                same = all(same_bits(values, own.read_rows(at, at + len(values))) for at, values in chunks)
            elif same:
                same = own.equals(tensor)
            if not same:
                what = "the edit" if tensor in plan else "the base's bytes"
                raise ArtifactError(f"{written}: {name} does not hold {what}. The checkpoint was changed or damaged.")
            advance(1)
    for path in find_side_files(base.files).own:
        if not (written / path).is_file() or not filecmp.cmp(base.directory / path, written / path, shallow=False):
            raise ArtifactError(f"{written}: {path} is not the base's. It was changed since it was written.")
    return len(found.tensors)
