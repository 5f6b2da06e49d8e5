"""Two processes that write one target: one has written it, the other is told, and nothing else is left."""

import errno
import fcntl
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from steer2edit.artifacts import atomic_directory, atomic_file
from steer2edit.artifacts.run_folder import RunFolder, RunKind
from steer2edit.errors import ArtifactError

Writer = Callable[..., AbstractContextManager[Path]]


def write(context: Writer, target: Path, text: str, meanwhile: Callable[[], object] = bool, **options: bool) -> None:
    """Write `text`, with something else happening between the first byte and the renaming."""
    with context(target, **options) as scratch:
        file = scratch / "steer2edit.json" if scratch.is_dir() else scratch
        file.write_text(text)
        meanwhile()


def text_of(target: Path) -> str:
    return (target / "steer2edit.json" if target.is_dir() else target).read_text()


@pytest.mark.parametrize("context", [atomic_directory, atomic_file])
def test_the_first_to_end_has_written_it(tmp_path: Path, context: Writer) -> None:
    target = tmp_path / "out"
    with pytest.raises(ArtifactError, match="exists already"):
        write(context, target, "slow", lambda: write(context, target, "fast"))
    assert text_of(target) == "fast"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("context", [atomic_directory, atomic_file])
def test_overwriting_replaces_what_came_meanwhile_as_a_whole(tmp_path: Path, context: Writer) -> None:
    target = tmp_path / "out"
    write(context, target, "slow", lambda: write(context, target, "fast"), overwrite=True)
    assert text_of(target) == "slow"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_somebody_elses_directory_that_came_meanwhile_stays(tmp_path: Path, overwrite: bool) -> None:
    target = tmp_path / "out"

    def foreign() -> None:
        target.mkdir()
        (target / "thesis.tex").write_text("years of work")

    with pytest.raises(ArtifactError, match="without steer2edit.json" if overwrite else "exists already"):
        write(atomic_directory, target, "ours", foreign, overwrite=overwrite)
    assert [path.name for path in target.iterdir()] == ["thesis.tex"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("context", [atomic_directory, atomic_file])
def test_eight_writers_at_once(tmp_path: Path, context: Writer, overwrite: bool) -> None:
    target, ready = tmp_path / "out", threading.Barrier(8)
    told: dict[str, str] = {}

    def one(name: str) -> None:
        try:
            write(context, target, name, ready.wait, overwrite=overwrite)
            told[name] = "written"
        except ArtifactError as error:
            told[name] = str(error)

    threads = [threading.Thread(target=one, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = [name for name, what in told.items() if what == "written"]
    assert len(told) == 8
    assert text_of(target) in written
    assert len(written) == (8 if overwrite else 1)
    assert all("exists already" in what for what in told.values() if what != "written")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("context", [atomic_directory, atomic_file])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: Writer) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    write(context, tmp_path / "first", "1")
    assert text_of(tmp_path / "first") == "1"
    with pytest.raises(ArtifactError, match="exists already"):
        write(context, tmp_path / "out", "slow", lambda: write(context, tmp_path / "out", "fast"))
    assert text_of(tmp_path / "out") == "fast"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "out"]


def test_a_run_folder_has_one_process_and_is_not_overwritten(tmp_path: Path) -> None:
    kind = RunKind("run", 1, "working", "options")
    with RunFolder(tmp_path / "out", kind).opened({}):
        with (
            pytest.raises(ArtifactError, match="another process is working in"),
            RunFolder(tmp_path / "out", kind).opened({}),
        ):
            pytest.fail("two are in one folder")
        with pytest.raises(ArtifactError, match="exists already"), atomic_directory(tmp_path / "out"):
            pytest.fail("it is overwritten")
    with pytest.raises(ArtifactError, match="exists already"):
        write(
            atomic_directory, tmp_path / "new", "ours", lambda: RunFolder(tmp_path / "new", kind).opened({}).__enter__()
        )
    assert (tmp_path / "new").is_dir()


def test_what_a_run_folder_has_is_not_made_again(tmp_path: Path) -> None:
    made: list[list[str]] = []

    def make(keys: list[str]) -> list[int]:
        made.append(keys)
        return [len(key) for key in keys]

    with RunFolder(tmp_path / "out", RunKind("run", 1, "working", "options")).opened({}) as folder:
        assert folder.once_each("sizes", ["a", "bb"], make) == [1, 2]
        assert folder.once_each("sizes", ["bb", "ccc"], make) == [2, 3]
        assert folder.once("sizes", list, key="a") == 1
        assert folder.once("other", lambda: {"x": 1}) == folder.once("other", dict) == {"x": 1}
        assert made == [["a", "bb"], ["ccc"]]
        (folder.path / "sizes.json").write_text("[1]")
        with pytest.raises(ArtifactError, match=r"sizes\.json does not hold what a run writes there.*remove it"):
            folder.once("sizes", list, key="a")
