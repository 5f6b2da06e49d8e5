"""Files of tensors written anew with edits in them: every byte once, in pieces that do not depend on each other.

Edited tensors are written by chunks of rows at their offsets, the rest as it is. Two threads take turns, so that one
computes while the kernel copies for the other. Memory is that of a few chunks, whatever the size of the file. The
arithmetic is `merged_weight`'s (`add_outer`).

Shapes: r, c = rows and columns of a stored tensor.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import FileIO
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.artifacts.checkpoints.base import Addition, Plan
from steer2edit.artifacts.checkpoints.files import CheckpointFiles, StoredTensor, unreadable
from steer2edit.artifacts.tensors import bytes_of
from steer2edit.errors import ArtifactError, InvalidValueError

_MB = 2**20
_AT_ONCE = 64 * _MB

Written = Iterator[tuple[int, dict[str, str]]]
"""Of each piece: bytes written, and SHA-256 of the bytes of each edited tensor in it."""
_Piece = Callable[[int], tuple[int, dict[str, str]]]


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


def written_anew(files: CheckpointFiles, shard: str, target: Path, plan: Plan) -> Written:
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
