"""A checkpoint's files written anew with edits in them: each is copied, and edited tensors are written over.

Edited tensors are written by chunks of rows at their offsets. Two threads take a file each. Memory is that of a few
chunks, whatever the size of the files. The arithmetic is `merged_weight`'s (`add_outer`).

Shapes: r, c = rows and columns of a stored tensor.
"""

import hashlib
import math
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.artifacts.checkpoints.base import Addition, Plan
from steer2edit.artifacts.checkpoints.files import CheckpointFiles, StoredTensor, unreadable
from steer2edit.artifacts.tensors import bytes_of
from steer2edit.errors import InvalidValueError
from steer2edit.progress import step


def write_files(files: CheckpointFiles, paths: Sequence[Path], directory: Path, plan: Plan) -> dict[str, str]:
    """Write a checkpoint's files into another directory; SHA-256 of the bytes of each edited tensor, by name.

    Several edits of one matrix are added in float32 (float64 if it is), one after the other, and rounded once. Every
    other byte is the source's; tensors of a `.bin` file are written as a safetensors file.

    Raises:
        ArtifactError: a file cannot be read, or is truncated meanwhile.
        InvalidValueError: an edited weight would not be finite in its dtype.
    """
    hashes: dict[str, str] = {}
    threads = torch.get_num_threads()
    with step("Writing the checkpoint (files)", len(paths)) as advance, ThreadPoolExecutor(2) as pool:
        torch.set_num_threads(1)  # of torch's in each of the two: sums this small are not worth more
        try:
            for found in pool.map(lambda path: _write(files, path, directory / path, plan), paths):
                hashes |= found
                advance(1)
        finally:
            torch.set_num_threads(threads)
    return hashes


def _write(files: CheckpointFiles, path: Path, target: Path, plan: Plan) -> dict[str, str]:
    source, hashes = files.directory / path, dict[str, str]()
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:  # never through a link
        if path.name in files.headers:
            file.write(files.headers[path.name])
            for tensor in (tensor for tensor in files.tensors.values() if tensor.file == source):
                file.writelines(tensor.blocks())
        else:
            try:
                shutil.copyfile(source, target)
            except (FileNotFoundError, PermissionError) as error:
                raise unreadable(source, error) from error
        for tensor in (tensor for tensor in plan if tensor.file == source):
            digest = hashlib.sha256()
            file.seek(tensor.begin)
            for _, values in edited_chunks(tensor, plan[tensor]):
                file.write(bytes_of(values))
                digest.update(bytes_of(values))
            hashes[tensor.name] = digest.hexdigest()
    return hashes


def edited_chunks(tensor: StoredTensor, additions: Sequence[Addition]) -> Iterator[tuple[int, Float[Tensor, "r c"]]]:
    """(first row, rows with the edits) of a stored tensor, by chunks, in its dtype. Raises as `write_files`."""
    for start, stop in tensor.chunks():
        values = tensor.read_rows(start, stop)
        rows = values.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
        for addition in additions:
            addition.add_to(rows, start)
        edited = rows.to(tensor.dtype)
        # as `isfinite().all()`, which takes longer than everything else here together
        if not all(map(math.isfinite, edited.aminmax())) and all(map(math.isfinite, values.aminmax())):
            raise InvalidValueError(
                f"{tensor.name}: the edited weight is too large for {tensor.dtype_name}. Use a smaller --strength."
            )
        yield start, edited
