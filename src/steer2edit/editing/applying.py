"""Interventions at run time, by hooks, and edits in the weights themselves, undone bit for bit on leaving.

Shapes: b = rows of a batch, t = tokens, d, m = width of a site's output and input.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Combined, Editing, Intervention, Site, SiteEdit, Steering, WeightEdit, finite_strength
from steer2edit.errors import InvalidValueError
from steer2edit.models import LanguageModel, SiteUpdate, updated_outputs


@contextmanager
def edited(
    model: LanguageModel, edit: WeightEdit, strength: float = 1.0, *, allow_mismatch: bool = False
) -> Iterator[None]:
    """Run the model with the edit, `y ← y + strength · (x · a) u`, within the context.

    Equal to the merged weights and to the LoRA adapter up to the rounding of the model's dtype. A MismatchError where
    the edit is for another model (unless `allow_mismatch`) or another shape.
    """
    model.require_fit(edit, allow_mismatch=allow_mismatch)
    with intervened(model, [Editing(edit, strength)]):
        yield


@contextmanager
def intervened(model: LanguageModel, rows: Sequence[Intervention]) -> Iterator[None]:
    """Run batches whose row i is under `rows[i]`; a single intervention applies to every row.

    Per row and site: `y ← y + (x · a) u + c`, with c = strength · v for steering. Edits made from one set of
    vectors share u, so a batch of different configurations differs only in the rows a.
    """
    parts = [row.parts if isinstance(row, Combined) else (row,) for row in rows]
    with ExitStack() as stack:
        for place in range(max(map(len, parts))):  # what is added to an output depends on the input alone
            own = [row[place] if place < len(row) else None for row in parts]
            stack.enter_context(updated_outputs(model, _updates(model, own)))
        yield


def _updates(model: LanguageModel, rows: Sequence[Steering | Editing | None]) -> dict[Site, SiteUpdate]:
    edits = [row.edit.sites if isinstance(row, Editing) else {} for row in rows]
    vectors = [row.vectors.sites if isinstance(row, Steering) else {} for row in rows]
    strengths = torch.tensor([0.0 if row is None else row.strength for row in rows])
    updates = {}
    for site in {site for own in (*edits, *vectors) for site in own}:
        shape, device = model.sites[site].shape, model.sites[site].device
        a, u = _rank_one([own.get(site) for own in edits], strengths, site, shape)
        shift = _stacked([own[site].steering_vector if site in own else None for own in vectors], strengths, shape[0])
        own = (None if value is None else value.to(device)[:, None] for value in (a, u, shift))
        updates[site] = SiteUpdate(len(rows), *own)
    return updates


def _stacked(
    rows: Sequence[Float[Tensor, " n"] | None], strengths: Float[Tensor, " b"], width: int
) -> Float[Tensor, "b n"] | None:
    """Every row times its strength, zero where there is none; `None` without any."""
    if all(row is None for row in rows):
        return None
    return torch.stack([torch.zeros(width) if row is None else row for row in rows]) * strengths[:, None]


def _rank_one(
    edits: Sequence[SiteEdit | None], strengths: Float[Tensor, " b"], site: Site, shape: tuple[int, int]
) -> tuple[Float[Tensor, "b m"] | None, Float[Tensor, "_ d"] | None]:
    """(a, u) of every row in float32, zero where a row has no edit; u once if all edits share it; `None` without any.

    Strengths multiply the rows a when they are stacked: making a scaled edit of every row costs more than that.
    """
    directions = [None if edit is None else edit.output_direction for edit in edits]
    A = _stacked([None if edit is None else edit.row for edit in edits], strengths, shape[1])
    if A is not None and not bool(torch.isfinite(A).all()):
        shown = ", ".join(f"{strength:g}" for strength in sorted(set(strengths.tolist())))
        raise InvalidValueError(f"{site}: the edit is not finite at strength {shown}. 1 applies it as it is.")
    given = [u for u in directions if u is not None]
    if given and all(u is given[0] for u in given):
        return A, given[0][None]
    return A, _stacked(directions, torch.ones_like(strengths), shape[0])


def merged_weight(weight: Float[Tensor, "d m"], edit: SiteEdit, strength: float = 1.0) -> Float[Tensor, "d m"]:
    """`W + strength · u aᵀ`, added in float32 (float64 if W is) and rounded once to W's dtype."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
    add_outer(wide, edit.output_direction.to(wide.device), (strength * edit.row).to(wide.device))
    return wide.to(weight.dtype)


def add_outer(
    wide: Float[Tensor, "d m"], u: Float[Tensor, " d"], a: Float[Tensor, " m"], product: Tensor | None = None
) -> None:
    """`W ← W + u aᵀ` in place, W in float32 or float64: the one definition of what an edit does to weights.

    The product, in `product` where memory is given, is rounded before it is added, as a LoRA's is when it is merged; a
    fused multiply-add would differ.
    """
    wide.add_(torch.outer(u, a, out=product))


@contextmanager
def merged(
    model: LanguageModel, edit: WeightEdit, strength: float = 1.0, *, allow_mismatch: bool = False
) -> Iterator[None]:
    """Hold the edited weights in the model within the context.

    The original weights are kept and copied back on leaving, also after an exception: subtracting the edit again
    would leave rounding behind. Raises as `edited`, and a ModelError where a weight is quantised.
    """
    model.require_fit(edit, allow_mismatch=allow_mismatch)
    finite_strength(strength)
    _ = model.fingerprint  # taken now, of the base weights
    parts = [(p, e.part(p.columns)) for site, e in edit.sites.items() for p in model.sites[site].projections]
    for projection, _ in parts:
        projection.require_plain("adding the edit to it")
    originals = [projection.weight.clone() for projection, _ in parts]
    try:
        for projection, part in parts:
            projection.weight.copy_(merged_weight(projection.weight, part, strength))
        yield
    finally:
        for (projection, _), original in zip(parts, originals, strict=True):
            projection.weight.copy_(original)
