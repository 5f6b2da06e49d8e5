"""Files of rows as other tools write them: CSV, JSONL, JSON, Parquet and plain lines, on the disk or on the Hub."""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from steer2edit.errors import DataError

HUB = "hub:"
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet")
_HUB_SOURCE = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?:/(?P<file>.+))?")
_MARKS = {",": "commas", ";": "semicolons", "\t": "tabs"}

Record = tuple[int, Any]
"""A row with the line that it begins in, or 0 where the format has no lines."""


def read_records(source: str, columns_without_header: Sequence[str] = ()) -> list[Record]:
    """The rows of a file, or of a file of a Hub data set; see `read_table`."""
    path = _fetched(source) if source.startswith(HUB) else Path(source).expanduser()
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"cannot tell the format of {source}: the name must end in {', '.join(SUFFIXES)}.")
    if suffix == ".parquet":
        return _parquet(path)
    text, limit = read_text(path), csv.field_size_limit(2**31 - 1)  # cells may be of any size
    try:
        is_csv = suffix in (".csv", ".tsv")
        return list(_csv(source, text, columns_without_header) if is_csv else _records(source, text, suffix))
    finally:
        csv.field_size_limit(limit)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 where its mark says so; a DataError where it is neither, or missing."""
    try:
        raw = path.read_bytes()
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return raw.decode("utf-16", "surrogatepass")
        return raw.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}.") from error
    except UnicodeDecodeError as error:
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise DataError(
            f"{path}, line {line} is not UTF-8 (it has the byte {byte:#x}): save the file as UTF-8."
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}.") from error


def without_repeats(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of pairs; a ValueError where a name is there twice: which of the two is meant?"""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!a} is there twice: rename or remove one")
        found[name] = value
    return found


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}.") from error


def _records(where: str, text: str, suffix: str) -> Iterator[Record]:
    if suffix == ".json":
        rows = _parsed(where, text)
        if not isinstance(rows, list):
            raise DataError(f"{where} must hold a list of rows, got {type(rows).__name__}.")
        yield from ((0, row) for row in rows)
        return
    for line, content in enumerate(text.split("\n"), start=1):
        if plain := content.strip():
            yield line, _parsed(f"{where}, line {line}", content) if suffix == ".jsonl" else {"prompt": plain}


def _csv(where: str, text: str, columns_without_header: Sequence[str]) -> Iterator[Record]:
    """Rows by the header's names; an empty cell is `None`, and rows of empty cells are none.

    The header decides what separates cells: of comma, semicolon and tab the one that it has most of.
    """
    headers = {}
    for mark in _MARKS:
        first = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
        headers[mark] = next((cells for cells in first if any(map(str.strip, cells))), [""])
    mark = max(headers, key=lambda one: len(headers[one]))
    if len(headers[","]) == len(columns_without_header) and re.fullmatch(r"\s*[A-J]\s*", headers[","][-1]):
        mark, header = ",", list(columns_without_header)
        rows = _cells(where, text, mark)
    else:
        rows = _cells(where, text, mark, any(name.startswith(" ") for name in headers[mark]))
        _, header = next(rows, (0, []))
    while header and not header[-1].strip():
        header.pop()
    for number, (line, cells) in enumerate(rows, start=1):
        if any(cells[len(header) :]):
            raise DataError(
                f"{where}, row {number} (line {line}) has more cells than the header: put text that has "
                f"{_MARKS[mark]} into double quotes."
            )
        pairs = zip_longest(header, cells[: len(header)], fillvalue="")
        try:
            yield line, without_repeats((name, cell or None) for name, cell in pairs)
        except ValueError as error:
            raise DataError(f"{where}: the column {error}.") from error


def _cells(where: str, text: str, mark: str, spaced: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Rows with something in them, and the line that each begins in."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, skipinitialspace=spaced, strict=True)
    line = 1
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{where}, line {line} is not CSV: {error}. Put text that has {_MARKS[mark]}, quotes or line breaks into "
            "double quotes, and write a quote in it twice."
        ) from error


def _parquet(path: Path) -> list[Record]:
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise DataError(
            f"reading {path.name} needs the package pyarrow, which is not installed. Run: pip install pyarrow"
        ) from error
    try:
        rows: list[Mapping[str, Any]] = parquet.read_table(path).to_pylist()
    except (OSError, ValueError, ArrowException) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    return [(0, row) for row in rows]


def _fetched(source: str) -> Path:
    """The file of a Hub data set, in the Hub's cache."""
    parts = _HUB_SOURCE.fullmatch(source.removeprefix(HUB))
    if parts is None:
        raise DataError(f"{source!r} is not hub:OWNER/NAME/FILE.")
    from huggingface_hub import HfApi, hf_hub_download

    repository, revision, file = parts["id"], parts["revision"], parts["file"]
    try:
        if file:
            return Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision))
        files = HfApi().list_repo_files(repository, repo_type="dataset", revision=revision)
    except Exception as error:  # the client raises its own errors and those of two HTTP packages
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"cannot get {source!r} from the Hub: {reason} Download the file where the Hub can be reached, and give "
            "its path instead."
        ) from error
    readable = [name for name in files if name.endswith(SUFFIXES)]
    raise DataError(
        f"{source!r} names a data set, not a file of it. Give one of its files, as in "
        f"hub:{repository}/{readable[0] if readable else 'FILE'}; it has {', '.join(readable[:20]) or 'none to read'}."
    )
