"""The edit as a directory: a plain PEFT adapter, plus what the edit was made from. See docs/formats.md.

    adapter_config.json         PEFT's own
    adapter_model.safetensors   lora_A = aᵀ [1, m], lora_B = u [d, 1], for every site that changes anything
    steer2edit.json             the manifest
    steer2edit.safetensors      λ and g of every site; u and a of mixtures of experts, and of the sites that the
                                adapter leaves out
    README.md                   the model card

PEFT reads the first two and ignores the rest.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steer2edit.artifacts.atomic import MANIFEST_FILE, atomic_directory
from steer2edit.artifacts.edits.card import write_edit_card
from steer2edit.artifacts.edits.lora_layout import LoraTarget, lora_targets, write_lora
from steer2edit.artifacts.edits.low_rank import LowRank
from steer2edit.artifacts.edits.peft_files import (
    ADAPTER_FILE,
    CONFIG_FILE,
    Pair,
    adapter_keys,
    check_adapter_config,
    check_loads_through_peft,
    names_in_file,
)
from steer2edit.artifacts.manifest import (
    SCHEMA_VERSION,
    EditManifest,
    SiteRecord,
    TargetRecord,
    now,
    package_versions,
    plain_json,
    read_manifest,
    write_manifest,
)
from steer2edit.artifacts.tensors import file_sha256, read_tensors, write_tensors
from steer2edit.core import Site, SiteEdit, WeightEdit
from steer2edit.errors import ArtifactError, InvalidValueError
from steer2edit.models import LanguageModel

COMPONENTS_FILE = "steer2edit.safetensors"
_FIELDS = ("output_direction", "row", "magnitude", "importance")


def save_edit(
    model: LanguageModel,
    edit: WeightEdit,
    directory: Path | str,
    *,
    evaluation: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write an edit as a PEFT adapter directory, complete or not at all, and check it by loading it again.

    Factors are written in float32. A site whose row a is zero is left out of the adapter and kept in
    `steer2edit.safetensors`.

    Args:
        model: the model that the edit is for. It is only read.
        edit: the edit. Its metadata is kept as it is; if it does not say which model it is for, this one is
            noted there.
        directory: must not exist.
        evaluation: for the model card and the manifest: `conditions`, a list of objects with `label` and `metrics`
            (by name: value, low, high, n, unscored), and `metrics`, what each metric's name means; `beyond_budget`, a
            sentence for the card's first line.
        overwrite: replace an existing artifact of this package.

    Raises:
        MismatchError: the edit is for another model or shape.
        InvalidValueError: the edit is empty, metadata or evaluation is not JSON, or the evaluation has another form.
        ArtifactError: the directory exists or cannot be written, or PEFT does not load what was written.
    """
    model.require_fit(edit)
    if edit.is_empty:
        raise InvalidValueError(
            "this edit is empty: every ΔW is zero, so it changes nothing and there is nothing to save. Make one with "
            "a smaller ρ, or from other vectors."
        )
    edit = _with_plain_metadata(model, edit)
    targets = lora_targets(model, {s: LowRank.of(e) for s, e in edit.sites.items()}, rank=1)
    sites = _site_records(model, edit, targets)
    targets = [target for target in targets if sites[str(target.site)].in_adapter]
    with atomic_directory(directory, overwrite=overwrite) as scratch:
        write_lora(model, targets, 1, scratch)
        beside = [(s, e, field) for s, e in edit.sites.items() for field, _ in _component_shapes(sites[str(s)])]
        header = {"format": "pt", "kind": "weight-edit-components", "schema_version": str(SCHEMA_VERSION)}
        write_tensors({f"{s}.{field}": getattr(e, field) for s, e, field in beside}, scratch / COMPONENTS_FILE, header)
        manifest = EditManifest(
            created=now(),
            edit=dict(edit.metadata),
            sites=sites,
            files={name: file_sha256(scratch / name) for name in (ADAPTER_FILE, COMPONENTS_FILE)},
            evaluation=None if evaluation is None else plain_json(evaluation, "evaluation"),
            versions=package_versions(),
        )
        write_manifest(manifest, scratch)
        write_edit_card(model, edit, manifest, scratch)
        read = load_edit(scratch)
        if (read.metadata, read.digest()) != (edit.metadata, edit.digest()):
            raise ArtifactError(
                "the edit reads back differently from what was written: the disk may be failing. Nothing was kept; "
                "save it somewhere else."
            )
        check_loads_through_peft(model.network, scratch, {t.name: t.pair for t in targets})


def load_edit(directory: Path | str) -> WeightEdit:
    """Read an edit that `save_edit` wrote; tensors and metadata are bit for bit what was written.

    Raises:
        ArtifactError: it is not there, not ours, of a newer version, incomplete, damaged, or was changed since.
    """
    directory = Path(directory)
    _require_edit_directory(directory)
    manifest = read_manifest(directory, EditManifest)
    records = {_parse_site(name, directory): record for name, record in manifest.sites.items()}
    targets = [target for record in records.values() if record.in_adapter for target in record.adapter_targets()]
    check_adapter_config(directory, 1, [target.weight for target in targets])
    adapter = {key: shape for t in targets for key, shape in zip(adapter_keys(t.name), (t.a, t.b), strict=True)}
    components = {f"{site}.{field}": shape for site, r in records.items() for field, shape in _component_shapes(r)}
    tensors: dict[str, Tensor] = {}
    for name, shapes in ((ADAPTER_FILE, adapter), (COMPONENTS_FILE, components)):
        tensors |= _read(directory / name, shapes)
        if manifest.files.get(name) != file_sha256(directory / name):
            raise ArtifactError(
                f"{directory / name} is not the file that {MANIFEST_FILE} describes (another SHA-256): it was changed "
                "or mixed up with another edit's. Make the edit again."
            )
    return WeightEdit({site: _site_edit(site, record, tensors) for site, record in records.items()}, manifest.edit)


def _with_plain_metadata(model: LanguageModel, edit: WeightEdit) -> WeightEdit:
    """The edit as it will be read: float32 tensors, and metadata that JSON keeps and that names the model."""
    metadata = plain_json(edit.metadata, "edit's metadata")
    made_on = metadata.get("model") or {}
    if not isinstance(made_on, dict):
        raise InvalidValueError(
            f"the edit's metadata says model = {made_on!r}: it must be an object with name and fingerprint, as "
            "LanguageModel.describe() gives it, or be left out."
        )
    metadata["model"] = {**model.describe(), **made_on}
    sites = {s: replace(e, **{name: getattr(e, name).float().cpu() for name in _FIELDS}) for s, e in edit.sites.items()}
    return WeightEdit(sites, metadata)


def _site_records(model: LanguageModel, edit: WeightEdit, targets: list[LoraTarget]) -> dict[str, SiteRecord]:
    names = names_in_file(model, [target.name for target in targets])
    return {
        str(site): SiteRecord(
            module=model.sites[site].name,
            shape=model.sites[site].shape,
            components=e.magnitude.numel(),
            edited_components=int(e.magnitude.count_nonzero()),
            in_adapter=bool(e.row.any()),
            experts=e.experts,
            targets=_target_records([target for target in targets if target.site == site], names),
        )
        for site, e in edit.sites.items()
    }


def _target_records(targets: list[LoraTarget], names: Mapping[str, str]) -> list[TargetRecord] | None:
    """The targets of a site that is not one module of its own name, which its record would tell."""
    if not any(t.by_parameter or names[t.name] != t.name for t in targets):
        return None
    return [
        TargetRecord.model_validate({"name": names[t.name], "parameter": t.parameter, **_shapes(t.pair)})
        for t in targets
    ]


def _shapes(pair: Pair) -> dict[str, tuple[int, ...]]:
    return {"a": tuple(pair.a.shape), "b": tuple(pair.b.shape)}


def _component_shapes(record: SiteRecord) -> list[tuple[str, tuple[int, ...]]]:
    """What is beside the adapter of a site: all four where the adapter does not hold u and a, or not as they are."""
    sizes = zip(_FIELDS, (*record.shape, record.components, record.components), strict=True)
    from_adapter = record.in_adapter and record.experts is None
    return [(field, (size,)) for field, size in sizes if not from_adapter or field in ("magnitude", "importance")]


def _require_edit_directory(directory: Path) -> None:
    if not directory.is_dir():
        raise ArtifactError(f"there is no edit directory {directory}. Give the directory that convert wrote.")
    if (directory / MANIFEST_FILE).is_file():
        return
    if (directory / CONFIG_FILE).is_file():
        raise ArtifactError(
            f"{directory} is a PEFT adapter without {MANIFEST_FILE}: steer2edit did not write it, so which components "
            "it edits is unknown. Audit it (steer2edit inspect --base BASE --edited ADAPTER), or give a directory that "
            "convert wrote."
        )
    raise ArtifactError(f"{directory} holds no edit (no {MANIFEST_FILE}). Give the directory that convert wrote.")


def _parse_site(name: str, directory: Path) -> Site:
    try:
        return Site.parse(name)
    except InvalidValueError as error:
        raise ArtifactError(f"{directory / MANIFEST_FILE} is damaged: sites: {error}") from error


def _read(path: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    tensors, _ = read_tensors(path, "tensors of an edit")
    missing, foreign = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or foreign:
        found = [*(f"{key} is missing" for key in missing[:1]), *(f"{key} is not expected" for key in foreign[:1])]
        raise ArtifactError(
            f"{path} does not hold what {MANIFEST_FILE} says: {', '.join(found)} ({len(missing) + len(foreign)} such "
            "tensors). It belongs to another edit, or is damaged."
        )
    for key, shape in expected.items():
        tensor = tensors[key]
        if tensor.dtype != torch.float32 or tuple(tensor.shape) != shape:
            raise ArtifactError(
                f"{path}: {key} must be float32 of shape {list(shape)}, but is {str(tensor.dtype)[6:]} of shape "
                f"{list(tensor.shape)}."
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ArtifactError(f"{path}: {key} has NaN or infinite entries: the edit cannot be applied.")
    return tensors


def _site_edit(site: Site, record: SiteRecord, tensors: Mapping[str, Tensor]) -> SiteEdit:
    u, a, magnitude, importance = (tensors.get(f"{site}.{field}") for field in _FIELDS)
    if u is None or a is None:
        key_a, key_b = adapter_keys(record.adapter_targets()[0].name)
        u, a = tensors[key_b][:, 0].contiguous(), tensors[key_a][0]
    assert magnitude is not None
    assert importance is not None
    return SiteEdit(u, a, magnitude, importance, record.experts)
