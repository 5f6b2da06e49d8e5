"""A stress run's folder: each result is written as soon as it is there, so that a killed run goes on."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from steer2edit.artifacts import atomic_file
from steer2edit.artifacts.run_folder import RunFolder, RunKind, damage_explained, write_json
from steer2edit.engines import Asked
from steer2edit.models import Reply
from steer2edit.stress.findings import StressResult, Texts

_KIND = RunKind("stress run", 1, "testing", "model, edit, prompts and options")
_ASKED, _REPLY = TypeAdapter(Asked), TypeAdapter(Reply)
_REPLIES = TypeAdapter(dict[str, dict[str, list[str]]])
_BEGIN_ANEW = "Every test compares with these replies: restore it, or begin in a new run folder."


class StressFolder(RunFolder):
    """The results of a run: `tests/NAME.json` and `replies/NAME.json`.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, _KIND)

    def find(self, name: str) -> tuple[StressResult, float] | None:
        """(result without replies, seconds it took) of a test, if it is there.

        Raises:
            ArtifactError: the file is damaged.
        """
        path = self._file("tests", name)
        if not path.exists():
            return None
        with damage_explained(path):
            stored = _read(path)
            return StressResult.from_json({**stored, "replies": {}}), float(stored["seconds"])

    def write(self, name: str, result: StressResult, seconds: float) -> tuple[StressResult, float]:
        """Write a result in place of an earlier failure, the replies first: a result that is there is complete.

        Returns:
            It as it is read back: a run that goes on sees exactly what this one sees.
        """
        content = result.to_json()
        self._file("errors", name, "txt").unlink(missing_ok=True)
        write_json(self._file("replies", name), {"name": name, "replies": content.pop("replies")})
        stored = {"schema_version": _KIND.schema_version, "name": name, "seconds": round(seconds, 2), **content}
        write_json(self._file("tests", name), stored)
        found = self.find(name)
        assert found is not None
        return found

    def write_remembered(self, replies: Mapping[Asked, Reply], arms: Sequence[str]) -> None:
        """Write the replies that tests compare with, token by token, with the labels of the arms."""
        rows = [{**asdict(asked), **asdict(reply)} for asked, reply in replies.items()]
        content = {"schema_version": _KIND.schema_version, "arms": list(arms), "replies": rows}
        write_json(self._file("replies", "remembered"), content)

    def remembered(self, arms: Sequence[str]) -> dict[Asked, Reply]:
        """The replies that tests compare with.

        Raises:
            ArtifactError: the file is missing or damaged, or holds replies of other arms.
        """
        path = self._file("replies", "remembered")
        with damage_explained(path, _BEGIN_ANEW):
            stored = _read(path)
            if stored["arms"] != list(arms):
                raise ValueError(f"replies of {stored['arms']}, where {list(arms)} are compared")
            return {_ASKED.validate_python(row): _REPLY.validate_python(row) for row in stored["replies"]}

    def write_error(self, name: str, text: str) -> Path:
        """Write down how a test failed; where."""
        path = self._file("errors", name, "txt")
        path.parent.mkdir(exist_ok=True)
        with atomic_file(path, overwrite=True) as scratch:
            scratch.write_text(text, encoding="utf-8", errors="backslashreplace")
        return path

    def replies(self, name: str) -> Texts:
        """What the model said in a test, by arm and line; nothing where nothing was written."""
        path = self._file("replies", name)
        if not path.exists():
            return {}
        with damage_explained(path):
            return _REPLIES.validate_python(json.loads(path.read_text(encoding="utf-8"))["replies"])

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """An empty folder for a test, removed afterwards; what a killed process left in it is removed before."""
        folder = self.path / "scratch" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder.parent, ignore_errors=True)

    def _file(self, kind: str, name: str, suffix: str = "json") -> Path:
        return self.path / kind / f"{name}.{suffix}"


def _read(path: Path) -> dict[str, Any]:
    stored = dict(json.loads(path.read_text(encoding="utf-8")))
    if stored["schema_version"] != _KIND.schema_version:
        raise ValueError(f"schema version {stored['schema_version']}")
    return stored
