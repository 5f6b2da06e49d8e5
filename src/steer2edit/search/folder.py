"""The run folder: what it is about, who works in it, and what has been measured already."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steer2edit.artifacts.run_folder import RunKind, run_folder, write_json
from steer2edit.errors import ArtifactError
from steer2edit.evaluation import Condition, Estimate
from steer2edit.search.trials import Trial, read_trials, write_generation

_KIND = RunKind(
    "search", 1, "searching", "model, vectors and options",
    "; several machines share a search by --storage, each with an --out of its own",
)  # fmt: skip


class RunFolder:
    """A folder that one search, or another run of its kind, works in.

    Args:
        path: of the folder; made if it is not there.
        kind: of run.
    """

    def __init__(self, path: Path, kind: RunKind = _KIND) -> None:
        self.path = path
        self._kind = kind

    @contextmanager
    def opened(self, identity: Mapping[str, Any]) -> Iterator["RunFolder"]:
        """Work in the folder within the context, alone.

        Raises:
            ArtifactError: it is not a search's, or another process works in it.
            MismatchError: it belongs to another search; the message says what differs.
        """
        with run_folder(self.path, self._kind, identity):
            yield self

    def trials(self, worker: str) -> list[Trial]:
        """The trials of a worker that were kept."""
        return read_trials(self.path / "trials", worker)

    def keep(self, trials: Sequence[Trial], worker: str) -> None:
        """Keep a generation."""
        write_generation(self.path / "trials", trials, worker)

    def remembered(self, name: str, measure: Callable[[], list[Condition]], kind: str = "") -> list[Condition]:
        """What was measured under a name; measured and kept if it was not.

        Args:
            name: of the measurement; another name is another measurement.
            measure: makes the conditions.
            kind: of the file; several measurements of a kind are kept side by side in it, in the order they were
                made, so that it can be seen how often held-out items were looked at.
        """
        path = self.path / f"{kind or name}.json"
        kept = self.kept(path, name, lambda: [condition.to_json() for condition in measure()])
        with _damage_explained(path):
            return [_condition(one) for one in kept]

    def kept(self, path: Path, name: str, make: Callable[[], Any]) -> Any:
        """The JSON value that a file has under a name; made and written down if it has none.

        Raises:
            ArtifactError: the file is damaged.
        """
        return self.kept_together(path, [name], lambda _: [make()])[0]

    def kept_together(self, path: Path, names: Sequence[str], make: Callable[[list[str]], Sequence[Any]]) -> list[Any]:
        """The JSON values that a file has under some names; those that it has not are made together, and written down.

        Raises:
            ArtifactError: the file is damaged.
        """
        with _damage_explained(path):
            stored = dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
        if missing := [name for name in names if name not in stored]:
            stored |= zip(missing, make(missing), strict=True)
            write_json(path, stored)
        return [stored[name] for name in names]


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
