"""What is added to a site's output: `y ← y + (x · a_row) u + c_row`, for every row of a batch its own.

Shapes: b = rows of a batch, r = interventions (1 for all rows, or b), t = tokens, d, m = width of a site's output and
input, p = width of one of its matrices, s = pairs of a token and an expert.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Site
from steer2edit.errors import InvalidValueError
from steer2edit.models.hooks import RoutedTokens, hooked
from steer2edit.models.language_model import LanguageModel
from steer2edit.models.site_module import SiteModule


@dataclass(frozen=True)
class SiteUpdate:
    """The interventions of a batch at one site, in float32 on the site's device."""

    rows: int  # r, the number of interventions: 1 for all rows of a batch, or one for every row
    a: Float[Tensor, "_a m"] | None = None  # of the edits, [r, m] or [1, m]; `None` without any
    u: Float[Tensor, "_u d"] | None = None  # of the edits, [r, d] or [1, d]; `None` without any
    shift: Float[Tensor, "_c d"] | None = None  # c of activation steering, [r, d] or [1, d]; `None` without any

    def part(self, columns: slice) -> "SiteUpdate":
        """The edits of one matrix of a wide site, without the shift, which is added once for the whole block."""
        return SiteUpdate(self.rows, None if self.a is None else self.a[:, columns], self.u)

    def apply(self, x: Tensor, y: Tensor) -> Tensor:
        """(x [..., m], y [..., d]) → y + (x · a) u + c, computed in float32 and rounded once to the dtype of y."""
        x_rows, y_rows = _by_row(x, self.rows), _by_row(y, self.rows)
        if y.device.type != "cpu" or x_rows.shape[1] == 1:
            return self._changed(x_rows, y_rows).view(y.shape)
        # row by row, what is in float32 for a moment stays in a CPU's cache: several times faster over a prompt
        changed = torch.empty_like(y_rows)
        for i in range(len(y_rows)):
            own = [v if v is None or len(v) == 1 else v[i : i + 1] for v in (self.a, self.u, self.shift)]
            changed[i : i + 1] = SiteUpdate(1, *own)._changed(x_rows[i : i + 1], y_rows[i : i + 1])
        return changed.view(y.shape)

    def _changed(self, x: Float[Tensor, "b t m"], y: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        edited = y if self.a is None or self.u is None else torch.addcmul(y, along(x, self.a), self.u[:, None])
        return (edited if self.shift is None else edited + self.shift[:, None]).to(y.dtype)

    def apply_shift(self, y: Tensor) -> Tensor:
        """y [..., d] → y + c."""
        assert self.shift is not None
        return (_by_row(y, self.rows) + self.shift[:, None]).to(y.dtype).view(y.shape)

    def apply_routed(self, routed: RoutedTokens, y: Tensor) -> Tensor:
        """The experts' output y [..., d] → y + Σ r_e (x_e · a_e) u over the experts e that a token is routed to.

        r_e is the routing weight. u is one for all experts of a token, so the sum over them is a number, not a vector:
        nothing of size d is made per expert, whether rows have one u or each its own.
        """
        assert self.a is not None
        assert self.u is not None
        if routed.tokens % self.rows:
            raise InvalidValueError(_MISFIT.format(batch=routed.tokens, rows=self.rows))
        row = routed.token // (routed.tokens // self.rows)  # tokens are flattened row by row
        a = self.a.view(len(self.a), -1, routed.inputs.shape[-1])  # [r, experts, p]
        own = a[row if len(a) > 1 else 0, routed.expert]
        along = (routed.inputs.float() * own).sum(dim=-1) * routed.weight.float()
        flat = y.reshape(-1, y.shape[-1])
        total = torch.zeros(len(flat), device=y.device).index_add_(0, routed.row, along)
        change = total.view(-1, self.rows, routed.tokens // self.rows, 1) * self.u[:, None]
        return (flat + change.view(flat.shape)).to(y.dtype).view(y.shape)


_MISFIT = "a batch of {batch} rows cannot run under {rows} interventions: give one, or one for every row."


def _by_row(values: Float[Tensor, "... n"], rows: int) -> Float[Tensor, "b t n"]:
    """Values as [b, t, n]; some projections (OPT's MLP) see the batch flattened to [b · t, n].

    Raises:
        InvalidValueError: there is more than one intervention, but not one for every row of the batch.
    """
    batch = len(values) if values.ndim > 2 else rows
    if rows not in (1, batch) or len(values) % batch:
        raise InvalidValueError(_MISFIT.format(batch=len(values), rows=rows))
    return values.reshape(batch, -1, values.shape[-1])


def along(x: Float[Tensor, "b t m"], a: Float[Tensor, "_a m"]) -> Float[Tensor, "b t 1"]:
    """x · a of every position, accumulated in float32: with one a for all rows, or one for each.

    The three ways are one sum; which is fast depends on the shape. A batched product of one column per row is slow
    where a row has a single token, which is every step of generation but the first.
    """
    if len(a) == 1:
        return (x.float() @ a[0])[..., None]
    if x.shape[1] == 1:
        return (x * a[:, None]).sum(dim=-1, keepdim=True)
    return torch.bmm(x.float(), a[:, :, None])


@contextmanager
def updated_outputs(model: LanguageModel, updates: Mapping[Site, SiteUpdate]) -> Iterator[None]:
    """Add each update to what its site writes within the context."""
    with ExitStack() as stack:
        for site, update in updates.items():
            stack.enter_context(_updated(model.sites[site], update))
        yield


def _updated(site: SiteModule, update: SiteUpdate) -> AbstractContextManager[None]:
    """The edits at every matrix; the shift of a mixture once, at the block's output."""
    if site.experts is None:
        return hooked(site, matrix=lambda projection, x, y: update.apply(x, y))
    edits = None if update.a is None else update.part(slice(0, site.routed[-1].columns.stop))
    return hooked(
        site,
        matrix=None if update.a is None else lambda projection, x, y: update.part(projection.columns).apply(x, y),
        routed=None if edits is None else edits.apply_routed,
        output=None if update.shift is None else lambda index, y: None if index else update.apply_shift(y),
    )
