"""An edit for other engines: one adapter per strength, with the strength folded in. See docs/serving.md.

<out>/steer2edit.json                    what was exported, and how to serve it
<out>/strength-0.5/                      peft: an edit directory of its own; vllm: a PEFT adapter
<out>/<name>-strength-0.5.gguf           gguf-lora
"""

import shlex
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field

from steer2edit.artifacts.atomic import MANIFEST_FILE, atomic_directory
from steer2edit.artifacts.cards import portable, write_card
from steer2edit.artifacts.edits.combined import load_members
from steer2edit.artifacts.edits.lora_layout import lora_targets
from steer2edit.artifacts.edits.low_rank import Members, combined_factors, common_rank
from steer2edit.artifacts.exports.gguf_lora import write_gguf_lora
from steer2edit.artifacts.exports.scaled_copy import require_strength, write_scaled_copy
from steer2edit.artifacts.exports.vllm_lora import max_lora_rank, write_vllm_lora
from steer2edit.artifacts.manifest import (
    SCHEMA_VERSION,
    BaseModelRecord,
    Record,
    Sha256,
    now,
    package_versions,
    read_manifest,
    write_manifest,
)
from steer2edit.artifacts.tensors import file_sha256
from steer2edit.errors import ArtifactError, InvalidValueError, did_you_mean
from steer2edit.models import LanguageModel
from steer2edit.models.model_path import gguf_file
from steer2edit.progress import step

Format = Literal["peft", "gguf-lora", "vllm"]
FORMATS: tuple[Format, ...] = get_args(Format)
EXPORT_KIND: Literal["export"] = "export"


class ExportedAdapter(Record):
    """One adapter of an export."""

    strength: Annotated[float, Field(allow_inf_nan=False)]
    path: str
    files: dict[str, Sha256]


class ExportManifest(Record):
    """`steer2edit.json` of an export."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["export"] = EXPORT_KIND
    created: datetime
    format: Format
    base: BaseModelRecord
    source_sha256: Sha256
    rank: Annotated[int, Field(gt=0)]
    adapters: Annotated[list[ExportedAdapter], Field(min_length=1)]
    usage: list[str]
    versions: dict[str, str]


def needs_model(members: Members, format: str) -> bool:
    """Whether an export needs the base's structure: PEFT's own layout is the edit's already."""
    experts = any(e.experts is not None for edit, _ in members for e in edit.sites.values())
    return format == "gguf-lora" or (format == "vllm" and experts)


def export_edit(
    source: Path,
    format: str,
    strengths: Sequence[float],
    directory: Path,
    *,
    model: LanguageModel | None = None,
    overwrite: bool = False,
) -> ExportManifest:
    """Write one adapter per strength, all of them or none, each read back and compared.

    Args:
        source: an edit directory, or a combined one.
        format: `peft`, `gguf-lora` or `vllm`.
        strengths: what the edit is multiplied by; finite, not 0, each once.
        directory: must not exist.
        model: the base, or its structure alone (`load_skeleton`), where the format needs it (`needs_model`).
        overwrite: replace an existing artifact of this package.

    Returns:
        What was written, and how to serve it.

    Raises:
        InvalidValueError: an unknown format, or a strength that makes no adapter.
        MismatchError: the edit has other shapes than the model.
        ModelError: the format cannot hold an edit of this architecture.
        ArtifactError: the source is no edit, or the directory exists or cannot be written.
    """
    if format not in FORMATS:
        raise InvalidValueError(f"unknown format {format!r}. {did_you_mean(format, FORMATS)}")
    known: Format = format  # type: ignore[assignment]
    names = _names(strengths)
    members = load_members(source)
    rank = common_rank(combined_factors(members))
    with atomic_directory(directory, overwrite=overwrite) as scratch, step("Exporting", len(names)) as advance:
        adapters = []
        for name, strength in names.items():
            path = _write(source, members, known, strength, name, scratch, model)
            files = [p for p in sorted(path.rglob("*")) if p.is_file()] if path.is_dir() else [path]
            hashes = {str(p.relative_to(scratch)): file_sha256(p) for p in files}
            adapters.append(ExportedAdapter(strength=strength, path=path.name, files=hashes))
            advance(1)
        manifest = ExportManifest(
            created=now(),
            format=known,
            base=BaseModelRecord.model_validate(members[0][0].metadata["model"]),
            source_sha256=file_sha256(source / MANIFEST_FILE),
            rank=rank,
            adapters=adapters,
            usage=[],
            versions=package_versions(),
        )
        manifest = manifest.model_copy(update={"usage": _usage(manifest, str, directory)})
        write_manifest(manifest, scratch)
        write_card(
            "export", scratch, library="gguf" if known == "gguf-lora" else "peft", manifest=manifest,
            base_name=portable(manifest.base.name), usage=portable_usage(manifest),
        )  # fmt: skip
    return manifest


def portable_usage(manifest: ExportManifest) -> list[str]:
    """How to serve an export from within its folder, without paths of this machine."""
    return _usage(manifest, portable, Path())


def read_export(directory: Path) -> ExportManifest:
    """Read an export's manifest and compare the hash of every file that it lists.

    Raises:
        ArtifactError: it is missing, damaged, of a newer version, or a file was changed or is gone.
    """
    manifest = read_manifest(directory, ExportManifest)
    for adapter in manifest.adapters:
        for name, sha256 in adapter.files.items():
            path = directory / name
            if not path.resolve().is_relative_to(directory.resolve()):
                raise ArtifactError(f"{directory / MANIFEST_FILE} names {name}, which is outside of its directory.")
            if not path.is_file() or file_sha256(path) != sha256:
                raise ArtifactError(f"{path} is missing or was changed since it was exported. Export again.")
    return manifest


def _names(strengths: Sequence[float]) -> dict[str, float]:
    """Strengths by the name of their adapter, `strength-0.5`."""
    names: dict[str, float] = {}
    for strength in strengths:
        require_strength(strength)
        shown = f"{abs(strength):g}" if float(f"{strength:g}") == strength else repr(abs(strength))
        name = f"strength-{'minus-' if strength < 0 else ''}{shown}"
        if name in names:
            raise InvalidValueError(f"the strength {strength:g} is given twice. Name every strength once.")
        names[name] = strength
    if not names:
        raise InvalidValueError("no strength is given. 1 is the edit as it is.")
    return names


def _write(
    source: Path,
    members: Members,
    format: Format,
    strength: float,
    name: str,
    scratch: Path,
    model: LanguageModel | None,
) -> Path:
    """Write one adapter; returns its file or directory."""
    if not needs_model(members, format):
        path = scratch / name
        path.mkdir()
        write_scaled_copy(source, strength, path)
        load_members(path)
        return path
    if model is None:
        raise InvalidValueError(f"the format {format} needs the base model's structure: pass model=load_skeleton(...).")
    factors = combined_factors([(edit, weight * strength) for edit, weight in members])
    rank = common_rank(factors)
    targets = lora_targets(model, factors, rank)
    if format == "gguf-lora":
        path = scratch / f"{source.resolve().name}-{name}.gguf"
        notes = {
            "strength": repr(strength),
            "base_model.name": portable(str(members[0][0].metadata["model"]["name"])),
            "base_model.fingerprint": str(members[0][0].metadata["model"]["fingerprint"]),
            "edit.sha256": file_sha256(source / MANIFEST_FILE),
            **({"base_model.gguf_sha256": model.gguf_sha256} if model.gguf_sha256 else {}),
        }
        write_gguf_lora(model, targets, rank, notes, path)
        return path
    path = scratch / name
    path.mkdir()
    write_vllm_lora(model, targets, rank, path)
    return path


def _usage(manifest: ExportManifest, naming: Callable[[str], str], directory: Path) -> list[str]:
    """Commands and remarks: how to serve adapters that are in a directory, with the base named in a way."""
    base, paths = naming(manifest.base.name), [directory / adapter.path for adapter in manifest.adapters]
    first, every = shlex.quote(str(paths[0])), ",".join(map(str, paths))
    if manifest.format == "peft":
        return [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            f"model = AutoModelForCausalLM.from_pretrained({base!r})",
            f"model = PeftModel.from_pretrained(model, {str(paths[0])!r})",
        ]
    if manifest.format == "vllm":
        modules = " ".join(shlex.quote(f"{path.name}={path}") for path in paths)
        flags = f"--enable-lora --max-lora-rank {max_lora_rank(manifest.rank)} --max-loras {len(paths) + 1}"
        return [
            f"vllm serve {shlex.quote(base)} {flags} --lora-modules {modules}",
            f'A request picks an adapter by "model": "{paths[0].name}"; the base keeps its own name.',
            f"--max-loras {len(paths) + 1}: every adapter and one slot more. vLLM's build for CPUs gives requests for "
            "the base the last slot's adapter when all slots are taken.",
        ]
    file = gguf_file(manifest.base.name) if manifest.base.gguf_sha256 else None
    gguf = "BASE.gguf" if file is None else shlex.quote(naming(str(file)))
    converted = "BASE.gguf is the same model converted by llama.cpp, in any precision."
    return [
        f"llama-cli -m {gguf} --lora {first}",
        f"llama-cli -m {gguf} --lora-scaled {first}:0.5   # half of it",
        f"llama-server -m {gguf} --lora {shlex.quote(every)}   # all of them add up unless a request says otherwise",
        'llama-server, per request: "lora": [{"id": 0, "scale": 0.5}]; adapters that are not listed are off.',
        converted if file is None else f"{gguf} is the file that the edit was made on; the adapter fits it.",
        f"Ollama up to 0.34.0, in a Modelfile: FROM {gguf}, then ADAPTER {first}",
    ]
