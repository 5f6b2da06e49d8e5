"""A folder that a long run works in: what it is about, who works in it, and what killed processes left there."""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from steer2edit.artifacts.atomic import MANIFEST_FILE, atomic_file
from steer2edit.errors import ArtifactError, MismatchError
from steer2edit.estimates import Condition

_LOCK_FILE = ".lock"
_LEFTOVER = re.compile(r"\..+-[0-9a-f]{8}\.(partial|replaced)")  # of a process that was killed


@dataclass(frozen=True)
class RunKind:
    """What kind of run a folder is for."""

    name: str  # in its manifest and in messages: "belongs to another {name}"
    schema_version: int  # of the manifest
    working: str  # what a process does there: "another process is {working} in ..."
    made_with: str  # what makes a run another one: "give the {made_with} it was begun with"
    shared_by: str = ""  # how several processes do it together, if they can


class RunFolder:
    """A folder that one run works in: its manifest says which, and its files keep what was found already."""

    def __init__(self, path: Path, kind: RunKind) -> None:
        self.path, self.kind = path, kind

    @contextmanager
    def opened(self, identity: Mapping[str, Any]) -> Iterator[Self]:
        """Work in the folder within the context, alone; make it if it is not there.

        `identity` is JSON-able: what makes this run this one. An ArtifactError where the folder is not of this kind,
        another process works in it, or it cannot be written; a MismatchError where it belongs to another run.
        """
        path = self.path
        if path.exists() and not path.is_dir():
            raise ArtifactError(f"{path} is a file, and a run folder is to be there. Choose another --out.")
        names = [found.name for found in path.iterdir()] if path.is_dir() else []
        # what a run leaves that was killed before it wrote its manifest is the run's own
        if MANIFEST_FILE not in names and any(n != _LOCK_FILE and not _LEFTOVER.fullmatch(n) for n in names):
            raise ArtifactError(f"{path} holds something that is no {self.kind.name}. Choose another --out.")
        lock = FileLock(path / _LOCK_FILE)  # the system gives it back when the process dies
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ArtifactError(
                f"another process is {self.kind.working} in {path}. Wait for it, or choose another --out"
                f"{self.kind.shared_by}."
            ) from error
        except (OSError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ArtifactError(f"cannot write in {path}: {reason}. Choose another --out.") from error
        try:
            for found in [*path.iterdir(), *path.glob("*/.*")]:  # of killed processes: who holds the lock is alone
                if _LEFTOVER.fullmatch(found.name):
                    shutil.rmtree(found) if found.is_dir() else found.unlink()
            self.settle(identity)
            yield self
        finally:
            lock.release()

    def once(self, name: str, make: Callable[[], Any], *, key: str | None = None) -> Any:
        """What `NAME.json` holds, or holds under a key: the JSON value is made and written down if it is not there."""
        if key is not None:
            return self.once_each(name, [key], lambda _: [make()])[0]
        path = self.path / f"{name}.json"
        if not path.exists():
            write_json(path, make())
        with damage_explained(path):
            return json.loads(path.read_text(encoding="utf-8"))

    def once_each(self, name: str, keys: Sequence[str], make: Callable[[list[str]], Sequence[Any]]) -> list[Any]:
        """The values that `NAME.json` holds by key; those that it has not are made together, and written down."""
        path = self.path / f"{name}.json"
        with damage_explained(path):
            stored = dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
        if missing := [key for key in keys if key not in stored]:
            stored |= zip(missing, make(missing), strict=True)
            write_json(path, stored)
        return [stored[key] for key in keys]

    def conditions(self, name: str, key: str, measure: Callable[[], Sequence[Condition]]) -> list[Condition]:
        """The conditions that `NAME.json` holds under a key, beside those of others; measured if it has none."""
        found = self.once(name, lambda: [condition.to_json() for condition in measure()], key=key)
        with damage_explained(self.path / f"{name}.json"):
            return [Condition.from_json(one) for one in found]

    def settle(self, identity: Mapping[str, Any]) -> None:
        """Write down what the run is about, or require that it is what is written there."""
        path, kind, manifest = self.path, self.kind, self.path / MANIFEST_FILE
        if not manifest.exists():
            content = {"kind": kind.name, "schema_version": kind.schema_version, "identity": dict(identity)}
            return write_json(manifest, content)
        try:
            found = json.loads(manifest.read_text(encoding="utf-8"))
            known = found["kind"] == kind.name and found["schema_version"] == kind.schema_version
            differing = different_keys(found["identity"], identity) if known else []
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{manifest} cannot be read: {error}. Choose another --out.") from error
        if not known:
            raise ArtifactError(f"{path} is not the folder of a {kind.name} of this version. Choose another --out.")
        if differing:
            raise MismatchError(
                f"{path} belongs to another {kind.name}. It differs in: {'; '.join(differing)}. Choose another --out, "
                f"or give the {kind.made_with} it was begun with."
            )
        return None


@contextmanager
def damage_explained(path: Path) -> Iterator[None]:
    """An ArtifactError for what unexpected JSON of a file leads to, with what to do about it."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path} does not hold what a run writes there: {' '.join(str(error).split())}. Restore it, or remove it "
            "and run the command again: it is then measured again."
        ) from error


def begun_with(path: Path) -> Mapping[str, Any]:
    """What makes the run of a folder this run; nothing if there is no run, or it cannot be read."""
    try:
        return dict(json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def different_keys(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What two identities differ in, with both values."""
    plain = json.loads(json.dumps(dict(wanted), default=str))
    pairs = {key: (found.get(key), plain.get(key)) for key in sorted({*found, *plain})}
    return [f"{key} ({_shown(then)}, now {_shown(now)})" for key, (then, now) in pairs.items() if then != now]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write or replace a JSON file of a run folder, completely or not at all."""
    with atomic_file(path, overwrite=True) as scratch:
        scratch.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8", errors="backslashreplace")


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
