"""Writing a file or a directory completely or not at all.

Everything is written beside the target under a temporary name (`.<name>-<random>.partial`), flushed to the disk, and
renamed at the end. An exception, Ctrl+C included, removes what was written; a killed process or a power cut leaves at
most the temporary name. Whether a target may be replaced is decided when it is renamed, by one process at a time: of
two that write one target, the first to end has written it, and the other is refused.
"""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from steer2edit.errors import ArtifactError

MANIFEST_FILE = "steer2edit.json"
"""Every directory this package writes holds one; only such a directory is ever overwritten."""

_ABOUT_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def require_free(target: Path | str, *, overwrite: bool = False) -> None:
    """Refuse, with an ArtifactError, a target that cannot be written: for a check before hours of work.

    `overwrite` accepts an existing file, an empty directory, or a directory that this package wrote.
    """
    target = Path(target)
    _require_replaceable(target, overwrite)
    parent = next(parent for parent in target.absolute().parents if os.path.lexists(parent))
    if not parent.is_dir():
        raise ArtifactError(f"cannot write {target}: {parent} is not a directory. Choose another place.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ArtifactError(f"cannot write {target}: no permission to write in {parent}. Choose another place.")


def _require_replaceable(target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise ArtifactError(
            f"{target} exists already, and nothing is overwritten silently. Choose another name, remove it, or "
            "pass --overwrite (overwrite=True)."
        )
    with suppress(FileNotFoundError):  # gone meanwhile, for another process is replacing it: nothing is in the way
        if target.is_dir() and not target.is_symlink():
            if (holds := os.listdir(target)) and MANIFEST_FILE not in holds:
                raise ArtifactError(
                    f"{target} is a directory without {MANIFEST_FILE}: steer2edit did not write it, so it is not "
                    "replaced even with overwrite. Choose another name, or remove it yourself."
                )
        elif os.path.lexists(target) and not target.is_file():
            raise ArtifactError(f"{target} is neither a plain file nor a plain directory: it is not replaced.")


def require_read_back(same: bool, what: object) -> None:
    """Refuse, with an ArtifactError, what does not read back as it was written: within `atomic_*`, nothing is left."""
    if not same:
        raise ArtifactError(
            f"{what} reads back differently from what was written: the disk may be failing, or the source was changed "
            "meanwhile. Nothing was kept; write to another place."
        )


@contextmanager
def atomic_directory(target: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty directory to fill; on leaving without an exception it becomes `target`, whose parents are made.

    `overwrite` replaces an existing directory that this package wrote; until the last moment it stays in place. An
    ArtifactError, with nothing left behind, where the target exists or cannot be written.
    """
    with _atomic(Path(target), overwrite, is_directory=True) as scratch:
        yield scratch


@contextmanager
def atomic_file(target: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a path to write a file at; on leaving without an exception it becomes `target`. As `atomic_directory`."""
    with _atomic(Path(target), overwrite, is_directory=False) as scratch:
        yield scratch


@contextmanager
def _atomic(target: Path, overwrite: bool, *, is_directory: bool) -> Iterator[Path]:
    require_free(target, overwrite=overwrite)
    if target.is_file() if is_directory else target.is_dir():
        raise ArtifactError(f"{target} is a {'file' if is_directory else 'directory'}. Choose another name.")
    scratch = target.with_name(f".{target.name}-{secrets.token_hex(4)}.partial")
    missing = [parent for parent in target.absolute().parents if not os.path.lexists(parent)]
    try:
        with _errors_explained(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if is_directory:
                scratch.mkdir()
        with _errors_explained(target, _ABOUT_THE_DISK):  # another error, a missing input say, is not about the target
            yield scratch
        with _errors_explained(target):
            for path in (*(scratch.rglob("*") if is_directory else ()), scratch):
                _flush(path)
            _rename(scratch, target, overwrite)
            _flush(target.parent)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):
            scratch.unlink()
        for parent in missing:
            with suppress(OSError):  # another process may have put something there meanwhile
                parent.rmdir()
        raise


@contextmanager
def _errors_explained(target: Path, only: Collection[int] | None = None) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        copied = isinstance(error, shutil.Error)  # of copytree: (source, target, why) for each file, without a number
        if only is not None and isinstance(error, OSError) and not copied and error.errno not in only:
            raise
        reason = error.args[0][0][2] if copied else getattr(error, "strerror", None) or error
        raise ArtifactError(
            f"cannot write {target}: {reason}. Nothing was left there; free some space or choose another place."
        ) from error


def _flush(path: Path) -> None:
    """Have a file, or the entries of a directory, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems cannot flush a directory: then the rename is merely less durable
            raise
    finally:
        os.close(descriptor)


def _rename(scratch: Path, target: Path, overwrite: bool) -> None:
    """Put what was written in the target's place, while no other process of this package renames beside it."""
    descriptor, retired = os.open(target.parent, os.O_RDONLY), scratch.with_suffix(".replaced")
    try:
        with suppress(OSError):  # a file system without locks: of two at the same instant, the second replaces
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        _require_replaceable(target, overwrite)
        if scratch.is_dir() and os.path.lexists(target):
            target.rename(retired)
        try:
            scratch.rename(target)
        except BaseException:
            with suppress(OSError):
                retired.rename(target)
            raise
    finally:
        os.close(descriptor)  # which gives the lock back
    shutil.rmtree(retired, ignore_errors=True)
