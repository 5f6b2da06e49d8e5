"""Whether a checkpoint's weights hold an edit already.

A neuron's importance g is the cosine of u with its column w of W, up to sign, and the part of w across u is the same
before and after the edit. So from an edited column w' = w + s λ k u the base's own share along u follows,

    uᵀw = sign(a λ) |g| ‖w' − u uᵀw'‖ / √(1 − g²),      s = (uᵀw' − uᵀw) / a,

and the neurons of a site agree on s only if they hold this edit (s = its strength) or none (s = 0).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.artifacts.checkpoints.base_checkpoint import EDIT_THE_BASE, Addition, BaseCheckpoint
from steer2edit.core import WeightEdit
from steer2edit.errors import MismatchError

_AGREEMENT = 0.1  # share of the strength by which half of the neurons may differ from it
_LEAST = 0.02  # strength that is told from none
_FEWEST = 4  # neurons that can be said to agree


def require_not_applied(base: BaseCheckpoint, edits: Sequence[WeightEdit]) -> None:
    """Refuse edits that are in a checkpoint already, by its manifest or by its weights.

    Raises:
        MismatchError: one is; adding it twice is never what is wanted.
    """
    for edit in edits:
        base.model.require_shapes(edit.shapes, "edits")
        made_on = (edit.metadata.get("model") or {}).get("fingerprint")
        if base.fingerprint is None or base.fingerprint == made_on:
            continue
        if not any(record.is_of(edit) for record in base.earlier_edits) and (strength := applied_strength(base, edit)):
            raise MismatchError(
                f"this edit is already in {base.model.name!r}: its weights hold it at strength {strength:.2f}. It is "
                f"not added twice. {EDIT_THE_BASE}"
            )


def applied_strength(base: BaseCheckpoint, edit: WeightEdit) -> float | None:
    """At which strength a checkpoint's weights already hold an edit of neurons; `None` if they do not, or nothing says.

    Heads alone cannot say: their importance depends on their inputs, which are not in the files.
    """
    neurons = {s: e for s, e in edit.sites.items() if e.component_width == 1 and bool(e.row.any())}
    if not neurons:
        return None
    site = max(neurons, key=lambda site: int(neurons[site].row.count_nonzero()))
    found = torch.cat([_strengths(addition) for addition in base.additions(site, edit)])
    if len(found) < _FEWEST:
        return None
    low, middle, high = found.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    agreed = abs(middle) >= _LEAST and high - low <= _AGREEMENT * abs(middle)
    return middle if agreed else None


def _strengths(addition: Addition) -> Float[Tensor, " neurons"]:
    """s of every edited neuron of one matrix."""
    matrix, edit = addition.projection, addition.edit
    along, squared = torch.zeros(matrix.shape[1]), torch.zeros(matrix.shape[1])
    for own, stored in matrix.chunks():
        part = stored.float()
        if matrix.transposed:
            along[own], squared[own] = part @ edit.output_direction, part.square().sum(dim=1)
        else:
            along += edit.output_direction[own] @ part
            squared += part.square().sum(dim=0)
    g = edit.importance.clamp(-1, 1)
    across = (squared - along.square()).clamp(min=0).sqrt()
    before = (edit.row * edit.magnitude).sign() * g.abs() * across / (1 - g.square()).clamp(min=1e-12).sqrt()
    edited = (edit.row != 0) & (edit.magnitude != 0)
    return ((along - before) / edit.row)[edited]
