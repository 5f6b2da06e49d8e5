"""Weight edits: made of vectors, switched on, scaled, added up, saved; in files and for other engines."""

import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from steer2edit.api import showing
from steer2edit.api.keywords import public, require_fit
from steer2edit.artifacts import apply_to_files, export_edit, load_members, read_members, save_combined, save_edit
from steer2edit.audit import audit as audit_checkpoint
from steer2edit.core import Combined, Editing, SteeringVectors, WeightEdit, finite_strength
from steer2edit.editing import intervened
from steer2edit.errors import DataError, InvalidValueError, MismatchError
from steer2edit.evaluation import Arm, edit_arm
from steer2edit.models import LanguageModel, load_model
from steer2edit.recipes.making import STRENGTH, Preview, make_edit, preview as look
from steer2edit.settings import Accepting, ConvertOptions
from steer2edit.tables import frame

if TYPE_CHECKING:
    import pandas

_NAMED = 5  # components in a text


class _Edits:
    """What one edit and several at once can do alike."""

    parts: "tuple[Edit, ...]"

    def on(
        self, model: LanguageModel, strength: float = 1.0, *, allow_mismatch: bool = False
    ) -> AbstractContextManager[None]:
        """Within the context, the model runs with `strength` times the edit, or all of them.

        Raises:
            MismatchError: an edit is for another model (unless `allow_mismatch`) or another shape.
        """
        for part in self.parts:
            require_fit(model, part, allow_mismatch)
        strength = finite_strength(strength)
        return intervened(model, [Combined(tuple(Editing(part, strength) for part in self.parts))])

    def __add__(self, other: "Edit | CombinedEdit") -> "CombinedEdit":
        """These and others at once."""
        return CombinedEdit((*self.parts, *other.parts)) if isinstance(other, _Edits) else NotImplemented

    def to_pandas(self) -> "pandas.DataFrame":
        """A row for each component with λ ≠ 0: its name, layer, block, λ and g; needs pandas.

        Of several edits, also the number of the edit, from 1.
        """
        several = isinstance(self, CombinedEdit)
        return frame(
            [
                {**({"edit": number} if several else {}), "component": str(component), "layer": component.site.layer,
                 "block": component.site.block, "magnitude": magnitude, "importance": importance}
                for number, part in enumerate(self.parts, start=1)
                for component, magnitude, importance in part.components()
            ]
        )  # fmt: skip


@dataclass(frozen=True, repr=False, eq=False)
class Edit(_Edits, WeightEdit):
    """A rank-1 weight edit of heads and neurons; made by `convert` or `load_edit`.

    `0.5 * edit` is the edit at half strength, `edit + other` both at once.

    Args:
        model: that it was made on, which saving it needs.
    """

    model: LanguageModel | None = field(default=None)

    @classmethod
    def of(cls, edit: WeightEdit, model: LanguageModel | None = None) -> "Edit":
        """The same edit."""
        return cls(edit.sites, edit.metadata, model)

    @property
    def parts(self) -> "tuple[Edit, ...]":  # type: ignore[override]
        """Itself."""
        return (self,)

    def __matmul__(self, strength: float) -> Arm:
        """The edit at a strength, for `evaluate`."""
        strength = finite_strength(strength)
        return edit_arm(self, "edit" if strength == 1 else f"edit × {strength:g}", strength)

    def __mul__(self, strength: float) -> "Edit":
        """The edit at another strength; what was measured of it at its own is no longer said."""
        strength = finite_strength(strength)
        own = {key: value for key, value in self.metadata.items() if key != "drift"}
        scale = strength * float(own.get("scale", 1.0))
        return Edit(self.scaled(strength).sites, {**own, "scale": scale}, self.model)

    __rmul__ = __mul__

    def save(self, directory: Path | str, *, model: LanguageModel | None = None, overwrite: bool = False) -> None:
        """Write it as a PEFT adapter with its model card, completely or not at all, and load that again to check it.

        Args:
            directory: must not exist, unless it is an edit to `overwrite`.
            model: the base model; by default the one that the edit was made on, which is loaded if it is not at hand.

        Raises:
            ArtifactError: the directory exists or cannot be written.
            MismatchError: the edit is for another model.
        """
        save_edit(_base(self, model), self, directory, overwrite=overwrite)

    def __repr__(self) -> str:
        counts: dict[str, int] = {}
        for site, own in self.sites.items():
            counts[site.block] = counts.get(site.block, 0) + int(own.magnitude.count_nonzero())
        edited = showing.counted(counts) or "nothing"
        by_effect = self.metadata.get("rules", {}).get("importance") == "effect"
        drift, scale = self.metadata.get("drift"), self.metadata.get("scale")
        strongest = ", ".join(f"{name} {magnitude:+.2g}" for name, magnitude, _ in self.top_components(_NAMED))
        return showing.lines(
            f"Edit of {edited} in {len(self.sites)} sites{', made of measured effects' if by_effect else ''}"
            f"{f', {scale:g} times the edit that was made' if scale is not None else ''}",
            f"Strongest: {strongest}" if strongest else "",
            f"KL to the base {drift['kl']:.3g} nats per token on {drift['requests']} benign requests" if drift else "",
        )

    def _repr_html_(self) -> str:
        from steer2edit.report.figures import edit_figures

        figures = edit_figures(self, 1 + max(site.layer for site in self.sites)).values()
        return showing.page(repr(self), *map(showing.plot, figures))


@dataclass(frozen=True, repr=False, eq=False)
class CombinedEdit(_Edits):
    """Several edits of one base at once, `0.5 * edit + other`.

    Args:
        parts: the edits, each at its strength.

    Raises:
        MismatchError: they are edits of different models.
    """

    parts: tuple[Edit, ...]

    def __post_init__(self) -> None:
        made_on = {(part.metadata.get("model") or {}).get("fingerprint"): part for part in self.parts}
        if len(made_on) > 1:
            names = ", ".join(repr((part.metadata.get("model") or {}).get("name")) for part in made_on.values())
            raise MismatchError(
                f"edits of different weights cannot be added up: these are of {names}, with another fingerprint each. "
                "Make all on the same base."
            )

    def __matmul__(self, strength: float) -> Arm:
        """All of them at a strength, for `evaluate`."""
        strength = finite_strength(strength)
        label = "combined edit" if strength == 1 else f"combined edit × {strength:g}"
        return Arm(
            "edit", label, Combined(tuple(Editing(part, strength) for part in self.parts)), {"strength": strength}
        )

    def __mul__(self, strength: float) -> "CombinedEdit":
        """All of them at another strength."""
        return CombinedEdit(tuple(part * strength for part in self.parts))

    __rmul__ = __mul__

    def save(self, directory: Path | str, *, model: LanguageModel | None = None, overwrite: bool = False) -> None:
        """Write one adapter that is the sum, with the edits beside it; see `Edit.save`.

        Raises:
            InvalidValueError: the edits cancel each other.
            ArtifactError: the directory exists or cannot be written.
        """
        base = model or next((part.model for part in self.parts if part.model), None) or _base(self.parts[0], None)
        with tempfile.TemporaryDirectory() as scratch:
            places = [Path(scratch) / f"edit-{number}" for number in range(1, 1 + len(self.parts))]
            for part, place in zip(self.parts, places, strict=True):
                save_edit(base, part, place)
            save_combined(base, read_members(places, [1.0] * len(places)), directory, overwrite=overwrite)

    def __repr__(self) -> str:
        shown = (f"{number}: {repr(part).splitlines()[0]}" for number, part in enumerate(self.parts, start=1))
        return showing.lines(f"{len(self.parts)} edits at once", *shown)

    def _repr_html_(self) -> str:
        return showing.page(repr(self), *(part._repr_html_() for part in self.parts))


def _base(edit: WeightEdit, model: LanguageModel | None) -> LanguageModel:
    """The model that an edit is saved with."""
    own = model or getattr(edit, "model", None)
    if own is not None:
        return own
    name = (edit.metadata.get("model") or {}).get("name")
    if not name:
        raise InvalidValueError("this edit does not say which model it is for: give that, save(..., model=model).")
    return load_model(str(name), like=edit.metadata)


@public
def convert(model: LanguageModel, vectors: SteeringVectors, options: ConvertOptions, accepting: Accepting) -> Edit:
    """Turn vectors into a rank-1 weight edit of heads and neurons.

    Of vectors with measured effects (`extract(..., effects=True)`) the recommended edit is made of these, unless a
    budget is given; else the paper's, which needs one, such as `rho_attn=0.15`.

    Args:
        model: the base model.
        vectors: of this model.

    Raises:
        InvalidValueError: a value is out of range, or nothing would be edited.
        MismatchError: the vectors are for another model, or lack something.
        NoiseError: the diagnosis calls the vectors noise.
    """
    return Edit.of(make_edit(model, vectors, options, accepting), model)


@public
def preview(model: LanguageModel, vectors: SteeringVectors, edit: WeightEdit, *, strength: float = STRENGTH) -> Preview:
    """A first look at an edit, in seconds: a few replies, and how much likelier the wanted responses became.

    Args:
        model: the base model.
        vectors: that the edit was made of, as `extract` gave them.
        edit: what is looked at.
        strength: of the steering beside it.

    Raises:
        DataError: the vectors bring no validation rows, because they were made elsewhere or of too few pairs.
    """
    found = look(model, vectors, edit, float(strength))
    if found is None:
        raise DataError("these vectors bring no validation rows to look at the edit with: extract them of more pairs.")
    return found


def load_edit(directory: Path | str) -> Edit | CombinedEdit:
    """An edit that was saved, or a combined one; an ArtifactError for what is not there, no edit, or damaged."""
    parts = [Edit.of(edit) if weight == 1 else Edit.of(edit) * weight for edit, weight in load_members(directory)]
    return parts[0] if len(parts) == 1 else CombinedEdit(tuple(parts))


@public
def apply(
    model: str, edit: WeightEdit | CombinedEdit, out: Path | str, *, strength: float = 1.0, overwrite: bool = False
) -> Path:
    """Write the edited checkpoint, from the base's files: only the edited tensors differ.

    Args:
        model: name of the base, a Hub id, a directory, or smollm2; it is not loaded.
        edit: one, or several at once.
        out: directory for the checkpoint; must not exist, unless it is to be overwritten.
        strength: multiplies the edit.

    Raises:
        MismatchError: the edit is for another model.
        ArtifactError: the directory exists or cannot be written.
    """
    parts = edit.parts if isinstance(edit, _Edits) else (edit,)
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
        out: directory for the adapters; must not exist, unless it is to be overwritten.
        strength: what the edit is multiplied by; several for several adapters.

    Returns:
        How to serve them, in lines.

    Raises:
        InvalidValueError: there is no such format.
        ArtifactError: the directory exists or cannot be written.
    """
    strengths = [float(one) for one in (strength if isinstance(strength, Sequence) else [strength])]
    return list(export_edit(Path(edit), format, strengths, Path(out), overwrite=overwrite).usage)


audit = public(audit_checkpoint)
