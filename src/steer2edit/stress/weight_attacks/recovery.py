"""The edit read back out of the edited checkpoint, as the audit does it."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from steer2edit.artifacts import save_checkpoint
from steer2edit.audit import Audit, audit
from steer2edit.core import SiteEdit, WeightEdit
from steer2edit.evaluation import rate
from steer2edit.models import LanguageModel


@dataclass(frozen=True)
class Recovered:
    """What the audit found of an edit.

    Args:
        edit: u and a of every site where it found a rank-1 change; `None` where it found none.
        sites: for every edited site, whether it was found.
        components: for every edited component, whether it was named.
        named: for every component that was named, whether it is edited.
        strength: of the edit, as fitted.
        facts: JSON-able.
    """

    edit: WeightEdit | None
    sites: Sequence[bool] = ()
    components: Sequence[bool] = ()
    named: Sequence[bool] = ()
    strength: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def recover_edit(model: LanguageModel, edit: WeightEdit, strength: float, folder: Path) -> Recovered:
    """Write the edited checkpoint, compare it with the base's files, and take the files away again.

    Args:
        model: the base; its name leads to its files.
        edit: the edit.
        strength: it is written with.
        folder: where the checkpoint is written for a while.

    Raises:
        ModelError: the base's files are not there.
        ArtifactError: the checkpoint cannot be written.
    """
    directory = folder / "audited"
    try:
        save_checkpoint(model, edit, directory, strength=strength, allow_mismatch=True)
        found = audit(model.name, directory, edit, layout=model.layout, trust_remote_code=model.trust_remote_code)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return compare(edit, found)


def compare(edit: WeightEdit, found: Audit) -> Recovered:
    """What an audit found, against the edit that was written."""
    true = {site: e.magnitude != 0 for site, e in edit.sites.items() if bool(e.row.any())}
    seen = {site: e.magnitude != 0 for site, e in found.sites.items()}
    sites = [site in seen for site in true]
    components, named = (
        [hit for site, own in wanted.items() for hit in other.get(site, torch.zeros_like(own))[own].tolist()]
        for wanted, other in ((true, seen), (seen, true))
    )
    strength = None if found.match is None else found.match.strength
    facts = {
        "classification": found.classification.label,
        "sentence": found.classification.sentence,
        "match": None if found.match is None else found.match.sentence,
        "strength": strength,
        "sites_found": rate(sites).to_json(),
        "components_found": rate(components).to_json(),
        "components_named_rightly": rate(named).to_json(),
    }
    return Recovered(recovered_edit(found), sites, components, named, strength, facts)


def recovered_edit(found: Audit) -> WeightEdit | None:
    """The audit's rank-1 changes as an edit, which may be subtracted."""
    sites = {
        site: SiteEdit(own.output_direction.float(), own.row.float(), own.magnitude.float(), own.importance.float())
        for site, own in found.sites.items()
    }
    return WeightEdit(sites) if sites else None
