"""Results of tests in the run folder: each kept as soon as it is there, so that a killed run goes on."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from steer2edit.artifacts import atomic_file
from steer2edit.artifacts.run_folder import write_json
from steer2edit.engines import Asked
from steer2edit.errors import ArtifactError
from steer2edit.models import Reply
from steer2edit.stress.stress_test import Finding, StressResult

_SCHEMA_VERSION = 1
_T = TypeVar("_T")
_FIELDS = ("name", "metric", "values", "outcome", "sentence", "note", "higher_is_better", "judged", "against")


@dataclass(frozen=True)
class KeptResults:
    """The results in a run folder: `tests/NAME.json` and `replies/NAME.json`.

    Args:
        folder: of the run.
    """

    folder: Path

    def find(self, name: str) -> tuple[StressResult, float] | None:
        """(result without replies, seconds it took) of a test, if it is there.

        Raises:
            ArtifactError: the file is damaged.
        """
        path = self._result(name)
        if not path.exists():
            return None
        with _damage_explained(path):
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["schema_version"] != _SCHEMA_VERSION:
                raise ValueError(f"schema version {stored['schema_version']}")
            findings = [Finding(**one) for one in stored["findings"]]
            return StressResult(findings, {}, stored["facts"]), float(stored["seconds"])

    def keep(self, name: str, result: StressResult, seconds: float) -> None:
        """Keep a result in place of an earlier failure; the replies first: a result that is there is complete."""
        self._error(name).unlink(missing_ok=True)
        write_json(self._replies(name), plain({"name": name, "replies": result.replies}))
        write_json(
            self._result(name),
            {
                "schema_version": _SCHEMA_VERSION,
                "name": name,
                "seconds": round(seconds, 2),
                "findings": [plain({field: getattr(one, field) for field in _FIELDS}) for one in result.findings],
                "facts": plain(result.facts),
            },
        )

    def keep_remembered(self, replies: Mapping[Asked, Reply], arms: Sequence[str]) -> None:
        """Keep the replies that tests compare with, token by token, with the labels of the arms."""
        rows = [{**asdict(asked), **asdict(reply)} for asked, reply in replies.items()]
        write_json(self._remembered, {"schema_version": _SCHEMA_VERSION, "arms": list(arms), "replies": rows})

    def remembered(self, arms: Sequence[str]) -> dict[Asked, Reply]:
        """The replies that tests compare with.

        Raises:
            ArtifactError: the file is missing or damaged, or holds replies of other arms.
        """
        with _damage_explained(self._remembered, _BEGIN_ANEW):
            stored = json.loads(self._remembered.read_text(encoding="utf-8"))
            if (stored["schema_version"], stored["arms"]) != (_SCHEMA_VERSION, list(arms)):
                raise ValueError(f"replies of {stored['arms']}, where {list(arms)} are compared")
            return {_made(Asked, row): _made(Reply, row) for row in stored["replies"]}

    def keep_error(self, name: str, text: str) -> Path:
        """Keep how a test failed; where."""
        path = self._error(name)
        path.parent.mkdir(exist_ok=True)
        with atomic_file(path, overwrite=True) as scratch:
            scratch.write_text(text, encoding="utf-8", errors="backslashreplace")
        return path

    def replies(self, name: str) -> dict[str, dict[str, list[str]]]:
        """What the model said in a test, by arm and line; nothing where nothing was kept."""
        path = self._replies(name)
        if not path.exists():
            return {}
        with _damage_explained(path):
            return {
                str(arm): {str(line): [str(text) for text in texts] for line, texts in lines.items()}
                for arm, lines in json.loads(path.read_text(encoding="utf-8"))["replies"].items()
            }

    def once(self, name: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The JSON object in `NAME.json`; made and written down if it is not there."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            write_json(path, plain(make()))
        with _damage_explained(path):
            return dict(json.loads(path.read_text(encoding="utf-8")))

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """An empty folder for a test, removed afterwards; what a killed process left in it is removed before."""
        folder = self.folder / "scratch" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder.parent, ignore_errors=True)

    @property
    def _remembered(self) -> Path:
        return self.folder / "replies" / "remembered.json"

    def _result(self, name: str) -> Path:
        return self.folder / "tests" / f"{name}.json"

    def _error(self, name: str) -> Path:
        return self.folder / "errors" / f"{name}.txt"

    def _replies(self, name: str) -> Path:
        return self.folder / "replies" / f"{name}.json"


def _made(kind: type[_T], row: Mapping[str, Any]) -> _T:
    """A dataclass from those of a row's entries that are its own."""
    own = {field.name: row[field.name] for field in fields(kind) if field.name in row}  # type: ignore[arg-type]
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in own.items()})


def plain(value: Any) -> Any:
    """The value as JSON holds it: numbers of other libraries as Python's, what is not finite as `None`.

    Raises:
        TypeError: something in it is not JSON.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # a scalar of numpy or torch
        return plain(value.item())
    if isinstance(value, Sequence | set | frozenset):
        return [plain(entry) for entry in (value if isinstance(value, Sequence) else sorted(value))]
    raise TypeError(f"{type(value).__name__} is not JSON")


_MEASURED_AGAIN = "Restore it, or remove it and run again: it is then measured again."
_BEGIN_ANEW = "Every test compares with these replies: restore it, or begin in a new run folder."


@contextmanager
def _damage_explained(path: Path, remedy: str = _MEASURED_AGAIN) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} does not hold what a stress run writes there: {error}. {remedy}") from error
