"""The audit of a checkpoint, or of an adapter, against its base: streamed, tensor by tensor."""

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from steer2edit.artifacts import atomic_file
from steer2edit.artifacts.checkpoints.files import CheckpointFiles, open_checkpoint
from steer2edit.artifacts.tensors import write_tensors
from steer2edit.audit.adapter import adapter_views, is_adapter
from steer2edit.audit.change import Recovered, TensorChange, describe_change
from steer2edit.audit.matrices import MatrixPair, float_dtype
from steer2edit.audit.structure import (
    PROVENANCE,
    Differences,
    FileChange,
    Places,
    Structure,
    Views,
    changed_files,
    compare_structure,
    counted,
    differing_settings,
    tie_heads,
)
from steer2edit.audit.verdict import Classification, EditMatch, classify, match_edit, mean_along
from steer2edit.core import Site, SiteEdit, WeightEdit
from steer2edit.errors import DataError, MismatchError, ModelError
from steer2edit.models import StoredMatrix, checkpoint_directory, load_skeleton
from steer2edit.models.layout import Layout
from steer2edit.progress import step


@dataclass(frozen=True, repr=False)
class Audit:
    """What differs between a base and another checkpoint."""

    base: str  # as it was given
    edited: str  # the same
    is_adapter: bool  # whether `edited` is an adapter
    compared: int  # tensors that both have, in the same shape
    identical: int  # how many of them are the same bit for bit
    changes: tuple[TensorChange, ...]  # the others
    structure: Structure  # what differs besides: tensors that only one has, other shapes, settings
    unread: Mapping[str, str]  # tensors of an adapter that were not looked at, and why
    files: tuple[FileChange, ...]  # other files that differ
    classification: Classification  # the whole in words
    match: EditMatch | None  # against the edit that was given, if one was
    notes: tuple[str, ...]  # what else could not be told, and why

    def __repr__(self) -> str:
        same = f"{self.identical} of {self.compared} tensors are identical to {self.base}."
        return "\n".join([self.classification.sentence, same, *([self.match.sentence] if self.match else [])])

    def _repr_html_(self) -> str:
        return f'<pre style="white-space: pre-wrap">{html.escape(repr(self))}</pre>'

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
        shapes = {name: {"before": before, "after": after} for name, (before, after) in own.other_shape.items()}
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
                "other_shape": shapes,
                "unread": self.unread,
            },
            "layers": {"added": own.added_layers, "missing": own.missing_layers},
            "settings": own.settings,
            "files": [file._asdict() for file in self.files],
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


@dataclass(frozen=True)
class _Sides:
    before: Views
    after: Views
    places: Places
    files: list[FileChange]
    notes: list[str]
    settings: Differences = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    is_adapter: bool = False

    @property
    def common(self) -> list[str]:
        return [n for n in self.before if n in self.after and self.before[n].shape == self.after[n].shape]

    def pair_of(self, place: StoredMatrix) -> MatrixPair | None:
        """A projection before and after, or `None` where the two cannot be subtracted."""
        before, after = self.before[place.tensor], self.after.get(place.tensor)
        if after is None or after.shape != before.shape or not (float_dtype(before) and float_dtype(after)):
            return None
        return MatrixPair(before, after, place.expert)


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
    sides = _open(base, str(edited), layout, trust_remote_code)
    changes: list[TensorChange] = []
    identical = 0
    with step("Comparing tensors", len(sides.common)) as advance:
        for name in sides.common:
            found = list(_changes(sides, name))
            identical += not found
            changes += found
            advance(1)
    told = {*PROVENANCE, *(["config.json"] if sides.settings else [])}
    differing = [file.name for file in sides.files if file.name not in told]
    code = tuple(name for name in differing if name.endswith(".py"))
    structure = compare_structure(sides.before, sides.after, sides.settings, code)
    unread = counted(sides.unread, "tensor", "of the adapter not looked at")
    besides = counted([n for n in differing if n not in code], "other file", "that differs", "that differ")
    match = None
    if edit is not None:
        if not sides.places.by_key:
            raise ModelError(f"{edited} cannot be compared with an edit: {'; '.join(sides.notes)}")
        match = match_edit(edit, changes, sides.places, sides.pair_of, [*structure.phrases, *unread, *besides])
    return Audit(
        base=base,
        edited=str(edited),
        is_adapter=sides.is_adapter,
        compared=len(sides.common),
        identical=identical,
        changes=tuple(changes),
        structure=structure,
        unread=sides.unread,
        files=tuple(sides.files),
        classification=classify(changes, len(sides.common), structure.phrases, unread, besides),
        match=match,
        notes=tuple(sides.notes),
    )


def _open(base: str, edited: str, layout: Path | Layout | None, trust_remote_code: bool) -> _Sides:
    where, other = checkpoint_directory(base), checkpoint_directory(edited, weights_alone=True)
    ours = open_checkpoint(where)
    before = dict(ours.tensors)
    places, notes = Places(), list[str]()
    try:
        skeleton = load_skeleton(base, layout=layout, trust_remote_code=trust_remote_code)
        places = Places.of(skeleton, {name: tensor.shape for name, tensor in ours.tensors.items()})
    except ModelError as error:
        if layout is not None:
            raise
        notes.append(f"heads and neurons cannot be named: {error}")
    if is_adapter(other):
        after, unread = adapter_views(other, before, places)
        files = changed_files(ours, CheckpointFiles(other, (), {}))
        files = [file for file in files if file.what == "differs" and file.name not in PROVENANCE]
        return _Sides(before, after, places, files, notes, unread=unread, is_adapter=True)
    theirs = open_checkpoint(other)
    after = dict(theirs.tensors)
    _require_related(base, edited, before, after)
    settings = differing_settings(where, other)
    tie_heads(before, after, places, settings)
    return _Sides(before, after, places, changed_files(ours, theirs), notes, settings)


def _require_related(base: str, edited: str, before: Views, after: Views) -> None:
    shared = [name for name in before if name in after]
    other_shape = [name for name in shared if before[name].shape != after[name].shape]
    if len(shared) * 2 < len(before):
        what = (
            f"has only {len(shared)} of the {len(before)} tensors of {base}: it is another model, or packed otherwise"
        )
        raise MismatchError(f"{edited} {what}. Give the base that it was made from.")
    if len(other_shape) * 2 > len(shared):
        name, shapes = other_shape[0], [list(views[other_shape[0]].shape) for views in (before, after)]
        raise MismatchError(
            f"{edited} is no edit of {base}: {len(other_shape)} of {len(shared)} tensors have other shapes, such as "
            f"{name}, {shapes[0]} in the base and {shapes[1]} in the other. Give the base that it was made from."
        )


def _changes(sides: _Sides, name: str) -> Iterator[TensorChange]:
    """What changed in a tensor; by expert where it holds several, all of which are projections."""
    before, after = sides.before[name], sides.after[name]
    if before.equals(after):
        return
    if float_dtype(before) is None or float_dtype(after) is None:
        yield TensorChange(name, "bits", before.shape, (before.dtype_name, after.dtype_name))
        return
    places = sides.places.by_tensor[name]
    experts = {place.expert for place in places}
    is_whole = None in experts or (places and len(experts) == before.shape[0])
    for place in places if is_whole else [None]:
        pair = MatrixPair(before, after, None if place is None else place.expert)
        if (change := describe_change(name, pair, place)) is not None:
            yield change
