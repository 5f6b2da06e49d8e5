"""Interventions at run time, by hooks: the weights are not touched, so leaving restores the model bit for bit.

Shapes: b = rows of a batch, t = tokens, d, m = width of a site's output and input.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Combined, Editing, Intervention, Site, Steering, WeightEdit
from steer2edit.errors import InvalidValueError
from steer2edit.models import LanguageModel, SiteUpdate, updated_outputs


@contextmanager
def edited(
    model: LanguageModel, edit: WeightEdit, strength: float = 1.0, *, allow_mismatch: bool = False
) -> Iterator[None]:
    """Run the model with the edit, `y ← y + strength · (x · a) u`, within the context.

    Equal to the merged weights and to the LoRA adapter up to the rounding of the model's dtype.

    Raises:
        MismatchError: the edit is for another model (unless `allow_mismatch`) or another shape.
    """
    model.require_fit(edit, allow_mismatch=allow_mismatch)
    with intervened(model, [Editing(edit, strength)]):
        yield


@contextmanager
def intervened(model: LanguageModel, rows: Sequence[Intervention]) -> Iterator[None]:
    """Run batches whose row i is under `rows[i]`; a single intervention applies to every row.

    Per row and site: `y ← y + (x · a) u + c`, with c = strength · v for steering. Edits made from one set of
    vectors share u, so a batch of different configurations differs only in the rows a.

    Raises:
        InvalidValueError: an edit is not finite at its strength.
    """
    parts = [row.parts if isinstance(row, Combined) else (row,) for row in rows]
    with ExitStack() as stack:
        for place in range(max(map(len, parts))):  # what is added to an output depends on the input alone
            own = [row[place] if place < len(row) else None for row in parts]
            stack.enter_context(updated_outputs(model, _updates(model, own)))
        yield


def _updates(model: LanguageModel, rows: Sequence[Steering | Editing | None]) -> dict[Site, SiteUpdate]:
    sites = {
        s for row in rows if row is not None for s in (row.vectors if isinstance(row, Steering) else row.edit).sites
    }
    updates = {}
    for site in sites:
        (d, m), device = model.sites[site].shape, model.sites[site].device
        a, u = _rank_one(rows, site, d, m, device) or (None, None)
        updates[site] = SiteUpdate(len(rows), a, u, _shifts(rows, site, d, device))
    return updates


def _rank_one(
    rows: Sequence[Intervention], site: Site, d: int, m: int, device: torch.device
) -> tuple[Float[Tensor, "b 1 m"], Float[Tensor, "_ 1 d"]] | None:
    """(a, u) of every row in float32, zero where a row has no edit; u once if all edits share it; `None` without any.

    Strengths multiply the rows a when they are stacked: making a scaled edit of every row costs more than that.
    """
    edits = [row.edit.sites.get(site) if isinstance(row, Editing) else None for row in rows]
    directions = [edit.output_direction for edit in edits if edit is not None]
    if not directions:
        return None
    strengths = torch.tensor([row.strength if isinstance(row, Editing) else 0.0 for row in rows])
    A = torch.stack([torch.zeros(m) if edit is None else edit.row for edit in edits]) * strengths[:, None]
    if not bool(torch.isfinite(A).all()):
        shown = ", ".join(f"{strength:g}" for strength in sorted(set(strengths.tolist())))
        raise InvalidValueError(f"{site}: the edit is not finite at strength {shown}. 1 applies it as it is.")
    if all(u is directions[0] for u in directions):
        return A.to(device)[:, None], directions[0].to(device)[None, None]
    U = torch.stack([torch.zeros(d) if edit is None else edit.output_direction for edit in edits])
    return A.to(device)[:, None], U.to(device)[:, None]


def _shifts(rows: Sequence[Intervention], site: Site, d: int, device: torch.device) -> Float[Tensor, "b 1 d"] | None:
    """c = strength · v of every row, zero where it is not steered; `None` if no row is."""
    shifts = [
        row.strength * row.vectors.sites[site].steering_vector
        if isinstance(row, Steering) and site in row.vectors.sites
        else None
        for row in rows
    ]
    if all(shift is None for shift in shifts):
        return None
    return torch.stack([torch.zeros(d) if shift is None else shift for shift in shifts]).to(device)[:, None]
