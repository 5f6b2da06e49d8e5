"""Interventions at run time, by hooks: the weights are not touched, so leaving restores the model bit for bit.

Shapes: b = rows of a batch, t = tokens, d, m = width of a site's output and input.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Editing, Intervention, Site, SiteEdit, Steering, WeightEdit
from steer2edit.errors import InvalidValueError
from steer2edit.models import LanguageModel, OutputUpdate, updated_outputs


@contextmanager
def edited(
    model: LanguageModel, edit: WeightEdit, strength: float = 1.0, *, allow_mismatch: bool = False
) -> Iterator[None]:
    """Run the model with the edit, `y ← y + strength · (x · a) u`, within the context.

    Equal to the merged weights and to the LoRA adapter up to the rounding of the model's dtype.

    Raises:
        MismatchError: the edit is for another model (unless `allow_mismatch`) or another shape.
    """
    require_fit(model, edit, allow_mismatch=allow_mismatch)
    with intervened(model, [Editing(edit, strength)]):
        yield


def require_fit(model: LanguageModel, edit: WeightEdit, *, allow_mismatch: bool = False) -> None:
    """Refuse an edit of another model or of another shape.

    Raises:
        MismatchError: as said.
    """
    shapes = {s: (e.output_direction.numel(), e.row.numel()) for s, e in edit.sites.items()}
    model.require_shapes(shapes, "edits")
    model.require_same(edit.metadata, "edits", allow_mismatch=allow_mismatch)


@contextmanager
def intervened(model: LanguageModel, rows: Sequence[Intervention]) -> Iterator[None]:
    """Run batches whose row i is under `rows[i]`; a single intervention applies to every row.

    Per row and site: `y ← y + (x · a) u + c`, with c = strength · v for steering. Edits made from one set of
    vectors share u, so a batch of different configurations differs only in the rows a.

    Args:
        model: the model.
        rows: one intervention per row of the batches to come, or exactly one for all.
    """
    sites = {
        s for row in rows if row is not None for s in (row.vectors if isinstance(row, Steering) else row.edit).sites
    }
    updates: dict[Site, OutputUpdate] = {s: _update(model, s, rows) for s in sites}
    with updated_outputs(model, updates):
        yield


def _update(model: LanguageModel, site: Site, rows: Sequence[Intervention]) -> OutputUpdate:
    d, m = model.sites[site].shape
    device = model.sites[site].device
    edits = [_site_edit(row, site) for row in rows]
    shifts = [_shift(row, site) for row in rows]
    terms: list[OutputUpdate] = []
    if any(edit is not None for edit in edits):
        terms.append(_rank_one(edits, d, m, device))
    if any(shift is not None for shift in shifts):
        c = torch.stack([torch.zeros(d) if shift is None else shift for shift in shifts]).to(device)
        terms.append(lambda x, y: c[:, None, :])

    def update(x: Tensor, y: Tensor) -> Tensor:
        x_rows, y_rows = _by_row(x, len(rows)), _by_row(y, len(rows))
        change = terms[0](x_rows, y_rows)
        for term in terms[1:]:
            change = change + term(x_rows, y_rows)
        return (y_rows + change).to(y.dtype).view(y.shape)

    return update


def _by_row(values: Float[Tensor, "... n"], rows: int) -> Float[Tensor, "b t n"]:
    """Values as [b, t, n]; some projections (OPT's MLP) see the batch flattened to [b · t, n].

    Raises:
        InvalidValueError: there is more than one intervention, but not one for every row of the batch.
    """
    batch = len(values) if values.ndim > 2 else rows
    if rows not in (1, batch) or len(values) % batch:
        raise InvalidValueError(
            f"a batch of {len(values)} rows cannot run under {rows} interventions: give one, or one for every row."
        )
    return values.reshape(batch, -1, values.shape[-1])


def _rank_one(edits: Sequence[SiteEdit | None], d: int, m: int, device: torch.device) -> OutputUpdate:
    """(x, y) → (x · a_row) u_row, in float32."""
    A = torch.stack([torch.zeros(m) if e is None else e.row for e in edits]).to(device)
    u = _shared_direction(edits)
    if u is None:
        U = torch.stack([torch.zeros(d) if e is None else e.output_direction for e in edits])[:, None, :].to(device)
    else:
        U = u.to(device)
    if len(edits) == 1:
        a = A[0]
        return lambda x, y: (x.float() @ a)[..., None] * U
    return lambda x, y: torch.einsum("btm,bm->bt", x.float(), A)[..., None] * U


def _shared_direction(edits: Sequence[SiteEdit | None]) -> Float[Tensor, " d"] | None:
    """The u of all edits, if it is one and the same tensor."""
    present = [edit.output_direction for edit in edits if edit is not None]
    return present[0] if all(u is present[0] for u in present) else None


def _site_edit(row: Intervention, site: Site) -> SiteEdit | None:
    if not isinstance(row, Editing) or site not in row.edit.sites:
        return None
    return row.edit.sites[site].scaled(row.strength)


def _shift(row: Intervention, site: Site) -> Float[Tensor, " d"] | None:
    if not isinstance(row, Steering) or site not in row.vectors.sites:
        return None
    return row.strength * row.vectors.sites[site].steering_vector
