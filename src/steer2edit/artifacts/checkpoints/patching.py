"""A checkpoint's files written anew with edits in them: every byte once, in pieces that do not depend on each other.

Edited tensors are written by chunks of rows at their offsets, the rest as it is. Two threads take turns, so that one
computes while the kernel copies for the other. Memory is that of a few chunks, whatever the size of the files. The
arithmetic is `merged_weight`'s (`add_outer`).

Shapes: r, c = rows and columns of a stored tensor.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.artifacts.checkpoints.base import Addition, Plan
from steer2edit.artifacts.checkpoints.files import CheckpointFiles, StoredTensor, unreadable
from steer2edit.artifacts.tensors import bytes_of
from steer2edit.errors import ArtifactError, InvalidValueError
from steer2edit.progress import step

_MB = 2**20
_AT_ONCE = 64 * _MB
Written = tuple[int, dict[str, str]]
"""Of a piece: bytes, and the SHA-256 of the edited tensor in it, if there is one, by its name."""


def write_files(files: CheckpointFiles, paths: Sequence[Path], directory: Path, plan: Plan) -> dict[str, str]:
    """Write a checkpoint's files into another directory; SHA-256 of the bytes of each edited tensor, by name.

    Several edits of one matrix are added in float32 (float64 if it is), one after the other, and rounded once. Every
    other byte is the source's; tensors of a `.bin` file are written as a safetensors file.

    Raises:
        ArtifactError: a file cannot be read, or is truncated meanwhile.
        InvalidValueError: an edited weight would not be finite in its dtype.
    """
    copied = [files.directory / path for path in paths if path.name not in files.headers]
    sizes = [path.stat().st_size for path in copied if path.exists()]
    sizes += [tensor.end - tensor.begin for tensor in files.tensors.values() if tensor.file.name in files.headers]
    hashes: dict[str, str] = {}
    with step("Writing the checkpoint (MB)", -(-sum(sizes) // _MB)) as advance:
        for path in paths:
            for size, own in _written(files, path, directory / path, plan):
                hashes |= own
                advance(size / _MB)
    return hashes


def _written(files: CheckpointFiles, path: Path, target: Path, plan: Plan) -> Iterator[Written]:
    """Have two threads write a new file; one thread of torch's in each, since sums this small are not worth more."""
    source, threads = files.directory / path, torch.get_num_threads()
    target.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:  # the threads end before their files are closed
        file = stack.enter_context(target.open("xb", buffering=0)).fileno()  # never through a link
        if path.name in files.headers:
            header, tensors = files.headers[path.name], [t for t in files.tensors.values() if t.file == source]
            pieces: list[Callable[[], Written]] = [lambda: (_write_all(file, [header], 0), {})]
            pieces += [partial(_patch, tensor, plan.get(tensor), file) for tensor in tensors]
        else:
            try:
                before = stack.enter_context(source.open("rb", buffering=0))
            except OSError as error:
                raise unreadable(source, error) from error
            done, pieces = 0, []
            for tensor in sorted((tensor for tensor in plan if tensor.file == source), key=lambda tensor: tensor.begin):
                pieces += [*_copies(before.fileno(), done, tensor.begin, file, source)]
                pieces.append(partial(_patch, tensor, plan[tensor], file))
                done = tensor.end
            pieces += _copies(before.fileno(), done, os.fstat(before.fileno()).st_size, file, source)
        stack.callback(torch.set_num_threads, threads)
        pool = stack.enter_context(ThreadPoolExecutor(2))
        torch.set_num_threads(1)
        yield from pool.map(lambda piece: piece(), pieces)


def _copies(before: int, begin: int, end: int, file: int, source: Path) -> list[Callable[[], Written]]:
    starts = range(begin, end, _AT_ONCE)
    return [partial(_copy, before, start, min(start + _AT_ONCE, end), file, source) for start in starts]


def _copy(before: int, begin: int, end: int, file: int, source: Path) -> Written:
    """Copy bytes to the same place: in the kernel as far as it does, else through memory."""
    at, in_kernel = begin, hasattr(os, "copy_file_range")
    while at < end:
        try:
            count = os.copy_file_range(before, file, end - at, at, at) if in_kernel else 0
        except OSError:  # not between these file systems; whatever else is wrong, writing meets it too
            count = 0
        if not count:  # some file systems copy nothing, and say no more than that
            in_kernel = False
            block = os.pread(before, min(_MB, end - at), at)
            if not block:
                raise ArtifactError(f"{source} ends before byte {end}: it was truncated meanwhile. Get it again.")
            count = _write_all(file, [block], at)
        at += count
    return end - begin, {}


def _patch(tensor: StoredTensor, additions: Sequence[Addition] | None, file: int) -> Written:
    size = tensor.end - tensor.begin
    if additions is None:
        return _write_all(file, tensor.blocks(), tensor.begin), {}
    digest, at = hashlib.sha256(), tensor.begin
    for _, values in edited_chunks(tensor, additions):
        at += _write_all(file, [bytes_of(values)], at)
        digest.update(bytes_of(values))
    return size, {tensor.name: digest.hexdigest()}


def _write_all(file: int, blocks: Iterable[bytes | memoryview], at: int) -> int:
    """Write every byte, one block after the other, from a place on; the system may take fewer at once."""
    begin = at
    for block in blocks:
        rest = memoryview(block)
        while rest:
            count = os.pwrite(file, rest, at)
            at, rest = at + count, rest[count:]
    return at - begin


def edited_chunks(tensor: StoredTensor, additions: Sequence[Addition]) -> Iterator[tuple[int, Float[Tensor, "r c"]]]:
    """(first row, rows with the edits) of a stored tensor, by chunks, in its dtype. Raises as `write_files`.

    Memory is used again: what was yielded holds until the next chunk is asked for.
    """
    most = next((stop - start for start, stop in tensor.chunks()), 0)  # the first chunk is the largest
    dtypes = (tensor.dtype, torch.promote_types(tensor.dtype, torch.float32), torch.float32)
    stored, wide, product = (torch.empty((most, tensor.columns), dtype=dtype) for dtype in dtypes)
    for start, stop in tensor.chunks():
        values = tensor.read_rows(start, stop, into=stored)
        rows = wide[: len(values)].copy_(values)
        for addition in additions:
            addition.add_to(rows, start, product)
        edited = values.copy_(rows)
        if not _is_finite(edited) and _is_finite(tensor.read_rows(start, stop)):
            raise InvalidValueError(
                f"{tensor.name}: the edited weight is too large for {tensor.dtype_name}. Use a smaller --strength."
            )
        yield start, edited


def _is_finite(values: Float[Tensor, "r c"]) -> bool:
    """`isfinite().all()`, which takes longer than everything else here together."""
    return all(map(math.isfinite, values.aminmax()))
