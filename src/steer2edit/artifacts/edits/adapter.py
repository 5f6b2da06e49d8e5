"""The edit, or several as one, as a directory: a plain PEFT adapter, plus what it was made from. See docs/formats.md.

The adapter is lora_A = aᵀ [1, m], lora_B = u [d, 1] for every site that changes anything; beside it are λ and g of
every site, and u and a of mixtures of experts and of the sites that the adapter leaves out. A combined edit has the
factors of the sum, and the edits themselves beside it.
"""

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steer2edit.artifacts.atomic import MANIFEST_FILE, atomic_directory, require_read_back
from steer2edit.artifacts.cards import base_on_the_hub, base_to_load, portable, write_card, write_edit_card
from steer2edit.artifacts.edits import lora
from steer2edit.artifacts.edits.lora import ADAPTER_FILE, CONFIG_FILE, LoraTarget, check_loads_through_peft
from steer2edit.artifacts.edits.low_rank import Interference, LowRank, combined_factors, measure_interference
from steer2edit.artifacts.manifest import (
    CombinedManifest,
    EditManifest,
    MemberRecord,
    SiteRecord,
    TargetRecord,
    kind_of,
    plain_json,
    read_manifest,
    require_unchanged,
    write_manifest,
)
from steer2edit.artifacts.tensors import file_sha256, read_tensors, write_tensors
from steer2edit.core import Site, SiteEdit, WeightEdit
from steer2edit.errors import ArtifactError, InvalidValueError, MismatchError
from steer2edit.models import LanguageModel

MEMBERS = "members"
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
    `steer2edit.safetensors`. The evaluation, for card and manifest, has `conditions`, `metrics` and `beyond_budget`
    (docs/formats.md). A MismatchError where the edit is for another model or shape, an InvalidValueError where it is
    empty or what is said of it has another form.
    """
    model.require_fit(edit)
    if edit.is_empty:
        raise InvalidValueError(
            "this edit is empty: every ΔW is zero, so it changes nothing and there is nothing to save. Make a "
            "stronger one (a strength other than 0; by the paper's rule a smaller ρ), or one from other vectors."
        )
    edit = _with_plain_metadata(model, edit)
    targets = lora.lora_targets(model, {s: LowRank.of(e) for s, e in edit.sites.items()})
    names = lora.names_in_file(model, [target.name for target in targets])
    own = {s: [target for target in targets if target.site == s] for s in edit.sites}
    sites = {str(s): _site_record(model, s, e, own[s], names) for s, e in edit.sites.items()}
    targets = [target for target in targets if sites[str(target.site)].in_adapter]
    with atomic_directory(directory, overwrite=overwrite) as scratch:
        lora.write_lora(model, targets, scratch)
        beside = {f"{s}.{name}": getattr(e, name) for s, e in edit.sites.items() for name in _beside(sites[str(s)])}
        header = {"format": "pt", "kind": "weight-edit-components", "schema_version": "1"}
        write_tensors(beside, scratch / COMPONENTS_FILE, header)
        manifest = EditManifest(
            edit=dict(edit.metadata),
            sites=sites,
            files={name: file_sha256(scratch / name) for name in (ADAPTER_FILE, COMPONENTS_FILE)},
            evaluation=None if evaluation is None else plain_json(evaluation, "evaluation"),
        )
        write_manifest(manifest, scratch)
        write_edit_card(model, edit, manifest, scratch)
        read = load_edit(scratch)
        require_read_back((read.metadata, read.digest()) == (edit.metadata, edit.digest()), "the edit")
        check_loads_through_peft(model.network, scratch, {t.name: t.pair for t in targets})


def load_edit(directory: Path | str) -> WeightEdit:
    """Read an edit that `save_edit` wrote, bit for bit; an ArtifactError where it is not there, not ours or damaged."""
    directory = Path(directory)
    if not (directory / MANIFEST_FILE).is_file():
        remedy = "Give the directory that convert wrote."
        if (directory / CONFIG_FILE).is_file():
            remedy = f"Audit this adapter of others: steer2edit inspect --base BASE --edited {directory}."
        raise ArtifactError(f"{directory} holds no edit of steer2edit (no {MANIFEST_FILE}). {remedy}")
    manifest = read_manifest(directory, EditManifest)
    try:
        records = {Site.parse(name): record for name, record in manifest.sites.items()}
    except InvalidValueError as error:
        raise ArtifactError(f"{directory / MANIFEST_FILE} is damaged: sites: {error}") from error
    targets = [target for record in records.values() for target in record.in_file]
    lora.check_adapter_config(directory, 1, [target.parameter for target in targets])
    shapes: dict[str, dict[str, tuple[int, ...]]] = {ADAPTER_FILE: {}, COMPONENTS_FILE: {}}
    for target in targets:
        shapes[ADAPTER_FILE] |= zip(lora.adapter_keys(target.name), (target.a, target.b), strict=True)
    for site, record in records.items():
        sizes = zip(_FIELDS, (*record.shape, record.components, record.components), strict=True)
        shapes[COMPONENTS_FILE] |= {f"{site}.{field}": (n,) for field, n in sizes if field in _beside(record)}
    tensors: dict[str, Tensor] = {}
    for name, expected in shapes.items():
        found = read_tensors(directory / name, "tensors of an edit")[0]
        _require_shapes(directory / name, found, expected)
        tensors |= found
    require_unchanged(directory, {name: manifest.files.get(name) for name in shapes}, "Make the edit again.")
    try:
        return WeightEdit({site: _site_edit(site, record, tensors) for site, record in records.items()}, manifest.edit)
    except InvalidValueError as error:
        raise ArtifactError(
            f"{directory} does not hold what its {MANIFEST_FILE} says ({error}): the edit is damaged. Make it again."
        ) from error


def _with_plain_metadata(model: LanguageModel, edit: WeightEdit) -> WeightEdit:
    """The edit as it will be read: float32 tensors, and metadata that JSON keeps and that names the model."""
    metadata = plain_json(edit.metadata, "edit's metadata")
    if not isinstance(made_on := metadata.get("model") or {}, dict):
        raise InvalidValueError(f"an edit's model must be as LanguageModel.describe() gives it, got {made_on!r}.")
    metadata["model"] = {**model.describe(), **made_on}
    sites = {s: replace(e, **{name: getattr(e, name).float().cpu() for name in _FIELDS}) for s, e in edit.sites.items()}
    return WeightEdit(sites, metadata)


def _site_record(
    model: LanguageModel, site: Site, edit: SiteEdit, targets: Sequence[LoraTarget], names: Mapping[str, str]
) -> SiteRecord:
    """What the manifest says of a site; its targets where it is not one module of its own name, told to PEFT by it."""
    own = [
        TargetRecord(name=names[t.name], parameter=t.parameter, a=a.shape, b=b.shape)  # type: ignore[arg-type]
        for t in targets
        for a, b in [t.pair]
    ]
    return SiteRecord(
        module=model.sites[site].name,
        shape=model.sites[site].shape,
        components=edit.magnitude.numel(),
        edited_components=int(edit.magnitude.count_nonzero()),
        in_adapter=bool(edit.row.any()),
        experts=edit.experts,
        targets=own if any(t.by_parameter or names[t.name] != t.name for t in targets) else None,
    )


def _beside(record: SiteRecord) -> tuple[str, ...]:
    """What is beside the adapter of a site: all four where the adapter does not hold u and a, or not as they are."""
    return _FIELDS[2:] if record.in_adapter and record.experts is None else _FIELDS


def _require_shapes(path: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a tensor more or less than the manifest says, or another: PEFT would do more than the components tell."""
    float32 = {key: (torch.float32, shape) for key, shape in shapes.items()}
    found = {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()}
    if wrong := sorted(key for key in float32.keys() | found.keys() if float32.get(key) != found.get(key)):
        key, shown = wrong[0], [" ".join(map(str, one.get(wrong[0], ("nothing",)))) for one in (found, float32)]
        raise ArtifactError(
            f"{path} does not hold what its {MANIFEST_FILE} says: {key} is {shown[0]}, not {shown[1]} ({len(wrong)} "
            "such tensors). It belongs to another edit, or is damaged."
        )


def _site_edit(site: Site, record: SiteRecord, tensors: Mapping[str, Tensor]) -> SiteEdit:
    found = {field: tensors[f"{site}.{field}"] for field in _beside(record)}
    if "row" not in found:
        key_a, key_b = lora.adapter_keys(record.in_file[0].name)
        found |= {"output_direction": tensors[key_b][:, 0].contiguous(), "row": tensors[key_a][0]}
    return SiteEdit(**found, experts=record.experts)


@dataclass(frozen=True)
class Member:
    """One edit of several."""

    directory: Path  # where the edit is
    edit: WeightEdit  # what it holds
    weight: float  # what it is multiplied by


def load_members(directory: Path | str) -> list[tuple[WeightEdit, float]]:
    """The edits of a directory with their weights, whether it holds one edit (weight 1) or a combined one."""
    return [(member.edit, member.weight) for member in _members(Path(directory))]


def _members(directory: Path) -> list[Member]:
    """What a directory holds; of a combined edit, `Σ weight · ΔW` is in its adapter. Raises as `load_edit`."""
    if kind_of(directory) != CombinedManifest.model_fields["kind"].default:
        return [Member(directory, load_edit(directory), 1.0)]
    manifest = read_manifest(directory, CombinedManifest)
    require_unchanged(directory, {ADAPTER_FILE: manifest.files.get(ADAPTER_FILE)}, "Combine the edits again.")
    lora.check_adapter_config(directory, manifest.rank, manifest.modules)
    members = [Member(path := directory / MEMBERS / r.name, load_edit(path), r.weight) for r in manifest.members]
    for member, record in zip(members, manifest.members, strict=True):
        if file_sha256(member.directory / MANIFEST_FILE) != record.sha256:
            raise ArtifactError(
                f"{member.directory} is another edit than the one that was combined. Combine the edits again."
            )
    return members


def read_members(directories: Sequence[Path], weights: Sequence[float]) -> list[Member]:
    """The edits of several directories; a combined one gives its members, their weights multiplied by its own.

    A MismatchError where they were made on different models.
    """
    if len(weights) != len(directories):
        raise InvalidValueError(f"got {len(weights)} weights for {len(directories)} edits. Give one weight for each.")
    for weight in weights:
        if not math.isfinite(weight) or weight == 0:
            raise InvalidValueError(f"a weight must be a finite number other than 0, got {weight}. Leave the edit out.")
    members = [
        replace(member, weight=member.weight * weight)
        for directory, weight in zip(directories, weights, strict=True)
        for member in _members(directory)
    ]
    for member in members[1:]:
        one, two = (m.edit.metadata["model"] for m in (members[0], member))
        if one["fingerprint"] != two["fingerprint"]:
            raise MismatchError(
                f"{members[0].directory} is an edit of {one['name']!r} (fingerprint {one['fingerprint'][:12]}), but "
                f"{member.directory} is one of {two['name']!r} (fingerprint {two['fingerprint'][:12]}): edits of "
                "different weights cannot be combined. Make both on the same base."
            )
    return members


def save_combined(
    model: LanguageModel, members: Sequence[Member], directory: Path | str, *, overwrite: bool = False
) -> Interference:
    """Write several edits of one base as one adapter directory, complete or not at all; returns how they interfere.

    Of the model only names and shapes are read (`load_skeleton` will do). An InvalidValueError where the edits are
    empty or cancel each other.
    """
    weighted = [(m.edit, m.weight) for m in members]
    factors = combined_factors(weighted)
    if not any(bool(f.a.any()) for f in factors.values()):
        raise InvalidValueError("the edits are empty, or cancel each other exactly. Give other edits or weights.")
    targets = lora.lora_targets(model, factors)
    interference = measure_interference(weighted)
    with atomic_directory(directory, overwrite=overwrite) as scratch:
        lora.write_lora(model, targets, scratch)
        records = []
        for number, member in enumerate(members, 1):  # under names that every file system and the Hub take
            name = f"{number}-{re.sub(r'[^A-Za-z0-9_.-]', '-', member.directory.name).strip('.-') or 'edit'}"
            (copy := scratch / MEMBERS / name).mkdir(parents=True)
            for path in member.directory.iterdir():
                if path.is_file():
                    shutil.copyfile(path, copy / path.name)
            record = MemberRecord(name=name, weight=member.weight, sha256=file_sha256(copy / MANIFEST_FILE))
            records.append(record)
        manifest = CombinedManifest(
            base=members[0].edit.metadata["model"],
            members=records,
            rank=targets[0].rank,
            modules=sorted(t.parameter for t in targets),
            interference=asdict(interference),
            files={ADAPTER_FILE: file_sha256(scratch / ADAPTER_FILE)},
        )
        write_manifest(manifest, scratch)
        write_card(
            "combined", scratch, base_model=base_on_the_hub(model), base=base_to_load(model),
            base_name=portable(manifest.base.name), manifest=manifest,
        )  # fmt: skip
        load_members(scratch)
        check_loads_through_peft(model.network, scratch, {t.name: t.pair for t in targets})
    return interference
