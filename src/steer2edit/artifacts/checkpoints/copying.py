"""Copies of files whose bytes are their own: in the kernel where it can, sharing blocks where the file system can."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Literal, get_args

from steer2edit.artifacts.checkpoints.stored_tensor import unreadable
from steer2edit.errors import ArtifactError, InvalidValueError, did_you_mean
from steer2edit.progress import Advance

Link = Literal["copy", "reflink", "hardlink"]
LINKS: tuple[Link, ...] = get_args(Link)
_AT_ONCE = 64 * 2**20
_BUFFER = 4 * 2**20
FICLONE = 0x40049409  # Linux: share all blocks of another file, each until one of the two is written
_NOT_IN_KERNEL = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.EBADF}


def require_link(link: str) -> Link:
    """The value itself, checked.

    Raises:
        InvalidValueError: it is none of `LINKS`.
    """
    if link not in LINKS:
        raise InvalidValueError(f"unknown way to take over files {link!r}. {did_you_mean(link, LINKS)}")
    return link


@contextmanager
def opened(source: Path) -> Iterator[FileIO]:
    """A file to read, unbuffered.

    Raises:
        ArtifactError: it cannot be opened.
    """
    try:
        stream = source.open("rb", buffering=0)
    except OSError as error:
        raise unreadable(source, error) from error
    with stream:
        yield stream


@contextmanager
def fresh_file(target: Path) -> Iterator[FileIO]:
    """A new file to write and read, unbuffered: never one that was there before, and never through a link."""
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    with FileIO(descriptor, "r+") as stream:
        yield stream


def copy_file(source: Path, target: Path, link: Link, advance: Advance) -> None:
    """Take over an unchanged file.

    Args:
        source: the file; where it is a link, what it leads to.
        target: must not exist.
        link: `copy` for bytes of its own (sharing blocks until either is written, where the file system can, as `cp`
            does), `reflink` to insist on sharing blocks, `hardlink` for another name of the same file.
        advance: told the number of bytes done.

    Raises:
        ArtifactError: the file cannot be read, or the file system cannot link as asked.
    """
    size = source.stat().st_size
    if link == "hardlink":
        _hard_link(source, target)
        return advance(size)
    with opened(source) as stream, fresh_file(target) as copy:
        if share_blocks(stream, copy, link):
            return advance(size)
        copy_range(stream, copy, 0, size, advance)
    return None


def share_blocks(source: FileIO, target: FileIO, link: Link) -> bool:
    """Make the empty target a copy of the source that shares its blocks; whether that was possible.

    Raises:
        ArtifactError: it was not, and `link` is `reflink`.
    """
    reason = "this system has no such copies"
    if sys.platform == "linux":
        import fcntl

        try:
            fcntl.ioctl(target.fileno(), FICLONE, source.fileno())
            return True
        except OSError as error:
            if error.errno not in _NOT_IN_KERNEL:
                raise
            reason = error.strerror or str(error)
    if link == "reflink":
        raise ArtifactError(
            f"the file system cannot share blocks between {source.name} and the copy ({reason}): that takes btrfs, "
            "XFS or the like, and both in one file system. Use --link copy, or --link hardlink for untouched files."
        )
    return False


def copy_range(source: FileIO, target: FileIO, begin: int, end: int, advance: Advance) -> None:
    """Copy bytes `begin` to `end` to the same place in the target.

    Raises:
        ArtifactError: the source ends before.
    """
    done = _copy_in_kernel(source, target, begin, end, advance)
    source.seek(done)
    target.seek(done)
    while done < end:
        block = source.read(min(_BUFFER, end - done))
        if not block:
            raise ArtifactError(f"{source.name} ends before byte {end}: it was truncated meanwhile.")
        write_all(target, memoryview(block))
        done += len(block)
        advance(len(block))


def write_all(target: FileIO, values: memoryview) -> None:
    """Write every byte at the present place; a raw file may take fewer at once."""
    while len(values):
        values = values[target.write(values) :]


def _copy_in_kernel(source: FileIO, target: FileIO, begin: int, end: int, advance: Advance) -> int:
    """As far as the kernel copies; returns where it stopped."""
    while begin < end and hasattr(os, "copy_file_range"):
        try:
            count = os.copy_file_range(source.fileno(), target.fileno(), min(_AT_ONCE, end - begin), begin, begin)
        except OSError as error:
            if error.errno not in _NOT_IN_KERNEL:
                raise
            break
        if not count:  # some file systems copy nothing, and say no more than that
            break
        begin += count
        advance(count)
    return begin


def _hard_link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        raise ArtifactError(
            f"cannot hard-link {source} into {target.parent} ({error.strerror or error}): both must be in one file "
            "system that has hard links. Use --link copy."
        ) from error
