"""What differs between two checkpoint directories besides tensors: config, tokenizer, chat template, code."""

import filecmp
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steer2edit.artifacts.atomic import MANIFEST_FILE
from steer2edit.artifacts.checkpoints.safetensors_files import CheckpointFiles
from steer2edit.artifacts.checkpoints.side_files import find_side_files
from steer2edit.audit.structure import WITHOUT_EFFECT
from steer2edit.models.model_path import INDEX_FILE

_PROVENANCE = {"README.md", "LICENSE", "LICENSE.txt", ".gitattributes", MANIFEST_FILE}
_NO_DIFFERENCE = {INDEX_FILE}  # which shard holds which tensor: the tensors themselves are compared


@dataclass(frozen=True)
class FileChange:
    """One file that is not the same in both directories.

    Args:
        name: path within the directories.
        what: `added`, `missing` or `differs`.
        settings: of a JSON file that differs: (before, after) by key, of keys at the top.
    """

    name: str
    what: str
    settings: dict[str, tuple[Any, Any]]

    @property
    def matters(self) -> bool:
        """Whether it is read when the model runs, and says something else: not a licence, a card or a version."""
        return self.name not in _PROVENANCE and not (self.settings and self.settings.keys() <= WITHOUT_EFFECT)


def changed_files(base: CheckpointFiles, other: CheckpointFiles) -> list[FileChange]:
    """Files besides the weights that were added, are missing or differ; weights in other formats are not read.

    Raises:
        ArtifactError: a file is a link that leads out of its directory.
    """
    sides = [find_side_files(f.directory, f.shards) for f in (base, other)]
    ours, theirs = ({str(path) for path in side.own} for side in sides)
    # weights in other formats and hidden entries: `apply` leaves them out, so only what is more or other counts
    our_rest, their_rest = ({str(path) for path in side.left_out} for side in sides)
    found = [FileChange(name, "added", {}) for name in sorted((theirs - ours) | (their_rest - our_rest))]
    found += [FileChange(name, "differs", {}) for name in sorted(our_rest & their_rest) if _differ(base, other, name)]
    found += [FileChange(name, "missing", {}) for name in sorted(ours - theirs)]
    for name in sorted(ours & theirs - _NO_DIFFERENCE):
        one, two = base.directory / name, other.directory / name
        if not filecmp.cmp(one, two, shallow=False) and (settings := _settings(one, two)) != {}:
            found.append(FileChange(name, "differs", settings or {}))
    return [change for change in found if change.name not in _NO_DIFFERENCE]


def _differ(base: CheckpointFiles, other: CheckpointFiles, name: str) -> bool:
    one, two = base.directory / name, other.directory / name
    return one.is_file() and two.is_file() and not filecmp.cmp(one, two, shallow=False)


def _settings(one: Path, two: Path) -> dict[str, tuple[Any, Any]] | None:
    """What differs between two JSON objects, nothing where only their layout does; `None` for other files."""
    if one.suffix != ".json":
        return None
    try:
        before, after = (json.loads(path.read_bytes()) for path in (one, two))
    except (ValueError, RecursionError):
        return None  # that the files differ is said; what a damaged one holds cannot be
    if not isinstance(before, dict) or not isinstance(after, dict):
        return None
    return {k: (before.get(k), after.get(k)) for k in sorted({*before, *after}) if before.get(k) != after.get(k)}
