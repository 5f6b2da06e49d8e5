"""An edit for other engines: one adapter per strength, with the strength folded in. See docs/serving.md."""

import math
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

import torch

from steer2edit.artifacts.atomic import MANIFEST_FILE, atomic_directory
from steer2edit.artifacts.cards import portable, rendered, write_card
from steer2edit.artifacts.edits.adapter import load_members
from steer2edit.artifacts.edits.lora import ADAPTER_FILE, CONFIG_FILE, lora_targets
from steer2edit.artifacts.edits.low_rank import ScaledEdits, combined_factors
from steer2edit.artifacts.exports.engines import max_lora_rank, write_gguf_lora, write_vllm_lora
from steer2edit.artifacts.manifest import (
    ExportedAdapter,
    ExportManifest,
    Format,
    read_manifest,
    require_unchanged,
    write_manifest,
)
from steer2edit.artifacts.tensors import file_sha256, read_tensors, write_tensors
from steer2edit.errors import InvalidValueError, did_you_mean
from steer2edit.models import LanguageModel, load_skeleton
from steer2edit.models.model_path import gguf_file
from steer2edit.progress import step


def _needs_model(members: ScaledEdits, format: str) -> bool:
    """Whether an export needs the base's structure: PEFT's own layout is the edit's already."""
    experts = any(e.experts is not None for edit, _ in members for e in edit.sites.values())
    return format == "gguf-lora" or (format == "vllm" and experts)


def export_edit(
    source: Path,
    format: str,
    strengths: Sequence[float],
    directory: Path,
    *,
    model: LanguageModel | str | None = None,
    overwrite: bool = False,
    layout: Path | None = None,
    trust_remote_code: bool = False,
) -> ExportManifest:
    """Write one adapter per strength, all of them or none, each read back and compared; returns how to serve them.

    `model` is the base, or where it is, if not where the edit says: a format may need its structure. A ModelError where
    the format cannot hold an edit of this architecture.
    """
    if format not in get_args(Format):
        raise InvalidValueError(f"unknown format {format!r}. {did_you_mean(format, get_args(Format))}")
    names, members = _names(strengths), load_members(source)
    if not _needs_model(members, format):
        model = None
    elif not isinstance(model, LanguageModel):
        name = model or str(members[0][0].metadata["model"]["name"])
        model = load_skeleton(name, layout=layout, trust_remote_code=trust_remote_code)
    with atomic_directory(directory, overwrite=overwrite) as scratch, step("Exporting", len(names)) as advance:
        adapters = []
        for name, strength in names.items():
            path = scratch / (f"{source.resolve().name}-{name}.gguf" if format == "gguf-lora" else name)
            _write(source, members, format, strength, path, model)
            files = [p for p in sorted(path.rglob("*")) if p.is_file()] if path.is_dir() else [path]
            hashes = {str(p.relative_to(scratch)): file_sha256(p) for p in files}
            adapters.append(ExportedAdapter(strength=strength, path=path.name, files=hashes))
            advance(1)
        manifest = ExportManifest(
            format=cast("Format", format),
            base=members[0][0].metadata["model"],
            source_sha256=file_sha256(source / MANIFEST_FILE),
            rank=max(factors.rank for factors in combined_factors(members).values()),
            adapters=adapters,
            usage=[],
        )
        manifest = manifest.model_copy(update={"usage": usage(manifest, directory)})
        write_manifest(manifest, scratch)
        write_card(
            "export", scratch, library="gguf" if format == "gguf-lora" else "peft", manifest=manifest,
            base_name=portable(manifest.base.name), usage=usage(manifest),
        )  # fmt: skip
    return manifest


def read_export(directory: Path) -> ExportManifest:
    """An export's manifest; an ArtifactError where it is damaged, or a file that it lists was changed or is gone."""
    manifest = read_manifest(directory, ExportManifest)
    for adapter in manifest.adapters:
        require_unchanged(directory, adapter.files, "Export again.")
    return manifest


def _names(strengths: Sequence[float]) -> dict[str, float]:
    """Strengths by the name of their adapter, `strength-0.5`."""
    names: dict[str, float] = {}
    for strength in strengths:
        if not math.isfinite(strength) or strength == 0:
            raise InvalidValueError(
                f"a strength must be a finite number other than 0, got {strength}: 1 is the edit as it is, 0 the base."
            )
        shown = f"{abs(strength):g}" if float(f"{strength:g}") == strength else repr(abs(strength))
        name = f"strength-{'minus-' if strength < 0 else ''}{shown}"
        if name in names:
            raise InvalidValueError(f"the strength {strength:g} is given twice. Name every strength once.")
        names[name] = strength
    if not names:
        raise InvalidValueError("no strength is given. 1 is the edit as it is.")
    return names


def _write(
    source: Path, members: ScaledEdits, format: str, strength: float, path: Path, model: LanguageModel | None
) -> None:
    """Write one adapter to a file or a directory; without a model, the edit's own."""
    if model is None:
        return _write_scaled(source, strength, path)
    targets = lora_targets(model, combined_factors([(edit, weight * strength) for edit, weight in members]))
    if format == "vllm":
        path.mkdir()
        return write_vllm_lora(model, targets, path)
    made_on = members[0][0].metadata["model"]
    notes = {
        "strength": repr(strength),
        "base_model.name": portable(str(made_on["name"])),
        "base_model.fingerprint": str(made_on["fingerprint"]),
        "edit.sha256": file_sha256(source / MANIFEST_FILE),
        **({"base_model.gguf_sha256": model.gguf_sha256} if model.gguf_sha256 else {}),
    }
    return write_gguf_lora(model, targets, notes, path)


def _write_scaled(source: Path, strength: float, directory: Path) -> None:
    """Copy the adapter of an edit as `strength · ΔW`: the same files, with A multiplied. No model is needed for it."""
    tensors, header = read_tensors(source / ADAPTER_FILE, "tensors of an edit")
    for name in (name for name in tensors if name.endswith(".lora_A.weight")):
        tensors[name] = tensors[name] * strength
        if not bool(torch.isfinite(tensors[name]).all()):
            raise InvalidValueError(f"{name} is not finite at strength {strength:g}. 1 is the edit as it is.")
    directory.mkdir()
    write_tensors(tensors, directory / ADAPTER_FILE, header)
    shutil.copyfile(source / CONFIG_FILE, directory / CONFIG_FILE)


def usage(manifest: ExportManifest, directory: Path | None = None) -> list[str]:
    """How to serve an export that is in a directory; without one, from within its folder, naming no path of here."""
    naming = portable if directory is None else str
    names = [adapter.path for adapter in manifest.adapters]
    paths = [str((directory or Path()) / name) for name in names]
    file = gguf_file(manifest.base.name) if manifest.base.gguf_sha256 else None
    text = rendered(
        "usage.txt",
        format=manifest.format,
        base=naming(manifest.base.name),
        names=names,
        paths=paths,
        modules=[shlex.quote(f"{Path(name).name}={path}") for name, path in zip(names, paths, strict=True)],
        max_rank=max_lora_rank(manifest.rank),
        file=file and naming(str(file)),
        quote=shlex.quote,
        repr=repr,
    )
    return text.splitlines()
