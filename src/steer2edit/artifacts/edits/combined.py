"""Several edits of one base as one adapter. See docs/formats.md.

adapter_config.json, adapter_model.safetensors   the sum, as one LoRA of rank ≤ the number of edits
steer2edit.json                                  the manifest: members, weights, how they interfere
members/<name>/                                  the edits themselves, as convert wrote them
README.md                                        the model card
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from steer2edit.artifacts.atomic import MANIFEST_FILE, atomic_directory
from steer2edit.artifacts.cards import base_on_the_hub, base_to_load, portable, write_card
from steer2edit.artifacts.edits.adapter import load_edit
from steer2edit.artifacts.edits.interference import Interference, measure_interference
from steer2edit.artifacts.edits.lora_layout import lora_targets, write_lora
from steer2edit.artifacts.edits.low_rank import combined_factors, common_rank
from steer2edit.artifacts.edits.peft_files import ADAPTER_FILE, check_adapter_config, check_loads_through_peft
from steer2edit.artifacts.manifest import (
    SCHEMA_VERSION,
    BaseModelRecord,
    Record,
    Sha256,
    kind_of,
    now,
    package_versions,
    read_manifest,
    write_manifest,
)
from steer2edit.artifacts.tensors import file_sha256
from steer2edit.core import WeightEdit
from steer2edit.errors import ArtifactError, InvalidValueError, MismatchError
from steer2edit.models import LanguageModel

MEMBERS = "members"
COMBINED_KIND: Literal["combined-edit"] = "combined-edit"


class MemberRecord(Record):
    """One edit of a combined one."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]
    weight: Annotated[float, Field(allow_inf_nan=False)]
    sha256: Sha256


class CombinedManifest(Record):
    """What a combined edit consists of."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["combined-edit"] = COMBINED_KIND
    created: datetime
    base: BaseModelRecord
    members: Annotated[list[MemberRecord], Field(min_length=1)]
    rank: Annotated[int, Field(gt=0)]
    modules: list[str]
    interference: dict[str, Any]
    files: dict[str, Sha256]
    versions: dict[str, str]


@dataclass(frozen=True)
class Member:
    """One edit of several."""

    directory: Path  # where the edit is
    edit: WeightEdit  # what it holds
    weight: float  # what it is multiplied by


def read_members(directories: Sequence[Path], weights: Sequence[float]) -> list[Member]:
    """The edits of several directories; a combined one gives its members, their weights multiplied by its own.

    Raises:
        InvalidValueError: not one weight for every directory, or one that is not finite.
        MismatchError: they were made on different models.
        ArtifactError: a directory holds no edit, or is damaged.
    """
    if len(weights) != len(directories):
        raise InvalidValueError(f"got {len(weights)} weights for {len(directories)} edits. Give one weight for each.")
    for weight in weights:
        if not math.isfinite(weight) or weight == 0:
            raise InvalidValueError(
                f"a weight must be a finite number other than 0, got {weight}. Leave that edit out."
            )
    members = [m for directory, weight in zip(directories, weights, strict=True) for m in _members(directory, weight)]
    for member in members[1:]:
        _require_same_base(members[0], member)
    return members


def read_combined(directory: Path) -> CombinedManifest:
    """A combined edit's manifest.

    Raises:
        ArtifactError: it is missing, damaged, of a newer version, or of another kind.
    """
    if not directory.is_dir():
        raise ArtifactError(f"there is no edit directory {directory}. Give the directory that combine wrote.")
    return read_manifest(directory, CombinedManifest)


def load_combined(directory: Path | str) -> list[tuple[WeightEdit, float]]:
    """The members of a combined edit with their weights; the sum of `weight · ΔW` is what its adapter holds.

    Raises:
        ArtifactError: it is not there, not ours, of a newer version, incomplete, damaged, or was changed since.
    """
    directory = Path(directory)
    manifest = read_combined(directory)
    if manifest.files.get(ADAPTER_FILE) != file_sha256(directory / ADAPTER_FILE):
        raise ArtifactError(
            f"{directory / ADAPTER_FILE} is not the file that {MANIFEST_FILE} describes: it was changed or mixed up "
            "with another one. Combine the edits again."
        )
    check_adapter_config(directory, manifest.rank, manifest.modules)
    members = []
    for record in manifest.members:
        member = directory / MEMBERS / record.name
        edit = load_edit(member)
        if file_sha256(member / MANIFEST_FILE) != record.sha256:
            raise ArtifactError(f"{member} is another edit than the one that was combined. Combine the edits again.")
        members.append((edit, record.weight))
    return members


def load_members(directory: Path | str) -> list[tuple[WeightEdit, float]]:
    """The edits of a directory with their weights, whether it holds one edit (weight 1) or a combined one."""
    directory = Path(directory)
    return load_combined(directory) if kind_of(directory) == COMBINED_KIND else [(load_edit(directory), 1.0)]


def save_combined(
    model: LanguageModel, members: Sequence[Member], directory: Path | str, *, overwrite: bool = False
) -> Interference:
    """Write several edits as one adapter directory, complete or not at all, and load it through PEFT to check it.

    Args:
        model: the base, or its structure alone (`load_skeleton`); only names and shapes are read.
        members: the edits with their weights, all of this base.
        directory: must not exist.
        overwrite: replace an existing artifact of this package.

    Returns:
        How the edits interfere.

    Raises:
        InvalidValueError: the edits are empty or cancel each other.
        MismatchError: the edits are for other shapes than the model's.
        ArtifactError: the directory exists or cannot be written, or PEFT does not load what was written.
    """
    weighted = [(m.edit, m.weight) for m in members]
    factors = combined_factors(weighted)
    if not any(bool(f.a.any()) for f in factors.values()):
        raise InvalidValueError(
            "the sum of these edits changes nothing: they are empty, or cancel each other exactly. Give other "
            "edits or weights."
        )
    rank = common_rank(factors)
    targets = lora_targets(model, factors, rank)
    interference = measure_interference(weighted)
    with atomic_directory(directory, overwrite=overwrite) as scratch:
        write_lora(model, targets, rank, scratch)
        records = [_copy_member(m, f"{i + 1}-{_plain(m.directory.name)}", scratch) for i, m in enumerate(members)]
        manifest = CombinedManifest(
            created=now(),
            base=BaseModelRecord.model_validate(members[0].edit.metadata["model"]),
            members=records,
            rank=rank,
            modules=sorted(t.parameter for t in targets),
            interference=interference.to_json(),
            files={ADAPTER_FILE: file_sha256(scratch / ADAPTER_FILE)},
            versions=package_versions(),
        )
        write_manifest(manifest, scratch)
        write_card(
            "combined", scratch, base_model=base_on_the_hub(model), base=base_to_load(model),
            base_name=portable(manifest.base.name), manifest=manifest,
        )  # fmt: skip
        load_combined(scratch)
        check_loads_through_peft(model.network, scratch, {t.name: t.pair for t in targets})
    return interference


def _members(directory: Path, weight: float) -> list[Member]:
    if kind_of(directory) != COMBINED_KIND:
        return [Member(directory, load_edit(directory), weight)]
    names = [record.name for record in read_combined(directory).members]
    return [
        Member(directory / MEMBERS / name, edit, own * weight)
        for name, (edit, own) in zip(names, load_combined(directory), strict=True)
    ]


def _require_same_base(first: Member, other: Member) -> None:
    one, two = (m.edit.metadata["model"] for m in (first, other))
    if one["fingerprint"] != two["fingerprint"]:
        raise MismatchError(
            f"{first.directory} is an edit of {one['name']!r} (fingerprint {one['fingerprint'][:12]}), but "
            f"{other.directory} is one of {two['name']!r} (fingerprint {two['fingerprint'][:12]}): edits of different "
            "weights cannot be combined. Make both on the same base."
        )


def _plain(name: str) -> str:
    """A directory's name as one that every file system and the Hub take."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in name).strip(".-") or "edit"


def _copy_member(member: Member, name: str, scratch: Path) -> MemberRecord:
    target = scratch / MEMBERS / name
    target.mkdir(parents=True)
    for path in sorted(member.directory.iterdir()):
        if path.is_file():
            shutil.copyfile(path, target / path.name)
    return MemberRecord(name=name, weight=member.weight, sha256=file_sha256(target / MANIFEST_FILE))
