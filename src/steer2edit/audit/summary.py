"""An audit as JSON, and its rank-1 changes as an edit by site."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steer2edit.artifacts import atomic_file
from steer2edit.artifacts.tensors import write_tensors
from steer2edit.audit.audit import Audit
from steer2edit.audit.change import Place, TensorChange
from steer2edit.audit.classify import mean_along
from steer2edit.audit.components import Recovered
from steer2edit.audit.match import EditMatch
from steer2edit.core import Site
from steer2edit.errors import DataError

SCHEMA_VERSION = 1


def components(change: TensorChange) -> list[dict[str, Any]]:
    """The heads or neurons that carry a rank-1 change, strongest first."""
    recovered, place = change.recovered, change.place
    if recovered is None or place is None:
        return []
    order = recovered.magnitude.abs().argsort(descending=True, stable=True).tolist()
    return [_component(recovered, place, index) for index in order if bool(recovered.edited[index])]


def _component(recovered: Recovered, place: Place, index: int) -> dict[str, Any]:
    return {
        "component": str(place.component(index)),
        "magnitude": float(recovered.magnitude[index]),
        "error": float(recovered.error[index]),
        "norm": float(recovered.norm[index]),
    }


def site_magnitudes(audit: Audit) -> dict[Site, Tensor]:
    """λ [n] of every site with a rank-1 change, 0 where a component carries nothing of it."""
    found: dict[Site, Tensor] = {}
    for change in audit.changes:
        if change.recovered is None or change.place is None:
            continue
        place, width = change.place, change.place.component_width
        whole = found.setdefault(place.site, torch.zeros(place.site_width // width, dtype=torch.float64))
        whole[place.columns.start // width : place.columns.stop // width] = change.recovered.magnitude
    return found


def site_rows(audit: Audit) -> dict[Site, Tensor]:
    """a [m] of every site with a rank-1 change, in the sign of `site_directions`."""
    directions = site_directions(audit)
    rows: dict[Site, Tensor] = {}
    for change in audit.changes:
        if change.recovered is None or change.place is None:
            continue
        place, own = change.place, change.recovered
        row = rows.setdefault(place.site, torch.zeros(place.site_width, dtype=torch.float64))
        sign = 1.0 if float(own.direction @ directions[place.site]) >= 0 else -1.0
        row[place.columns] = sign * own.row
    return rows


def site_directions(audit: Audit) -> dict[Site, Tensor]:
    """u [d] of every site with a rank-1 change (of its matrix that changed most); its sign is arbitrary."""
    strongest: dict[Site, Recovered] = {}
    for change in audit.changes:
        if change.recovered is not None and change.place is not None:
            known = strongest.get(change.place.site)
            if known is None or change.recovered.row.norm() > known.row.norm():
                strongest[change.place.site] = change.recovered
    return {site: recovered.direction for site, recovered in strongest.items()}


def as_json(audit: Audit) -> dict[str, Any]:
    """Everything that was found, as JSON (docs/audit.md)."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "audit",
        "base": audit.base,
        "edited": audit.edited,
        "adapter": audit.is_adapter,
        "classification": vars(audit.classification),
        "along_sensitivity": mean_along(audit.changes),
        "tensors": {
            "compared": audit.compared,
            "identical": audit.identical,
            "changed": [_change(change) for change in audit.changes],
            "added": dict(audit.structure.added),
            "missing": dict(audit.structure.missing),
            "other_shape": {name: {"before": b, "after": a} for name, (b, a) in audit.structure.other_shape.items()},
            "unread": dict(audit.unread),
        },
        "layers": {
            "added": dict(audit.structure.added_layers),
            "missing": list(audit.structure.missing_layers),
            "moved": dict(audit.structure.moved_layers),
        },
        "settings": {name: list(values) for name, values in audit.structure.settings.items()},
        "files": [
            {"name": f.name, "what": f.what, "settings": {k: list(v) for k, v in f.settings.items()}}
            for f in audit.files
        ],
        "match": None if audit.match is None else _match(audit.match),
        "notes": list(audit.notes),
    }


def _change(change: TensorChange) -> dict[str, Any]:
    recovered, place = change.recovered, change.place
    found: dict[str, Any] = {
        "tensor": change.name,
        "site": None if place is None else str(place.site),
        "kind": change.kind,
        "rank": change.rank,
        "shape": list(change.shape),
        "dtypes": list(change.dtypes),
        "changed_entries": change.changed,
        "size": change.size,
        "relative_size": None if change.relative_size == float("inf") else change.relative_size,
        "singular_values": list(change.singular_values),
        "noise_edge": change.noise_edge,
        "entries": [list(entry) for entry in change.entries],
        "unexplained_entries": change.unexplained,
        "exceptions": [{"row": row, "column": column, "remains": rest} for row, column, rest in change.exceptions],
        "rounded_to": change.rounded_to,
    }
    if recovered is not None:
        strength, cosine = recovered.ablation
        found |= {
            "norm": float(recovered.row.norm()),
            "along_sensitivity": recovered.along,
            "ablation": {"strength": strength, "cosine": cosine},
            "components": components(change),
        }
    return found


def _match(match: EditMatch) -> dict[str, Any]:
    return {
        "matches": match.matches,
        "sentence": match.sentence,
        "strength": match.strength,
        "sites": [{**vars(site), "site": str(site.site), "matches": site.matches} for site in match.sites],
        "elsewhere": list(match.elsewhere),
        "besides": list(match.besides),
    }


def write_directions(audit: Audit, path: Path, *, overwrite: bool = False) -> None:
    """Write u of every site with a rank-1 change, in the form in which vectors made elsewhere are read.

    Raises:
        ArtifactError: the file exists or cannot be written.
        DataError: no site has a rank-1 change.
    """
    found = site_directions(audit)
    if not found:
        raise DataError(f"{audit.edited} has no projection with a rank-1 change: there is no direction to write.")
    tensors = {str(site): direction.float() for site, direction in sorted(found.items())}
    with atomic_file(path, overwrite=overwrite) as scratch:
        write_tensors(tensors, scratch, {"format": "pt"})
