"""Several edits of one base as one adapter, with the edits themselves beside it. See docs/formats.md."""

import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from steer2edit.artifacts.atomic import MANIFEST_FILE, atomic_directory
from steer2edit.artifacts.cards import base_on_the_hub, base_to_load, portable, write_card
from steer2edit.artifacts.edits import lora
from steer2edit.artifacts.edits.adapter import load_edit
from steer2edit.artifacts.edits.lora import ADAPTER_FILE
from steer2edit.artifacts.edits.low_rank import Interference, combined_factors, measure_interference
from steer2edit.artifacts.manifest import (
    BaseModelRecord,
    Count,
    Manifest,
    Record,
    Sha256,
    kind_of,
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


class CombinedManifest(Manifest):
    """What a combined edit consists of."""

    schema_version: Literal[1] = 1
    kind: Literal["combined-edit"] = COMBINED_KIND
    base: BaseModelRecord
    members: Annotated[list[MemberRecord], Field(min_length=1)]
    rank: Count
    modules: list[str]
    interference: dict[str, Any]
    files: dict[str, Sha256]


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
    members = []
    for directory, weight in zip(directories, weights, strict=True):
        manifest = read_manifest(directory, CombinedManifest) if _is_combined(directory) else None
        names = [Path()] if manifest is None else [Path(MEMBERS, record.name) for record in manifest.members]
        found = zip(names, load_members(directory), strict=True)
        members += [Member(directory / name, edit, own * weight) for name, (edit, own) in found]
    for member in members[1:]:
        one, two = (m.edit.metadata["model"] for m in (members[0], member))
        if one["fingerprint"] != two["fingerprint"]:
            raise MismatchError(
                f"{members[0].directory} is an edit of {one['name']!r} (fingerprint {one['fingerprint'][:12]}), but "
                f"{member.directory} is one of {two['name']!r} (fingerprint {two['fingerprint'][:12]}): edits of "
                "different weights cannot be combined. Make both on the same base."
            )
    return members


def load_combined(directory: Path | str) -> list[tuple[WeightEdit, float]]:
    """The members of a combined edit with their weights, `Σ weight · ΔW` in its adapter; raises as `load_edit`."""
    directory = Path(directory)
    manifest = read_manifest(directory, CombinedManifest)
    if manifest.files.get(ADAPTER_FILE) != file_sha256(directory / ADAPTER_FILE):
        raise ArtifactError(
            f"{directory / ADAPTER_FILE} is not the file that {MANIFEST_FILE} describes: it was changed or mixed up "
            "with another one. Combine the edits again."
        )
    lora.check_adapter_config(directory, manifest.rank, manifest.modules)
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
    return load_combined(directory) if _is_combined(Path(directory)) else [(load_edit(directory), 1.0)]


def _is_combined(directory: Path) -> bool:
    return kind_of(directory) == COMBINED_KIND


def save_combined(
    model: LanguageModel, members: Sequence[Member], directory: Path | str, *, overwrite: bool = False
) -> Interference:
    """Write several edits as one adapter directory, complete or not at all, and load it through PEFT to check it.

    Args:
        model: the base, or its structure alone (`load_skeleton`); only names and shapes are read.
        members: the edits with their weights, all of this base.
        directory: as of `save_edit`, and `overwrite` likewise.

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
    targets = lora.lora_targets(model, factors)
    interference = measure_interference(weighted)
    with atomic_directory(directory, overwrite=overwrite) as scratch:
        lora.write_lora(model, targets, scratch)
        manifest = CombinedManifest.made_now(
            base=members[0].edit.metadata["model"],
            members=[_copy_member(member, number, scratch) for number, member in enumerate(members, 1)],
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
        load_combined(scratch)
        lora.check_loads_through_peft(model.network, scratch, {t.name: t.pair for t in targets})
    return interference


def _copy_member(member: Member, number: int, scratch: Path) -> MemberRecord:
    """Copy an edit's files, under a name that every file system and the Hub take."""
    name = f"{number}-{re.sub(r'[^A-Za-z0-9_.-]', '-', member.directory.name).strip('.-') or 'edit'}"
    target = scratch / MEMBERS / name
    target.mkdir(parents=True)
    for path in sorted(member.directory.iterdir()):
        if path.is_file():
            shutil.copyfile(path, target / path.name)
    return MemberRecord(name=name, weight=member.weight, sha256=file_sha256(target / MANIFEST_FILE))
