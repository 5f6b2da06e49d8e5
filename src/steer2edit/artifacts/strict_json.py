"""JSON of files that are not trusted: one object, in UTF-8, without a key twice."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from steer2edit.errors import ArtifactError


class _DuplicateKeyError(ValueError):
    pass


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object.

    Raises:
        ArtifactError: it is missing, or holds something else.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}. Check the path.") from error
    return parse_object(raw, str(path))


def parse_object(raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object.

    Args:
        raw: the file's bytes.
        what: what they are, for messages.

    Raises:
        ArtifactError: they are not JSON in UTF-8, hold something else, or name a key twice (readers would disagree on
            which one counts).
    """
    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{what} is not sound JSON ({error}): it is truncated, damaged, or another file. Get it again."
        ) from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{what} must hold a JSON object, but holds a {type(content).__name__}. Get it again.")
    return content


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _DuplicateKeyError(f"the key {twice!r} is there twice")
    return content
