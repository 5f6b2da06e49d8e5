"""`steer2edit.json` of an edited checkpoint. See docs/formats.md."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from steer2edit.artifacts.manifest import EditMetadata, Record, Sha256
from steer2edit.core import WeightEdit

CHECKPOINT_SCHEMA_VERSION: Literal[2] = 2


class BaseCheckpointRecord(Record):
    """The model that was edited; its fingerprint is unknown where some of its projections are quantised."""

    name: str
    fingerprint: Sha256 | None
    revision: str | None = None
    model_type: str | None = None


class AppliedEditRecord(Record):
    """One of the edits that were added, and its strength. `sha256` is `WeightEdit.digest`; version 1 had none."""

    edit: EditMetadata
    strength: Annotated[float, Field(allow_inf_nan=False)]
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


class CheckpointManifest(Record):
    """`steer2edit.json` of an edited checkpoint."""

    schema_version: Literal[1, 2] = CHECKPOINT_SCHEMA_VERSION
    kind: Literal["edited-checkpoint"] = "edited-checkpoint"
    created: datetime
    base: BaseCheckpointRecord
    edits: Annotated[list[AppliedEditRecord], Field(min_length=1)]
    source: Literal["files", "memory"]
    edited_tensors: dict[str, EditedTensorRecord]
    not_copied: list[str]
    versions: dict[str, str]
    earlier_edits: tuple[AppliedEditRecord, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _read_version_1(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or raw.get("schema_version") != 1:
            return raw
        tensors = raw.get("edited_tensors")
        applied = {"edit": raw.get("edit"), "strength": raw.get("strength"), "sha256": None}
        return {**raw, "edits": [applied], "edited_tensors": _tensors_of_version_1(tensors)}


def _tensors_of_version_1(files: Any) -> Any:
    if not isinstance(files, dict):
        return files
    return {name: {"file": file, "sha256": None, "site": None, "projections": []} for name, file in files.items()}
