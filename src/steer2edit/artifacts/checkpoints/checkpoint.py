"""The edited checkpoint: the base's files with `W + strength · u aᵀ` in place of W, and nothing else changed.

Edited tensors are written by chunks of rows at their offsets, the rest as it is. Every byte is written once, in pieces
that do not depend on each other: two threads take turns, so that one computes while the kernel copies for the other.
Memory is that of a few chunks, whatever the size of the file. The arithmetic is `merged_weight`'s (`add_outer`).

Shapes: r, c = rows and columns of a stored tensor.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.artifacts.atomic import atomic_directory, require_free, require_read_back
from steer2edit.artifacts.checkpoints.base import Addition, BaseCheckpoint, Plan, open_base
from steer2edit.artifacts.checkpoints.files import (
    CheckpointFiles,
    StoredTensor,
    find_side_files,
    open_checkpoint,
    unreadable,
)
from steer2edit.artifacts.edits.low_rank import ScaledEdits
from steer2edit.artifacts.manifest import (
    AppliedEditRecord,
    CheckpointManifest,
    EditedTensorRecord,
    plain_json,
    write_manifest,
)
from steer2edit.artifacts.tensors import bytes_of, same_bits
from steer2edit.core import WeightEdit, finite_strength
from steer2edit.errors import ArtifactError, InvalidValueError, ModelError
from steer2edit.models import LanguageModel, stored_parameters
from steer2edit.models.model_path import INDEX_FILE, SINGLE_FILE, has_weights
from steer2edit.progress import step

_MB = 2**20
_AT_ONCE = 64 * _MB

Written = Iterator[tuple[int, dict[str, str]]]
"""Of each piece: bytes written, and SHA-256 of the bytes of each edited tensor in it."""
_Piece = Callable[[int], tuple[int, dict[str, str]]]


def apply_to_files(
    base: str | BaseCheckpoint,
    edits: ScaledEdits,
    directory: Path | str,
    *,
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
        layout: a layout file for an architecture that is not known.
        trust_remote_code: run the Python code that the checkpoint brings, to know its structure.
        allow_mismatch: accept edits of a model with another fingerprint; never one that the base's manifest says is in
            it already (`audit.require_not_applied` tells it from the weights).
        overwrite: replace an existing artifact of this package.

    Returns:
        The manifest that was written.

    Raises:
        MismatchError: an edit is for another model or shape, or is in the base already.
        InvalidValueError: a strength is not finite, or all are 0; or an edited weight would not be finite.
        ModelError: there is no such model, or its files lack a projection.
        ArtifactError: the base is quantised or damaged; or the directory exists or cannot be written, or reads back
            differently.
    """
    _require_strengths(edits)
    require_free(directory, overwrite=overwrite)
    if isinstance(base, str):
        base = open_base(base, layout=layout, trust_remote_code=trust_remote_code)
    base.require_fit(edits, allow_mismatch=allow_mismatch)
    with atomic_directory(directory, overwrite=overwrite) as scratch:
        return _write(base, edits, base.describe(), scratch)


def save_checkpoint(
    model: LanguageModel,
    edit: WeightEdit,
    directory: Path | str,
    *,
    strength: float = 1.0,
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
        allow_mismatch: accept an edit of a model with another fingerprint.
        overwrite: replace an existing artifact of this package.

    Raises:
        As `apply_to_files`.
    """
    edits = [(edit, strength)]
    model.require_fit(edit, allow_mismatch=allow_mismatch)
    _require_strengths(edits)
    require_free(directory, overwrite=overwrite)
    base = _base_of_loaded(model)
    with atomic_directory(directory, overwrite=overwrite) as scratch:
        if base is None:
            saved = scratch / "saved"
            model.network.save_pretrained(saved)
            in_memory = BaseCheckpoint.of(model, open_checkpoint(saved))
            _write(in_memory, edits, model.describe(), scratch, source="memory")
            shutil.rmtree(saved)
        else:
            _write(base, edits, model.describe(), scratch)
        if model.tokenizer is not None and not (scratch / "tokenizer_config.json").exists():
            model.tokenizer.save_pretrained(scratch)


def _base_of_loaded(model: LanguageModel) -> BaseCheckpoint | None:
    """The checkpoint of a loaded model, or `None` where the model in memory does not come from such files.

    A local directory or the Hub cache is accepted only if every projection, and every other tensor that is loaded as it
    is, is in the model's dtype bit for bit the model's.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    names = (model.network.name_or_path, model.name)
    directory = next((Path(name) for name in names if name and Path(name).is_dir()), None)
    try:
        if directory is None:
            config = try_to_load_from_cache(str(model.network.name_or_path), "config.json", revision=model.revision)
            directory = Path(config).parent if isinstance(config, str) else None
        if directory is None or not has_weights(directory):
            return None
        base = BaseCheckpoint.of(model, open_checkpoint(directory))
    except (HFValidationError, ArtifactError, ModelError):  # no Hub id; or damaged by now, unlike the model in memory
        return None
    same = not base.quantised and all(same_bits(stored.to(own.dtype), own) for stored, own in _pairs(base))
    return base if same else None


def _pairs(base: BaseCheckpoint) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of tensors as they are in the files and in the model."""
    state = base.model.network.state_dict()
    for own, name in stored_parameters(base.model, base.files.tensors).items():
        tensor = base.files.tensors[name]
        if not state[own].is_meta and tensor.shape == tuple(state[own].shape):
            rows = state[own].reshape(tensor.rows, tensor.columns)
            yield from ((tensor.read_rows(start, stop), rows[start:stop]) for start, stop in tensor.chunks())
    for projection in base.projections:
        stored = base.find(projection)
        weight = projection.weight.T if stored.transposed else projection.weight
        yield from ((part, weight[own]) for own, part in stored.chunks())


def _require_strengths(edits: ScaledEdits) -> None:
    if not edits:
        raise InvalidValueError("there is no edit to apply: give at least one, with its strength.")
    strengths = [finite_strength(strength) for _, strength in edits]
    if not any(strengths):
        raise InvalidValueError(
            "the strength must not be 0: what would be written is a copy of the base. 1 applies an edit as it is."
        )


def _write(
    base: BaseCheckpoint,
    edits: ScaledEdits,
    described: Mapping[str, Any],
    scratch: Path,
    source: Literal["files", "memory"] = "files",
) -> CheckpointManifest:
    plan, side = base.plan(edits), find_side_files(base.files)
    hashes = _write_files(base, plan, side.own, scratch)
    if base.files.headers and SINGLE_FILE not in base.files.shards:
        total = sum(tensor.size for tensor in base.files.tensors.values())
        names = {name: tensor.file.name for name, tensor in base.files.tensors.items()}
        index = json.dumps({"metadata": {"total_size": total}, "weight_map": names}, ensure_ascii=False, indent=2)
        (scratch / INDEX_FILE).write_text(f"{index}\n", encoding="utf-8")
    places = [
        {name: (t.file.name, t.dtype_name, t.shape, t.begin) for name, t in files.tensors.items()}
        for files in (open_checkpoint(scratch), base.files)
    ]
    require_read_back(places[0] == places[1], f"the copy of {base.directory}")
    edited = {
        tensor.name: EditedTensorRecord(
            file=tensor.file.name,
            sha256=hashes[tensor.name],
            site=str(additions[0].site),
            projections=list(dict.fromkeys(addition.projection.key for addition in additions)),
        )
        for tensor, additions in sorted(plan.items(), key=lambda item: item[0].name)
    }
    manifest = CheckpointManifest.made_now(
        base=described,
        edits=[
            AppliedEditRecord(edit=_with_model(edit, described), strength=strength, sha256=edit.digest())
            for edit, strength in edits
        ],
        source=source,
        edited_tensors=edited,
        not_copied=[path.as_posix().encode("utf-8", "backslashreplace").decode() for path in side.left_out],
        earlier_edits=base.earlier_edits,
    )
    write_manifest(manifest, scratch)
    return manifest


def _with_model(edit: WeightEdit, described: Mapping[str, Any]) -> dict[str, Any]:
    """The edit's metadata; one that does not say which model it is for gets the one it was applied to."""
    metadata: dict[str, Any] = plain_json(edit.metadata, "edit's metadata")
    made_on = {**described, **(metadata.get("model") or {})}
    if made_on["fingerprint"] is not None:
        metadata["model"] = made_on
    return metadata


def _write_files(base: BaseCheckpoint, plan: Plan, side: Sequence[Path], scratch: Path) -> dict[str, str]:
    """Copy the base's files, with the edits in its tensors; SHA-256 of the bytes of each edited tensor."""
    total = sum((base.directory / path).stat().st_size for path in side)
    total, done = total + sum(tensor.size for tensor in base.files.tensors.values()), 0
    hashes: dict[str, str] = {}
    with step("Writing the checkpoint (MB)", -(-total // _MB)) as advance:
        for path in (*side, *map(Path, base.files.shards)):
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            if path.name in base.files.headers:
                written = _written_anew(base.files, path.name, scratch / path, plan)
            else:
                own = {tensor: additions for tensor, additions in plan.items() if tensor.file == base.directory / path}
                written = patched_copy(base.directory / path, scratch / path, own)
            for size, own_hashes in written:
                done, before = done + size, done
                advance(done // _MB - before // _MB)
                hashes |= own_hashes
    return hashes


def patched_copy(source: Path, target: Path, plan: Plan) -> Written:
    """Copy a file with edits in some of its tensors; every other byte is the source's. The target must not exist.

    Several edits of one matrix are added in float32 (float64 if it is), one after the other, and rounded once.

    Raises:
        ArtifactError: the source cannot be read, or is truncated meanwhile.
        InvalidValueError: an edited weight would not be finite in its dtype.
    """
    try:
        before = FileIO(source)
    except OSError as error:
        raise unreadable(source, error) from error
    with before:
        pieces: list[_Piece] = []
        done = 0
        for tensor in sorted(plan, key=lambda tensor: tensor.begin):
            pieces += [*_copies(before, done, tensor.begin), partial(_patch, tensor, plan[tensor])]
            done = tensor.end
        yield from _pieces_written(target, [*pieces, *_copies(before, done, os.fstat(before.fileno()).st_size)])


def _written_anew(files: CheckpointFiles, shard: str, target: Path, plan: Plan) -> Written:
    """Write a file of tensors that are in no safetensors file yet; as `patched_copy` otherwise."""
    tensors = [tensor for tensor in files.tensors.values() if tensor.file.name == shard]
    pieces: list[_Piece] = [lambda file: (_write_all(file, [files.headers[shard]], 0), {})]
    pieces += [partial(_patch, t, plan.get(t)) for t in tensors]
    yield from _pieces_written(target, pieces)


def edited_chunks(tensor: StoredTensor, additions: Sequence[Addition]) -> Iterator[tuple[int, Float[Tensor, "r c"]]]:
    """(first row, rows with the edits) of a stored tensor, by chunks, in the tensor's dtype.

    Memory is used again: what was yielded holds until the next chunk is asked for. Raises as `patched_copy`.
    """
    most = next((stop - start for start, stop in tensor.chunks()), 0)  # the first chunk is the largest
    dtypes = (tensor.dtype, tensor.dtype, torch.promote_types(tensor.dtype, torch.float32), torch.float32)
    stored, result, wide, product = (torch.empty((most, tensor.columns), dtype=dtype) for dtype in dtypes)
    for start, stop in tensor.chunks():
        values = tensor.read_rows(start, stop, into=stored)
        rows = wide[: len(values)].copy_(values)
        for addition in additions:
            addition.add_to(rows, start, product)
        edited = result[: len(values)].copy_(rows)
        # as `isfinite().all()`, which takes longer than everything else here together
        if not all(map(math.isfinite, edited.aminmax())) and all(map(math.isfinite, values.aminmax())):
            raise InvalidValueError(
                f"{tensor.name}: the edited weight is too large for {tensor.dtype_name}. Use a smaller --strength."
            )
        yield start, edited


def _pieces_written(target: Path, pieces: list[_Piece]) -> Written:
    """Let two threads write a new file; one thread of torch's in each, since sums this small are not worth more."""
    threads = torch.get_num_threads()
    with target.open("xb", buffering=0) as file, ThreadPoolExecutor(2) as pool:
        torch.set_num_threads(1)
        try:
            yield from pool.map(lambda piece: piece(file.fileno()), pieces)
        finally:
            torch.set_num_threads(threads)


def _copies(before: FileIO, begin: int, end: int) -> list[_Piece]:
    starts = range(begin, end, _AT_ONCE)
    return [partial(_copy, before, start, min(start + _AT_ONCE, end)) for start in starts]


def _copy(before: FileIO, begin: int, end: int, file: int) -> tuple[int, dict[str, str]]:
    """Copy bytes to the same place: in the kernel as far as it does, else through memory."""
    at, in_kernel = begin, hasattr(os, "copy_file_range")
    while at < end:
        try:
            count = os.copy_file_range(before.fileno(), file, end - at, at, at) if in_kernel else 0
        except OSError:  # not between these file systems; whatever else is wrong, writing meets it too
            count = 0
        if not count:  # some file systems copy nothing, and say no more than that
            in_kernel = False
            block = os.pread(before.fileno(), min(_MB, end - at), at)
            if not block:
                raise ArtifactError(f"{before.name} ends before byte {end}: it was truncated meanwhile.")
            count = _write_all(file, [block], at)
        at += count
    return end - begin, {}


def _patch(tensor: StoredTensor, additions: Sequence[Addition] | None, file: int) -> tuple[int, dict[str, str]]:
    if additions is None:
        return _write_all(file, tensor.blocks(), tensor.begin), {}
    digest = hashlib.sha256()
    for start, values in edited_chunks(tensor, additions):
        _write_all(file, [bytes_of(values)], tensor.begin + tensor.row_offset(start))
        digest.update(bytes_of(values))
    return tensor.size, {tensor.name: digest.hexdigest()}


def _write_all(file: int, blocks: Iterable[bytes | memoryview], at: int) -> int:
    """Write every byte, one block after the other, from a place on; the system may take fewer at once."""
    begin = at
    for block in blocks:
        rest = memoryview(block)
        while rest:
            count = os.pwrite(file, rest, at)
            at, rest = at + count, rest[count:]
    return at - begin
