"""What is added to a site's output: `y ← y + (x · a_row) u + c_row`, for every row of a batch its own.

Shapes: b = rows of a batch, r = interventions (1 for all rows, or b), t = tokens, d, m = width of a site's output and
input, p = width of one of its matrices, s = pairs of a token and an expert.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steer2edit.errors import InvalidValueError
from steer2edit.models.experts import RoutedTokens


@dataclass(frozen=True)
class SiteUpdate:
    """The interventions of a batch at one site, in float32 on the site's device.

    Args:
        rows: r, the number of interventions: 1 for all rows of a batch, or one for every row.
        a: of the edits, [r, m] or [1, m]; `None` without any.
        u: of the edits, [r, d] or [1, d]; `None` without any.
        shift: c of activation steering, [r, d] or [1, d]; `None` without any.
    """

    rows: int
    a: Float[Tensor, "_a m"] | None = None
    u: Float[Tensor, "_u d"] | None = None
    shift: Float[Tensor, "_c d"] | None = None

    def part(self, columns: slice) -> "SiteUpdate":
        """The edits of one matrix of a wide site, without the shift, which is added once for the whole block."""
        return SiteUpdate(self.rows, None if self.a is None else self.a[:, columns], self.u)

    def apply(self, x: Tensor, y: Tensor) -> Tensor:
        """(x [..., m], y [..., d]) → y + (x · a) u + c, computed in float32 and rounded once to the dtype of y."""
        x_rows, y_rows = _by_row(x, self.rows), _by_row(y, self.rows)
        u = None if self.u is None else self.u[:, None]
        c = None if self.shift is None else self.shift[:, None]
        if y.device.type != "cpu" or x_rows.shape[1] == 1:
            return _changed(x_rows, y_rows, self.a, u, c).view(y.shape)
        # row by row, what is in float32 for a moment stays in a CPU's cache: several times faster over a prompt
        changed = torch.empty_like(y_rows)
        for i in range(len(y_rows)):
            at = slice(i, i + 1)
            changed[at] = _changed(x_rows[at], y_rows[at], _own(self.a, i), _own(u, i), _own(c, i))
        return changed.view(y.shape)

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
        a = self.a.view(len(self.a), -1, routed.inputs.shape[-1])  # [r, experts, p]
        row = self._batch_row(routed)
        own = a[row if len(a) > 1 else 0, routed.expert]
        along = (routed.inputs.float() * own).sum(dim=-1) * routed.weight.float()
        flat = y.reshape(-1, y.shape[-1])
        total = torch.zeros(len(flat), device=y.device).index_add_(0, routed.row, along)
        change = total.view(-1, self.rows, routed.tokens // self.rows, 1) * self.u[:, None]
        return (flat + change.view(flat.shape)).to(y.dtype).view(y.shape)

    def _batch_row(self, routed: RoutedTokens) -> Int[Tensor, " s"]:
        """Which row of the batch each routed token is in: tokens are flattened row by row."""
        if routed.tokens % self.rows:
            raise InvalidValueError(_MISFIT.format(batch=routed.tokens, rows=self.rows))
        return routed.token // (routed.tokens // self.rows)


_MISFIT = "a batch of {batch} rows cannot run under {rows} interventions: give one, or one for every row."


def _changed(
    x: Float[Tensor, "b t m"],
    y: Float[Tensor, "b t d"],
    a: Float[Tensor, "_a m"] | None,
    u: Float[Tensor, "_u 1 d"] | None,
    c: Float[Tensor, "_c 1 d"] | None,
) -> Float[Tensor, "b t d"]:
    wide = y if a is None or u is None else torch.addcmul(y, along(x, a), u)
    return (wide if c is None else wide + c).to(y.dtype)


def _own(values: Tensor | None, row: int) -> Tensor | None:
    """What one row has of values that are its own, or the same for all."""
    return values if values is None or len(values) == 1 else values[row : row + 1]


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
