"""Writing a file or a directory completely or not at all.

Everything is written beside the target under a temporary name (`.<name>-<random>.partial`), flushed to the disk,
and renamed at the end. An exception, Ctrl+C included, removes what was written; a killed process or a power cut
leaves at most the temporary name behind, never half a target. Whether a target may be replaced is decided when it is
renamed: of two processes that write one target, the first to end has written it, and the other is refused.
"""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from steer2edit.errors import ArtifactError

MANIFEST_FILE = "steer2edit.json"
"""Every directory this package writes holds one; only such a directory is ever overwritten."""

_ABOUT_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def require_free(target: Path | str, *, overwrite: bool = False) -> None:
    """Refuse a target that cannot be written: for a check before hours of work.

    Args:
        target: the file or directory to be written.
        overwrite: accept an existing file, an empty directory, or a directory that this package wrote.

    Raises:
        ArtifactError: it exists (and may not be replaced), or its parent is no directory or not writable.
    """
    target = Path(target)
    if os.path.lexists(target):
        _require_replaceable(target, overwrite)
    parent = target.absolute().parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise ArtifactError(f"cannot write {target}: {parent} is not a directory. Choose another place.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ArtifactError(f"cannot write {target}: no permission to write in {parent}. Choose another place.")


def _require_replaceable(target: Path, overwrite: bool) -> None:
    if not overwrite:
        raise ArtifactError(
            f"{target} exists already, and nothing is overwritten silently. Choose another name, remove it, or "
            "pass --overwrite (overwrite=True)."
        )
    with suppress(FileNotFoundError):  # gone meanwhile, for another process is replacing it: nothing is in the way
        found = target.lstat()
        if stat.S_ISDIR(found.st_mode):
            holds = os.listdir(target)
            if not holds or MANIFEST_FILE in holds:
                return
            reason = (
                f"is a directory without {MANIFEST_FILE}: steer2edit did not write it, so it is not replaced "
                "even with overwrite. Choose another name, or remove it yourself."
            )
        elif target.is_file():
            return
        else:
            reason = "is neither a plain file nor a plain directory: it is not replaced."
        if os.path.samestat(found, target.lstat()):
            raise ArtifactError(f"{target} {reason}")
        _require_replaceable(target, overwrite)  # it was replaced while we looked


@contextmanager
def atomic_directory(target: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty directory to fill; on leaving without an exception it becomes `target`.

    Args:
        target: must not exist. Missing parents are made.
        overwrite: replace an existing directory that this package wrote; until the last moment it stays in place.

    Raises:
        ArtifactError: the target exists, or cannot be written; nothing is left behind.
    """
    target = Path(target)
    require_free(target, overwrite=overwrite)
    if target.is_file():
        raise ArtifactError(f"{target} is a file, and a directory is to be written there. Choose another name.")
    with _scratch(target) as scratch:
        with _errors_explained(target):
            scratch.mkdir()
        yield scratch
        with _errors_explained(target):
            for path in [*scratch.rglob("*"), scratch, target.parent]:
                _flush(path)
            _rename_directory(scratch, target, overwrite)


@contextmanager
def atomic_file(target: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a path to write a file at; on leaving without an exception it becomes `target`.

    Args:
        target: must not exist. Missing parents are made.
        overwrite: replace an existing file.

    Raises:
        ArtifactError: the target exists, or cannot be written; nothing is left behind.
    """
    target = Path(target)
    require_free(target, overwrite=overwrite)
    if target.is_dir():
        raise ArtifactError(f"{target} is a directory, and a file is to be written there. Choose another name.")
    with _scratch(target) as scratch:
        yield scratch
        with _errors_explained(target):
            _flush(scratch)
            _rename_file(scratch, target, overwrite)
            _flush(target.parent)


def _sibling(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}-{secrets.token_hex(4)}.{suffix}")


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A temporary name beside the target, whose parents are made; after an exception, both are gone."""
    scratch = _sibling(target, "partial")
    missing = [parent for parent in target.absolute().parents if not os.path.lexists(parent)]
    try:
        with _errors_explained(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        with _errors_explained(target, _ABOUT_THE_DISK):  # another error, a missing input say, is not about the target
            yield scratch
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
        if only is not None and isinstance(error, OSError) and error.errno not in only:
            raise
        raise ArtifactError(
            f"cannot write {target}: {getattr(error, 'strerror', None) or error}. Nothing was left there; free some "
            "space or choose another place."
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


def _rename_file(scratch: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        scratch.replace(target)
        return
    try:
        try:
            os.link(scratch, target)  # unlike a rename, it never replaces
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links: take the name before another process can
            target.touch(exist_ok=False)
            scratch.replace(target)
    except FileExistsError:
        _require_replaceable(target, overwrite)
        raise
    scratch.unlink(missing_ok=True)


def _rename_directory(scratch: Path, target: Path, overwrite: bool) -> None:
    """A rename never replaces a directory that holds something, so of several processes one is the first."""
    retired = _sibling(target, "replaced")
    if os.path.lexists(target):
        _require_replaceable(target, overwrite)
        with suppress(FileNotFoundError):  # another process is replacing it as well
            target.rename(retired)
    try:
        scratch.rename(target)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            # another process was first; that its directory may be gone again by now changes nothing
            shutil.rmtree(retired, ignore_errors=True)
            return _rename_directory(scratch, target, overwrite)
        if os.path.lexists(target):
            shutil.rmtree(retired, ignore_errors=True)
        with suppress(OSError):
            retired.rename(target)
        raise
    shutil.rmtree(retired, ignore_errors=True)
    return None
