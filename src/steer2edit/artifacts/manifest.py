"""`steer2edit.json`: what an artifact is, what it was made from, and with which versions. See docs/formats.md."""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata as packages
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, FiniteFloat, model_validator

from steer2edit.artifacts.atomic import MANIFEST_FILE
from steer2edit.artifacts.facts import BaseCheckpointRecord, BaseModelRecord, EditMetadata, Record, Sha256
from steer2edit.artifacts.tensors import file_sha256
from steer2edit.core import Experts, WeightEdit
from steer2edit.errors import ArtifactError, InvalidValueError
from steer2edit.estimates import Condition
from steer2edit.steering.data_files import without_repeats

SCHEMA_VERSION: Literal[1] = 1
Format = Literal["peft", "gguf-lora", "vllm"]
"""Layouts that an edit is exported in."""
_PACKAGES = ("steer2edit", "torch", "transformers", "peft", "safetensors")

Count = Annotated[int, Field(gt=0)]


def now() -> datetime:
    """The time in UTC, in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


@cache
def package_versions() -> dict[str, str]:
    """Versions of this package and of those whose behaviour an artifact depends on."""
    return {name: packages.version(name) for name in _PACKAGES}


class Manifest(Record):
    """What `steer2edit.json` says of every artifact; each kind has a `schema_version` and a `kind` besides."""

    created: datetime = Field(default_factory=now)
    versions: dict[str, str] = Field(default_factory=package_versions)


class TargetRecord(Record):
    """One target of an adapter: the module as the file calls it, the weight, shapes."""

    name: str
    parameter: str
    a: tuple[Count, Count]
    b: tuple[Count, Count]


class SiteRecord(Record):
    """One site of an edit. Targets are listed unless the only one is `module`, told to PEFT by its name."""

    module: str
    shape: tuple[Count, Count]
    components: Count
    edited_components: Annotated[int, Field(ge=0)]
    in_adapter: bool
    experts: Experts | None = None
    targets: list[TargetRecord] | None = None

    @property
    def in_file(self) -> list[TargetRecord]:
        """What the adapter's file has of it."""
        d, m = self.shape
        own = TargetRecord(name=self.module, parameter=f"{self.module}.weight", a=(1, m), b=(d, 1))
        return (self.targets or [own]) if self.in_adapter else []


class EvaluationRecord(Record):
    """The part of an evaluation that the model card shows: rows, what each metric's name means, and a broken budget."""

    conditions: list[Condition]
    metrics: dict[str, str] = Field(default={})
    beyond_budget: str = ""


class EditManifest(Manifest):
    """`steer2edit.json` of an adapter directory."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["weight-edit"] = "weight-edit"
    edit: EditMetadata
    sites: Annotated[dict[str, SiteRecord], Field(min_length=1)]
    files: dict[str, Sha256]
    evaluation: dict[str, Any] | None = None


class AppliedEditRecord(Record):
    """One of the edits that were added, and its strength. `sha256` is `WeightEdit.digest`; version 1 had none."""

    edit: EditMetadata
    strength: FiniteFloat
    sha256: Sha256 | None

    def is_of(self, edit: WeightEdit) -> bool:
        """Whether this is that edit."""
        return self.sha256 == edit.digest() if self.sha256 else self.edit == dict(edit.metadata)


class EditedTensorRecord(Record):
    """One tensor that differs from the base's. Version 1 had only the file."""

    file: str
    sha256: Sha256 | None
    site: str | None
    projections: list[str]


class CheckpointManifest(Manifest):
    """`steer2edit.json` of an edited checkpoint."""

    schema_version: Literal[1, 2] = 2
    kind: Literal["edited-checkpoint"] = "edited-checkpoint"
    base: BaseCheckpointRecord
    edits: Annotated[list[AppliedEditRecord], Field(min_length=1)]
    source: Literal["files", "memory"]
    edited_tensors: dict[str, EditedTensorRecord]
    not_copied: list[str]
    earlier_edits: tuple[AppliedEditRecord, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _read_version_1(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or raw.get("schema_version") != 1:
            return raw
        tensors = raw.get("edited_tensors")
        if isinstance(tensors, dict):
            unknown: dict[str, Any] = {"sha256": None, "site": None, "projections": []}
            tensors = {name: {"file": file, **unknown} for name, file in tensors.items()}
        applied = {"edit": raw.get("edit"), "strength": raw.get("strength"), "sha256": None}
        return {**raw, "edits": [applied], "edited_tensors": tensors}


class MemberRecord(Record):
    """One edit of a combined one; `sha256` is its manifest's."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]
    weight: FiniteFloat
    sha256: Sha256


class CombinedManifest(Manifest):
    """`steer2edit.json` of several edits as one adapter."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["combined-edit"] = "combined-edit"
    base: BaseModelRecord
    members: Annotated[list[MemberRecord], Field(min_length=1)]
    rank: Count
    modules: list[str]
    interference: dict[str, Any]
    files: dict[str, Sha256]


class ExportedAdapter(Record):
    """One adapter of an export: a file or a folder, and its files."""

    strength: FiniteFloat
    path: str
    files: dict[str, Sha256]


class ExportManifest(Manifest):
    """`steer2edit.json` of an export."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["export"] = "export"
    format: Format
    base: BaseModelRecord
    source_sha256: Sha256
    rank: Count
    adapters: Annotated[list[ExportedAdapter], Field(min_length=1)]
    usage: list[str]


_M = TypeVar("_M", bound=Manifest)


def plain_json(value: Any, what: str) -> Any:
    """The value as JSON would give it back: mappings as dictionaries, tuples as lists, text keys.

    An InvalidValueError where something in it is not JSON: NaN, an infinity, a tensor, ...
    """

    def as_dictionary(value: object) -> dict[Any, Any]:
        if isinstance(value, Mapping):
            return dict(value)
        raise TypeError(f"{type(value).__name__} is not JSON")

    try:
        return json.loads(json.dumps(value, default=as_dictionary, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidValueError(
            f"the {what} cannot be written as JSON: {error}. Use text, finite numbers, true/false, null, lists and "
            "dictionaries only."
        ) from error


def require_unchanged(directory: Path, files: Mapping[str, str | None], remedy: str) -> None:
    """Refuse, with an ArtifactError, files that are outside of a directory, missing, or without the SHA-256 given."""
    for name, sha256 in files.items():
        path = directory / name
        if not path.resolve().is_relative_to(directory.resolve()):
            raise ArtifactError(f"{directory / MANIFEST_FILE} names {name}, which is outside of its directory.")
        if not path.is_file() or file_sha256(path) != sha256:
            raise ArtifactError(
                f"{path} is missing, or is not the file that {MANIFEST_FILE} describes (another SHA-256): it was "
                f"changed or mixed up with another edit's. {remedy}"
            )


def write_manifest(manifest: Manifest | Mapping[str, Any], directory: Path) -> None:
    """Write `steer2edit.json` into a directory."""
    content = manifest.model_dump(mode="json") if isinstance(manifest, Manifest) else dict(manifest)
    content = {"schema_version": None, "kind": None} | content  # what it is comes first, and the versions last
    content["versions"] = content.pop("versions")
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    (directory / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def read_manifest(directory: Path, kind: type[_M]) -> _M:
    """Read a directory's `steer2edit.json`; an ArtifactError where it is missing, damaged, newer or of another kind."""
    path = directory / MANIFEST_FILE
    raw = read_json(path)
    expected, found = kind.model_fields["kind"].default, raw.get("kind")
    if found != expected:  # before the version: each kind counts its own
        remedy = " `apply`, `export` and `push` take a combined edit; elsewhere use its members, in members/."
        remedy = remedy if found == "combined-edit" else ""
        raise ArtifactError(f"{path} describes a {found!r}, but a {expected!r} is needed here.{remedy}")
    require_version(raw.get("schema_version"), str(path), kind.model_fields["schema_version"].default)
    if missing := sorted({"created", "versions"} - raw.keys()):  # which a manifest that is being made gets by itself
        raise ArtifactError(f"{path} is damaged: {missing[0]}: Field required. Make it again.")
    return kind.read(raw, f"{path} is damaged", "Make it again.")


def kind_of(directory: Path) -> str | None:
    """What a directory of this package holds; `None` if it is none."""
    path = directory / MANIFEST_FILE
    kind = read_json(path).get("kind") if path.is_file() else None
    return kind if isinstance(kind, str) else None


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object; if it is missing or holds something else, raises as `parse_object`."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}. Check the path.") from error
    return parse_object(raw, str(path))


def parse_object(raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object of a file that is not trusted, `what` in messages.

    An ArtifactError where the bytes are not JSON in UTF-8, hold something else or a number that is not finite, or name
    a key twice: readers would disagree on which one counts.
    """
    try:
        text = raw.decode("utf-8")
        content = json.loads(text, object_pairs_hook=without_repeats, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{what} is not sound JSON ({error}): it is truncated, damaged, or another file. Get it again."
        ) from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{what} must hold a JSON object, but holds a {type(content).__name__}. Get it again.")
    return content


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number} is not a finite number")
    return value


def require_version(version: object, what: str, newest: int = SCHEMA_VERSION, oldest: int = 1) -> None:
    """Refuse, with an ArtifactError, a schema version after `newest` or before `oldest`, or what is no version."""
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ArtifactError(f"{what} has no valid schema version (got {version!r}): steer2edit did not write it.")
    if version > newest:
        raise ArtifactError(
            f"{what} has schema version {version}, and this steer2edit reads up to {newest}. Upgrade: "
            "pip install --upgrade steer2edit."
        )
    if version < oldest:
        raise ArtifactError(
            f"{what} has schema version {version}, of an earlier steer2edit, and this one reads from {oldest} on. Make "
            "it again, in a new folder."
        )
