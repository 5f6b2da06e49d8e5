"""The run folder of a search or a comparison: what has been measured already is not measured again."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steer2edit.artifacts.run_folder import RunKind, run_folder, write_json
from steer2edit.errors import ArtifactError
from steer2edit.evaluation import Condition, Estimate


class RunFolder:
    """A folder that one run works in.

    Args:
        path: of the folder; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def opened(self, kind: RunKind, identity: Mapping[str, Any]) -> Iterator["RunFolder"]:
        """Work in the folder within the context, alone.

        Raises:
            ArtifactError: it is not of this kind, or another process works in it.
            MismatchError: it belongs to another run; the message says what differs.
        """
        with run_folder(self.path, kind, identity):
            yield self

    def once(self, file: str, name: str, make: Callable[[], Any]) -> Any:
        """The JSON value that a file has under a name; made and written down if it has none.

        A file keeps all values side by side, in the order they were made, so that it can be seen how often held-out
        items were looked at.

        Raises:
            ArtifactError: the file is damaged.
        """
        return self.once_each(file, [name], lambda _: [make()])[0]

    def once_each(self, file: str, names: Sequence[str], make: Callable[[list[str]], Sequence[Any]]) -> list[Any]:
        """The JSON values that a file has under some names; those that it has not are made in one call.

        Raises:
            ArtifactError: the file is damaged.
        """
        path = self.path / file
        with _damage_explained(path):
            stored = dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
        if missing := [name for name in names if name not in stored]:
            stored |= zip(missing, make(missing), strict=True)
            write_json(path, stored)
        return [stored[name] for name in names]

    def conditions(self, file: str, name: str, measure: Callable[[], Any]) -> list[Condition]:
        """The conditions that a file has under a name; `measure` makes them, as JSON or not, if it has none.

        Raises:
            ArtifactError: the file is damaged.
        """
        found = self.once(file, name, lambda: [c.to_json() if isinstance(c, Condition) else c for c in measure()])
        with _damage_explained(self.path / file):
            return [_condition(one) for one in found]


@contextmanager
def _damage_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path} does not hold what a run writes there: {error}. Restore it, or remove it and run the command "
            "again: it is then measured again."
        ) from error


def _condition(stored: Mapping[str, Any]) -> Condition:
    metrics = {name: Estimate(**value) for name, value in stored["metrics"].items()}
    return Condition(**{**stored, "metrics": metrics})
