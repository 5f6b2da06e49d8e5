import errno
import os
import shutil
import warnings
from pathlib import Path

import pytest

from steer2edit.artifacts import atomic_directory, atomic_file, require_free
from steer2edit.errors import ArtifactError


def everything(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_directory_is_absent_until_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "out"
    with atomic_directory(target) as scratch:
        (scratch / "a.txt").write_text("1")
        (scratch / "inner").mkdir()
        (scratch / "inner" / "b.txt").write_text("2")
        assert not target.exists()
        assert scratch.parent == target.parent  # the same file system, so that the rename is one step
    assert everything(tmp_path) == ["new", "new/out", "new/out/a.txt", "new/out/inner", "new/out/inner/b.txt"]
    assert (target / "inner" / "b.txt").read_text() == "2"


def test_file_is_absent_until_complete(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    with atomic_file(target) as scratch:
        scratch.write_bytes(b"123")
        assert not target.exists()
    assert target.read_bytes() == b"123"
    assert everything(tmp_path) == ["out.bin"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_exception_in_the_middle_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def stop(half: Path) -> None:
        half.write_text("half")
        raise error

    with pytest.raises(error), atomic_directory(tmp_path / "made" / "for" / "it") as scratch:
        stop(scratch / "half.txt")
    with pytest.raises(error), atomic_file(tmp_path / "made" / "file") as path:
        stop(path)
    assert everything(tmp_path) == []


def test_killed_process_leaves_no_target(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of forking where there are threads
        child = os.fork()
    if not child:
        with atomic_directory(target) as scratch:
            (scratch / "half").write_text("half")
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not target.exists()
    require_free(target)
    assert [path.name.startswith(".out-") for path in tmp_path.iterdir()] == [True]


def test_existing_target_is_refused_and_unchanged(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for context in (atomic_directory, atomic_file):
        for name in ("dir", "file"):
            with pytest.raises(ArtifactError, match="exists already"), context(tmp_path / name):
                pytest.fail("the body must not run")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="exists already"):
        require_free(tmp_path / "dangling")
    assert (tmp_path / "dir" / "mine.txt").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "mine"


def test_overwrite_replaces_only_what_we_wrote(tmp_path: Path) -> None:
    ours, foreign, empty, file = (tmp_path / name for name in ("ours", "foreign", "empty", "file"))
    for directory in (ours, foreign, empty):
        directory.mkdir()
    (ours / "steer2edit.json").write_text("{}")
    (ours / "old.txt").write_text("old")
    (foreign / "thesis.tex").write_text("years of work")
    file.write_text("old")
    for directory in (ours, empty):
        with atomic_directory(directory, overwrite=True) as scratch:
            (scratch / "new.txt").write_text("new")
        assert everything(directory) == ["new.txt"]
    with pytest.raises(ArtifactError, match="did not write it"), atomic_directory(foreign, overwrite=True):
        pytest.fail("the body must not run")
    with atomic_file(file, overwrite=True) as scratch:
        scratch.write_text("new")
    assert file.read_text() == "new"
    assert everything(tmp_path) == [
        "empty", "empty/new.txt", "file", "foreign", "foreign/thesis.tex", "ours", "ours/new.txt",
    ]  # fmt: skip


def test_overwrite_does_not_turn_a_file_into_a_directory_or_back(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "dir").mkdir()
    with pytest.raises(ArtifactError, match="is a file"), atomic_directory(tmp_path / "file", overwrite=True):
        pass
    with pytest.raises(ArtifactError, match="is a directory"), atomic_file(tmp_path / "dir", overwrite=True):
        pass


def test_failed_overwrite_keeps_the_old(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_directory(target) as scratch:
        (scratch / "steer2edit.json").write_text("old")

    def interrupted(file: Path) -> None:
        file.write_text("new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), atomic_directory(target, overwrite=True) as scratch:
        interrupted(scratch / "steer2edit.json")
    assert everything(tmp_path) == ["out", "out/steer2edit.json"]
    assert (target / "steer2edit.json").read_text() == "old"


def test_failed_rename_puts_the_old_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    with atomic_directory(target) as scratch:
        (scratch / "steer2edit.json").write_text("old")
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(ArtifactError, match="Input/output error"), atomic_directory(target, overwrite=True) as scratch:
        (scratch / "steer2edit.json").write_text("new")
    assert everything(tmp_path) == ["out", "out/steer2edit.json"]
    assert (target / "steer2edit.json").read_text() == "old"


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="file is not a directory"), atomic_directory(tmp_path / "file" / "a" / "b"):
        pass


def test_parent_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere, so it is simulated
    with pytest.raises(ArtifactError, match="no permission to write"), atomic_directory(tmp_path / "out"):
        pass


def test_making_the_scratch_fails(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match=r"cannot write .*File name too long"),
        atomic_directory(tmp_path / ("x" * 255)),
    ):
        pass
    assert everything(tmp_path) == []


@pytest.mark.parametrize("context", [atomic_directory, atomic_file])
def test_full_disk_is_explained_and_other_errors_pass(tmp_path: Path, context) -> None:
    with pytest.raises(ArtifactError, match=r"cannot write .*out: No space left on device"), context(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(ArtifactError, match=r"out: .*No space left .* free some space"), context(tmp_path / "out"):
        raise shutil.Error([("edit/a", "out/a", "[Errno 28] No space left on device: 'edit/a' -> 'out/a'")])
    with pytest.raises(FileNotFoundError), context(tmp_path / "out"):
        (tmp_path / "input that is not there").read_text()
    assert everything(tmp_path) == []
