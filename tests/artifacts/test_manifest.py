import json
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

from steer2edit.artifacts import CheckpointManifest, EditManifest, package_versions, read_manifest
from steer2edit.artifacts.manifest import plain_json, read_json
from steer2edit.core import Site, SiteEdit, WeightEdit
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
        ('{"schema_version": 1, "kind": "weight-edit"}', "is damaged: created: Field required"),
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


def test_a_checkpoint_manifest_of_version_1_is_read(tmp_path: Path) -> None:
    old = {
        "schema_version": 1,
        "kind": "edited-checkpoint",
        "created": "2026-01-01T00:00:00Z",
        "versions": {"steer2edit": "0.1.0"},
        "base": {"name": "tiny", "fingerprint": "0" * 64},
        "edit": {"model": {"name": "tiny", "fingerprint": "0" * 64}},
        "strength": 0.5,
        "source": "files",
        "edited_tensors": {"w": "model.safetensors"},
        "not_copied": [],
    }
    (tmp_path / "steer2edit.json").write_text(json.dumps(old))
    (applied,) = (found := read_manifest(tmp_path, CheckpointManifest)).edits
    assert (applied.strength, applied.sha256, found.edited_tensors["w"].file) == (0.5, None, "model.safetensors")
    ones = torch.ones(2)
    edit = WeightEdit({Site(0, "mlp"): SiteEdit(ones, ones, ones, ones)}, applied.edit)
    assert applied.is_of(edit)
    assert not applied.is_of(WeightEdit(edit.sites, {"model": {"name": "another"}}))


@pytest.mark.parametrize("key", ["created", "versions"])
def test_when_and_with_what_it_was_made_is_not_made_up(key: str, tmp_path: Path) -> None:
    raw = {"schema_version": 1, "kind": "weight-edit", "created": "2026-01-01T00:00:00Z", "versions": {}}
    (tmp_path / "steer2edit.json").write_text(json.dumps({name: raw[name] for name in raw if name != key}))
    with pytest.raises(ArtifactError, match=f"is damaged: {key}: Field required"):
        read_manifest(tmp_path, EditManifest)
