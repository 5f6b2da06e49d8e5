"""The edit written into a copy of a file: edited tensors by chunks of rows at their offsets, the rest as it is.

Memory is that of one chunk, whatever the size of the file. The arithmetic is `merged_weight`'s (`add_outer`).

Shapes: d, m = width of a projection's output and input; r, c = rows and columns of a stored matrix, [d, m] or [m, d].
"""

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.artifacts.checkpoints.copying import Link, copy_range, fresh_file, opened, share_blocks, write_all
from steer2edit.artifacts.checkpoints.stored_tensor import StoredTensor
from steer2edit.editing.weights import add_outer
from steer2edit.errors import ArtifactError, InvalidValueError
from steer2edit.progress import Advance


@dataclass(frozen=True)
class MatrixEdit:
    """What is added to one stored matrix: `strength · u aᵀ`.

    Args:
        first_row: of the matrix in its tensor: e · r for the e-th of fused experts.
        output_direction: u [d].
        row: a [m], this matrix's part of the site's.
        strength: factor.
        transposed: whether the matrix is stored as [m, d].
    """

    first_row: int
    output_direction: Float[Tensor, " d"]
    row: Float[Tensor, " m"]
    strength: float
    transposed: bool

    @property
    def rows(self) -> int:
        """r."""
        return (self.row if self.transposed else self.output_direction).numel()

    def add_to(self, wide: Float[Tensor, "r c"], start: int, product: Tensor) -> None:
        """Add the edit to rows of the matrix, from `start` on, in place.

        Args:
            wide: the rows, float32 or float64.
            start: which is the first.
            product: float32 memory of the same shape.
        """
        own = slice(start, start + len(wide))
        u, a = self.output_direction, self.strength * self.row
        if self.transposed:
            add_outer(wide, a[own], u, product)  # (u aᵀ)ᵀ: the products are the same numbers
        else:
            add_outer(wide, u[own], a, product)


def patched_copy(
    source: Path, target: Path, edits: Mapping[StoredTensor, Sequence[MatrixEdit]], link: Link, advance: Advance
) -> dict[str, str]:
    """Copy a file with edits in some of its tensors; every other byte is the source's.

    Several edits of one matrix are added in float32 (float64 if it is), one after the other, and rounded once.

    Args:
        source: the file. It is only read.
        target: must not exist; it is always a file of its own, also where `link` is `hardlink`.
        edits: by tensor of the file.
        link: `reflink` insists on sharing the blocks that are not edited; else they are shared where that is possible.
        advance: told the number of bytes done.

    Returns:
        SHA-256 of every edited tensor's bytes, by name.

    Raises:
        ArtifactError: a file cannot be read, or reads back differently from what was written.
        InvalidValueError: an edited weight would not be finite in its dtype.
    """
    hashes: dict[str, str] = {}
    with opened(source) as before, fresh_file(target) as after, _one_thread(), ThreadPoolExecutor(1) as behind:
        shared = share_blocks(before, after, link)
        done = 0
        for tensor in sorted(edits, key=lambda tensor: tensor.begin):
            if not shared:
                copy_range(before, after, done, tensor.begin, advance)
            hashes[tensor.name] = _patch(after, tensor, edits[tensor], behind, advance)
            done = tensor.end
        if not shared:
            copy_range(before, after, done, source.stat().st_size, advance)
    return hashes


def written_anew(
    target: Path,
    header: bytes,
    tensors: Iterable[StoredTensor],
    edits: Mapping[StoredTensor, Sequence[MatrixEdit]],
    advance: Advance,
) -> dict[str, str]:
    """Write a file of tensors that are in no safetensors file yet; as `patched_copy` otherwise."""
    hashes: dict[str, str] = {}
    with fresh_file(target) as file, _one_thread(), ThreadPoolExecutor(1) as behind:
        write_all(file, memoryview(header))
        for tensor in sorted(tensors, key=lambda tensor: tensor.begin):
            if tensor in edits:
                hashes[tensor.name] = _patch(file, tensor, edits[tensor], behind, advance)
                continue
            file.seek(tensor.begin)
            for block in tensor.blocks():
                write_all(file, memoryview(block))
                advance(len(block))
    return hashes


def edited_chunks(tensor: StoredTensor, edits: Sequence[MatrixEdit]) -> Iterator[tuple[int, Float[Tensor, "r c"]]]:
    """(first row, rows with the edits) of a stored tensor, by chunks, in the tensor's dtype.

    Memory is used again: what was yielded holds until the chunk after the next is asked for.

    Raises:
        InvalidValueError: an edited weight would not be finite in its dtype.
    """
    stored = tensor.memory()
    wide, product = tensor.memory(torch.promote_types(tensor.dtype, torch.float32)), tensor.memory(torch.float32)
    results = itertools.cycle((tensor.memory(), tensor.memory()))
    for start, stop in tensor.chunks():
        values = tensor.read_rows(start, stop, into=stored)
        rows = wide[: len(values)].copy_(values)
        for edit in edits:
            first, last = max(start, edit.first_row), min(stop, edit.first_row + edit.rows)
            if first < last:
                part = rows[first - start : last - start]
                edit.add_to(part, first - edit.first_row, product[: len(part)])
        edited = next(results)[: len(values)].copy_(rows)
        if not _is_finite(edited) and _is_finite(values):
            raise InvalidValueError(
                f"{tensor.name}: the edited weight is too large for {tensor.dtype_name}. Use a smaller --strength."
            )
        yield start, edited


def _is_finite(values: Tensor) -> bool:
    """As `isfinite().all()`, which takes longer than everything else here together."""
    low, high = values.aminmax()
    return math.isfinite(low) and math.isfinite(high)


def _patch(
    target: FileIO, tensor: StoredTensor, edits: Sequence[MatrixEdit], behind: ThreadPoolExecutor, advance: Advance
) -> str:
    """Write a tensor with its edits: each chunk while the next is computed; returns the SHA-256 of its bytes."""
    digest = hashlib.sha256()
    writing: Future[None] | None = None
    for start, values in edited_chunks(tensor, edits):
        if writing is not None:
            writing.result()
        writing = behind.submit(_write, target, tensor, start, values, digest)
        advance(values.nbytes)
    if writing is not None:
        writing.result()
    return digest.hexdigest()


def _write(target: FileIO, tensor: StoredTensor, start: int, values: Tensor, digest: "hashlib._Hash") -> None:
    written = memoryview(values.view(torch.uint8).numpy().data).cast("B")
    target.seek(tensor.row_offset(start))
    write_all(target, written)
    digest.update(written)
    target.seek(tensor.row_offset(start))
    found = bytearray(len(written))
    count = target.readinto(found)
    if count != len(written) or found != written:
        raise ArtifactError(
            f"{tensor.file.name}: {tensor.name} reads back differently from what was written: the disk may be failing. "
            "Nothing was kept; save the checkpoint somewhere else."
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """A second thread makes sums of chunks this small slower, not faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
