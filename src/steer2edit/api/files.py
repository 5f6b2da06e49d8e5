"""Edits for others: in a checkpoint's files, and as adapters for other engines."""

from collections.abc import Sequence
from pathlib import Path

from steer2edit.api.edit import CombinedEdit
from steer2edit.api.keywords import public
from steer2edit.artifacts import apply_to_files, export_edit, load_members
from steer2edit.artifacts.exports.export import needs_model
from steer2edit.audit import audit as audit_checkpoint
from steer2edit.core import WeightEdit
from steer2edit.models import load_skeleton


@public
def apply(
    model: str, edit: WeightEdit | CombinedEdit, out: Path | str, *, strength: float = 1.0, overwrite: bool = False
) -> Path:
    """Write the edited checkpoint, from the base's files: only the edited tensors differ.

    Args:
        model: name of the base, a Hub id, a directory, or smollm2; it is not loaded.
        edit: one, or several at once.
        out: directory for the checkpoint; must not exist.
        strength: multiplies the edit.
        overwrite: replace a checkpoint that is there.

    Raises:
        MismatchError: the edit is for another model.
        ArtifactError: the directory exists or cannot be written.
    """
    parts = edit.parts if isinstance(edit, CombinedEdit) else (edit,)
    apply_to_files(model, [(part, strength) for part in parts], out, overwrite=overwrite)
    return Path(out)


@public
def export(
    edit: Path | str, format: str, out: Path | str, *, strength: float | Sequence[float] = 1.0, overwrite: bool = False
) -> list[str]:
    """Write adapters for another engine, one per strength.

    Args:
        edit: a directory that `save` wrote.
        format: peft, gguf-lora (llama.cpp, Ollama) or vllm.
        out: directory for the adapters; must not exist.
        strength: what the edit is multiplied by; several for several adapters.
        overwrite: replace what is there.

    Returns:
        How to serve them, in lines.

    Raises:
        InvalidValueError: there is no such format.
        ArtifactError: the directory exists or cannot be written.
    """
    members = load_members(edit)
    strengths = [float(one) for one in (strength if isinstance(strength, Sequence) else [strength])]
    base = load_skeleton(str(members[0][0].metadata["model"]["name"])) if needs_model(members, format) else None
    return list(export_edit(Path(edit), format, strengths, Path(out), model=base, overwrite=overwrite).usage)


audit = public(audit_checkpoint)
