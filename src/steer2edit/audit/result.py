"""What an audit found: its text, its JSON, and its rank-1 changes as an edit by site."""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from steer2edit.artifacts import atomic_file
from steer2edit.artifacts.tensors import write_tensors
from steer2edit.audit.change import TensorChange
from steer2edit.audit.classify import Classification, mean_along
from steer2edit.audit.match import EditMatch
from steer2edit.audit.other_files import FileChange
from steer2edit.audit.recovered import Recovered
from steer2edit.audit.structure import Structure
from steer2edit.core import Site, SiteEdit
from steer2edit.errors import DataError

SCHEMA_VERSION = 1


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
        return f"<pre>{html.escape(repr(self))}</pre>"

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
            "schema_version": SCHEMA_VERSION,
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
            "layers": {"added": own.added_layers, "missing": own.missing_layers, "moved": own.moved_layers},
            "settings": own.settings,
            "files": [vars(file) for file in self.files],
            "match": None if self.match is None else self.match.as_json(),
            "notes": self.notes,
        }

    def write_directions(self, path: Path, *, overwrite: bool = False) -> None:
        """Write u of every site with a rank-1 change, in the form in which vectors made elsewhere are read.

        Raises:
            ArtifactError: the file exists or cannot be written.
            DataError: no site has a rank-1 change.
        """
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
