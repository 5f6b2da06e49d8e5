"""A stress run's folder: each result is written as soon as it is there, so that a killed run goes on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter

from steer2edit.artifacts import atomic_file
from steer2edit.artifacts.run_folder import RunFolder, RunKind, damage_explained, write_json
from steer2edit.stress.findings import StressResult, Texts
from steer2edit.stress.subject import Replies

SCORECARD_FILE = "scorecard.json"
_KIND = RunKind("stress run", 2, "testing", "model, edit, prompts and options")
_ASKED = TypeAdapter(Replies)
_REPLIES = TypeAdapter(dict[str, dict[str, list[str]]])


class StressFolder(RunFolder):
    """The results of a run: `tests/NAME.json` and `replies/NAME.json`; until a test is done, `asked/NAME/LINE.json`."""

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
            stored = dict(json.loads(path.read_text(encoding="utf-8")))
            return StressResult.from_json({**stored, "replies": {}}), float(stored["seconds"])

    def write(
        self, name: str, result: StressResult, seconds: float, *, keep_asked: bool = False
    ) -> tuple[StressResult, float]:
        """Write a result in place of an earlier failure, the replies first: a result that is there is complete.

        `keep_asked` keeps what was asked line by line, for tests to come.

        Returns:
            As `find`: a run that goes on sees exactly what this one sees.
        """
        content = result.to_json()
        self._file("errors", name, "txt").unlink(missing_ok=True)
        write_json(self._file("replies", name), {"name": name, "replies": content.pop("replies")})
        stored = {"schema_version": _KIND.schema_version, "name": name, "seconds": round(seconds, 2), **content}
        write_json(self._file("tests", name), stored)
        if not keep_asked:
            shutil.rmtree(self.path / "asked" / name, ignore_errors=True)
        found = self.find(name)
        assert found is not None
        return found

    def keep(self, test: str, line: str, make: Callable[[], Replies]) -> Replies:
        """What was asked in a line of a test: made and written down if it is not there.

        Raises:
            ArtifactError: the file is damaged.
        """
        name = f"asked/{test}/{line.replace('/', '--')}"
        found = self.once(name, lambda: json.loads(_ASKED.dump_json(make(), fallback=lambda scalar: scalar.item())))
        with damage_explained(self.path / f"{name}.json"):
            return _ASKED.validate_python(found)

    def seconds_asked(self, test: str) -> float:
        """How long the lines took that an earlier call has asked of a test."""
        return sum(
            float(json.loads(path.read_bytes())["seconds"]) for path in (self.path / "asked" / test).glob("*.json")
        )

    def write_error(self, name: str, text: str) -> Path:
        """Write down how a test failed; where."""
        path = self._file("errors", name, "txt")
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

    def _file(self, kind: str, name: str, suffix: str = "json") -> Path:
        return self.path / kind / f"{name}.{suffix}"
