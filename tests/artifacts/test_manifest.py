from pathlib import Path
from types import MappingProxyType

import pytest

from steer2edit.artifacts import CheckpointManifest, EditManifest, package_versions, read_manifest
from steer2edit.artifacts.manifest import plain_json, read_json
from steer2edit.errors import ArtifactError, InvalidValueError


def test_plain_json_gives_what_json_gives() -> None:
    value = {"a": (1, 2), "b": MappingProxyType({"c": None}), "d": 0.1, "e": [True, "x"]}
    assert plain_json(value, "value") == {"a": [1, 2], "b": {"c": None}, "d": 0.1, "e": [True, "x"]}
    for bad in (float("inf"), {"x": object()}, b"bytes"):
        with pytest.raises(InvalidValueError, match="the value cannot be written as JSON"):
            plain_json(bad, "value")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not sound JSON"),
        (b'{"kind": ', "is not sound JSON"),
        (b"\xff\xfe\x00", "is not sound JSON"),
        (b"[" * 100_000, "is not sound JSON"),
        (b"[1]", "must hold a JSON object, but holds a list"),
    ],
)
def test_hostile_json(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "steer2edit.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        read_json(tmp_path / "steer2edit.json")


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot read .*steer2edit.json: No such file"):
        read_manifest(tmp_path, EditManifest)


def test_versions_name_what_the_files_depend_on() -> None:
    assert set(package_versions()) == {"steer2edit", "torch", "transformers", "peft", "safetensors"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema_version": 2, "kind": "weight-edit"}', "schema version 2, .* Upgrade"),
        ('{"schema_version": true, "kind": "weight-edit"}', "no valid schema version"),
        ('{"schema_version": 0, "kind": "weight-edit"}', "no valid schema version"),
        ('{"schema_version": 1}', "describes a None, but a 'weight-edit'"),
        ('{"kind": "weight-edit"}', "no valid schema version"),
        ('{"schema_version": 1, "kind": "edited-checkpoint"}', "describes a 'edited-checkpoint', but a 'weight-edit'"),
        ('{"schema_version": 1, "kind": "weight-edit"}', "is damaged: edit: Field required"),
    ],
)
def test_manifest_of_another_version_or_kind(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "steer2edit.json").write_text(content)
    with pytest.raises(ArtifactError, match=message):
        read_manifest(tmp_path, EditManifest)


def test_edit_manifest_is_no_checkpoint_manifest(tmp_path: Path) -> None:
    (tmp_path / "steer2edit.json").write_text('{"schema_version": 1, "kind": "weight-edit"}')
    with pytest.raises(ArtifactError, match="'weight-edit', but a 'edited-checkpoint'"):
        read_manifest(tmp_path, CheckpointManifest)
