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
from pathlib import Path

from steer2edit.artifacts.atomic import MANIFEST_FILE, atomic_directory
from steer2edit.artifacts.edits.adapter import load_edit
from steer2edit.artifacts.edits.combined_card import write_combined_card
from steer2edit.artifacts.edits.combined_manifest import (
    CombinedManifest,
    MemberRecord,
    is_combined,
    read_combined_manifest,
)
from steer2edit.artifacts.edits.interference import Interference, measure_interference
from steer2edit.artifacts.edits.lora_layout import lora_targets, write_lora
from steer2edit.artifacts.edits.low_rank import combined_factors, common_rank
from steer2edit.artifacts.edits.peft_files import ADAPTER_FILE, CONFIG_FILE, Pair, check_loads_through_peft
from steer2edit.artifacts.manifest import BaseModelRecord, now, package_versions, read_json, write_manifest
from steer2edit.artifacts.tensors import file_sha256
from steer2edit.core import WeightEdit
from steer2edit.errors import ArtifactError, InvalidValueError, MismatchError
from steer2edit.models import LanguageModel

MEMBERS = "members"


@dataclass(frozen=True)
class Member:
    """One edit of several.

    Args:
        directory: where the edit is.
        edit: what it holds.
        weight: what it is multiplied by.
    """

    directory: Path
    edit: WeightEdit
    weight: float


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


def load_combined(directory: Path | str) -> list[tuple[WeightEdit, float]]:
    """The members of a combined edit with their weights; the sum of `weight · ΔW` is what its adapter holds.

    Raises:
        ArtifactError: it is not there, not ours, of a newer version, incomplete, damaged, or was changed since.
    """
    directory = Path(directory)
    manifest = read_combined_manifest(directory)
    if manifest.files.get(ADAPTER_FILE) != file_sha256(directory / ADAPTER_FILE):
        raise ArtifactError(
            f"{directory / ADAPTER_FILE} is not the file that {MANIFEST_FILE} describes: it was changed or mixed up "
            "with another one. Combine the edits again."
        )
    _require_config(directory, manifest)
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
    return load_combined(directory) if is_combined(directory) else [(load_edit(directory), 1.0)]


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
        write_combined_card(model, manifest, scratch)
        load_combined(scratch)
        check_loads_through_peft(model.network, scratch, {t.name: Pair(t.peft_a, t.peft_b) for t in targets})
    return interference


def _members(directory: Path, weight: float) -> list[Member]:
    if not is_combined(directory):
        return [Member(directory, load_edit(directory), weight)]
    names = [record.name for record in read_combined_manifest(directory).members]
    return [
        Member(directory / MEMBERS / name, edit, own * weight)
        for name, (edit, own) in zip(names, load_combined(directory), strict=True)
    ]


def _require_config(directory: Path, manifest: CombinedManifest) -> None:
    """Refuse a config under which PEFT would not apply exactly these factors to exactly these weights."""
    config = read_json(directory / CONFIG_FILE)
    modules, parameters = config.get("target_modules"), config.get("target_parameters") or []
    weights = None
    if isinstance(modules, list) and isinstance(parameters, list):
        weights = sorted([*(f"{module}.weight" for module in modules), *map(str, parameters)])
    found = {"r": config.get("r"), "lora_alpha": config.get("lora_alpha"), "targets": weights}
    needed = {"r": manifest.rank, "lora_alpha": manifest.rank, "targets": manifest.modules}
    neutral = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
    found |= {name: config.get(name) or None for name in neutral}
    needed |= dict.fromkeys(neutral)
    for name, value in needed.items():
        if found[name] != value:
            raise ArtifactError(
                f"{directory / CONFIG_FILE}: {name} is {str(found[name])[:200]}, but this edit needs "
                f"{str(value)[:200]}: with anything else PEFT would apply another edit. Combine the edits again."
            )


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
