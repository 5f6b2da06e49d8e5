"""A copy of an edit directory in which every change is multiplied by one number: no model is needed for it."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from steer2edit.artifacts.atomic import MANIFEST_FILE
from steer2edit.artifacts.cards import CARD_FILE
from steer2edit.artifacts.edits.adapter import COMPONENTS_FILE
from steer2edit.artifacts.edits.combined import COMBINED_KIND
from steer2edit.artifacts.edits.peft_files import ADAPTER_FILE
from steer2edit.artifacts.strict_json import read_json
from steer2edit.artifacts.tensors import file_sha256, read_tensors, write_tensors
from steer2edit.errors import InvalidValueError

_SCALED = {ADAPTER_FILE: re.compile(r".*\.lora_A\.weight"), COMPONENTS_FILE: re.compile(r".*\.(row|magnitude)")}
_TITLE = re.compile(r"^# .+$", re.MULTILINE)


def write_scaled_copy(source: Path, strength: float, target: Path) -> None:
    """Fill an empty directory with the edit `strength · ΔW`: the same files, with a and λ multiplied.

    Args:
        source: an edit directory, already checked by loading it; a combined one keeps its members as they are and
            multiplies their weights.
        strength: finite, not 0.
        target: an existing, empty directory.

    Raises:
        InvalidValueError: a factor is not finite at this strength.
        ArtifactError: what was written reads back differently.
    """
    manifest = read_json(source / MANIFEST_FILE)
    if strength == 1:
        shutil.copytree(source, target, dirs_exist_ok=True)
        return
    for path in sorted(source.iterdir()):
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        elif path.name not in (*_SCALED, MANIFEST_FILE, CARD_FILE):
            shutil.copyfile(path, target / path.name)
    for name, scaled in _SCALED.items():
        if (source / name).is_file():
            _scale_file(source / name, target / name, scaled, strength)
    manifest["files"] = {name: file_sha256(target / name) for name in manifest["files"]}
    text = json.dumps(_scaled_manifest(manifest, strength), indent=2, ensure_ascii=False, allow_nan=False)
    (target / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    if (source / CARD_FILE).is_file():
        card = _scaled_card((source / CARD_FILE).read_text(encoding="utf-8"), strength)
        (target / CARD_FILE).write_text(card, encoding="utf-8", errors="backslashreplace")


def require_strength(strength: float) -> None:
    """Refuse a strength that makes no adapter.

    Raises:
        InvalidValueError: it is 0, infinite or NaN.
    """
    if not math.isfinite(strength) or strength == 0:
        raise InvalidValueError(
            f"a strength must be a finite number other than 0, got {strength}: 1 is the edit as it is, 0 the base."
        )


def _scale_file(source: Path, target: Path, scaled: re.Pattern[str], strength: float) -> None:
    tensors, header = read_tensors(source, "tensors of an edit")
    for name in filter(scaled.fullmatch, tensors):
        tensors[name] = tensors[name] * strength
        if not bool(torch.isfinite(tensors[name]).all()):
            raise InvalidValueError(f"{name} is not finite at strength {strength:g}. 1 is the edit as it is.")
    write_tensors(tensors, target, header)


def _scaled_manifest(manifest: dict[str, Any], strength: float) -> dict[str, Any]:
    if manifest["kind"] == COMBINED_KIND:
        for member in manifest["members"]:
            member["weight"] *= strength
        return manifest
    edit = manifest["edit"]
    manifest["edit"] = edit | {"strength": strength * edit.get("strength", 1.0)}
    manifest["evaluation"] = None  # it was measured at strength 1
    return manifest


def _scaled_card(card: str, strength: float) -> str:
    """The same card, with a remark under its title."""
    remark = (
        f"\n\n**This copy has strength {strength:g} folded in.** Every λ below, and every measured value, is that of "
        "the edit at strength 1."
    )
    return _TITLE.sub(lambda title: title[0] + remark, card, count=1)
