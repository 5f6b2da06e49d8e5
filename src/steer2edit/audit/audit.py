"""The audit of a checkpoint, or of an adapter, against its base: streamed, tensor by tensor."""

import html
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from steer2edit.artifacts import atomic_file
from steer2edit.artifacts.checkpoints.files import CheckpointFiles, open_checkpoint
from steer2edit.artifacts.edits.lora import CONFIG_FILE
from steer2edit.artifacts.tensors import write_tensors
from steer2edit.audit.adapter import adapter_views
from steer2edit.audit.change import Recovered, TensorChange, describe_change
from steer2edit.audit.structure import (
    PROVENANCE,
    Differences,
    Places,
    Structure,
    changed_files,
    differing_settings,
    tie_heads,
)
from steer2edit.audit.verdict import Classification, EditMatch, classify, match_edit, mean_along
from steer2edit.core import Site, SiteEdit, WeightEdit
from steer2edit.errors import DataError, MismatchError, ModelError
from steer2edit.models import checkpoint_directory, load_skeleton
from steer2edit.models.layout import Layout
from steer2edit.progress import step
from steer2edit.tables import frame

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False)
class Audit:
    """What differs between a base and another checkpoint."""

    base: str  # as it was given
    edited: str  # the same
    is_adapter: bool  # whether `edited` is an adapter
    changes: tuple[TensorChange, ...]  # of the tensors that both have, in the same shape
    structure: Structure  # what differs besides: tensors that only one has, other shapes, settings, files
    classification: Classification  # the whole in words
    match: EditMatch | None  # against the edit that was given, if one was
    notes: tuple[str, ...]  # what else could not be told, and why

    def __repr__(self) -> str:
        same = f"{self.identical} of {self.compared} tensors are identical to {self.base}."
        return "\n".join([self.classification.sentence, same, *([self.match.sentence] if self.match else [])])

    def _repr_html_(self) -> str:
        return f'<pre style="white-space: pre-wrap">{html.escape(repr(self))}</pre>'

    def to_pandas(self) -> "pandas.DataFrame":
        """A row for each tensor that differs (docs/audit.md); needs pandas."""
        return frame([change.as_json() for change in self.changes])

    @property
    def compared(self) -> int:
        """How many tensors both have, in the same shape."""
        return len(self.structure.common)

    @property
    def identical(self) -> int:
        """How many of them are the same bit for bit."""
        return self.compared - len({change.tensor for change in self.changes})

    @cached_property
    def sites(self) -> dict[Site, SiteEdit]:
        """u, a and λ in float64 of every site with a rank-1 change: λ is 0 where a component carries nothing of it.

        u is that of the matrix that changed most, and its sign is arbitrary; a has the sign that goes with it.
        """
        by_site: dict[Site, list[Recovered]] = {}
        for change in self.changes:
            if change.recovered is not None:
                by_site.setdefault(change.recovered.place.site, []).append(change.recovered)
        return {site: _site_edit(parts) for site, parts in by_site.items()}

    def as_json(self) -> dict[str, Any]:
        """Everything that was found (docs/audit.md)."""
        own = self.structure
        return {
            "schema_version": 1,
            "kind": "audit",
            "base": self.base,
            "edited": self.edited,
            "adapter": self.is_adapter,
            "classification": vars(self.classification),
            "along_sensitivity": mean_along(self.changes),
            "tensors": {
                "compared": self.compared,
                "identical": self.identical,
                "changed": [change.as_json() for change in self.changes],
                "added": own.added,
                "missing": own.missing,
                "other_shape": {n: {"before": one, "after": other} for n, (one, other) in own.other_shape.items()},
                "unread": own.unread,
            },
            "layers": own.layers,
            "settings": own.settings,
            "files": [{"name": name, "what": what} for name, what in own.files.items()],
            "match": None if self.match is None else self.match.as_json(),
            "notes": self.notes,
        }

    def write_directions(self, path: Path, *, overwrite: bool = False) -> None:
        """Write u of every site with a rank-1 change, as vectors made elsewhere are read; a DataError if none has."""
        if not self.sites:
            raise DataError(f"{self.edited} has no projection with a rank-1 change: there is no direction to write.")
        tensors = {str(site): edit.output_direction.float() for site, edit in sorted(self.sites.items())}
        with atomic_file(path, overwrite=overwrite) as scratch:
            write_tensors(tensors, scratch, {"format": "pt"})


def _site_edit(parts: list[Recovered]) -> SiteEdit:
    """The rank-1 changes of a site's matrices side by side."""
    module, u = parts[0].place.module, max(parts, key=lambda part: float(part.row.norm())).direction
    row = torch.zeros(module.shape[1], dtype=torch.float64)
    magnitude = torch.zeros(module.component_count, dtype=torch.float64)
    for part in parts:
        columns, width = part.place.projection.columns, module.component_width
        row[columns] = part.row if float(part.direction @ u) >= 0 else -part.row
        magnitude[columns.start // width : columns.stop // width] = part.magnitude
    return SiteEdit(u, row, magnitude, torch.zeros_like(magnitude), module.sizes)


def audit(
    base: str,
    edited: Path | str,
    edit: WeightEdit | None = None,
    *,
    layout: Path | Layout | None = None,
    trust_remote_code: bool = False,
) -> Audit:
    """Compare a checkpoint or an adapter with its base: what changed, how, and by which heads and neurons.

    Neither is loaded as a model; a few rows of one tensor are in memory at a time. What is found is compared with
    `edit`, if one is given. A MismatchError where the two are of different models.
    """
    ours, other = open_checkpoint(checkpoint_directory(base)), checkpoint_directory(str(edited), weights_alone=True)
    places, notes = _places(base, ours, layout, trust_remote_code)
    if edit is not None and places.model is None:
        raise ModelError(f"{edited} cannot be compared with an edit: {'; '.join(notes)}")
    is_adapter = (other / CONFIG_FILE).is_file()
    structure = _compared(ours, other, places, is_adapter)
    _require_related(base, str(edited), structure)
    changes: list[TensorChange] = []
    with step("Comparing tensors", len(structure.common)) as advance:
        for name in structure.common:
            changes += _changes(structure, name)
            advance(1)
    return Audit(
        base=base,
        edited=str(edited),
        is_adapter=is_adapter,
        changes=tuple(changes),
        structure=structure,
        classification=classify(changes, structure),
        match=None if edit is None else match_edit(edit, changes, structure),
        notes=notes,
    )


def _places(
    base: str, files: CheckpointFiles, layout: Path | Layout | None, trust_remote_code: bool
) -> tuple[Places, tuple[str, ...]]:
    """Where the base's parameters are in its files, or why that is not known."""
    try:
        skeleton = load_skeleton(base, layout=layout, trust_remote_code=trust_remote_code)
        return Places.of(skeleton, {name: tensor.shape for name, tensor in files.tensors.items()}), ()
    except ModelError as error:
        if layout is not None:
            raise
        return Places(), (f"heads and neurons cannot be named: {error}",)


def _compared(ours: CheckpointFiles, other: Path, places: Places, is_adapter: bool) -> Structure:
    """A base and a checkpoint's directory, or an adapter's, side by side."""
    before, settings, unread = dict(ours.tensors), Differences(), dict[str, str]()
    if is_adapter:
        after, unread = adapter_views(other, before, places)
        files = changed_files(ours, CheckpointFiles(other, (), {}))
        files = {name: what for name, what in files.items() if what == "differs" and name not in PROVENANCE}
    else:
        theirs = open_checkpoint(other)
        after, settings = dict(theirs.tensors), differing_settings(ours.directory, other)
        files = changed_files(ours, theirs)
    tie_heads(before, after, places, settings)
    return Structure(before, after, places, settings, files, unread)


def _require_related(base: str, edited: str, structure: Structure) -> None:
    before, shapes = len(structure.before), structure.other_shape
    shared = before - len(structure.missing)
    if shared * 2 < before:
        raise MismatchError(
            f"{edited} has only {shared} of the {before} tensors of {base}: it is another model, or packed otherwise. "
            "Give the base that it was made from."
        )
    if len(shapes) * 2 > shared:
        name, (one, other) = next(iter(shapes.items()))
        raise MismatchError(
            f"{edited} is no edit of {base}: {len(shapes)} of {shared} tensors have other shapes, such as {name}, "
            f"{list(one)} in the base and {list(other)} in the other. Give the base that it was made from."
        )


def _changes(structure: Structure, name: str) -> Iterator[TensorChange]:
    """What changed in a tensor; by expert where it holds several, all of which are projections."""
    before, after = structure.before[name], structure.after[name]
    if before.equals(after):
        return
    places = structure.places.by_tensor.get(name, [])
    experts = {place.expert for place in places}
    is_whole = None in experts or (places and len(experts) == before.shape[0])
    for place in places if is_whole else [None]:
        pair = structure.pair(name, None if place is None else place.expert)
        if pair is None:
            yield TensorChange(name, "bits", before.shape, (before.dtype_name, after.dtype_name))
            return
        if (change := describe_change(name, pair, place)) is not None:
            yield change
