"""Functions that are called where a site computes, and what they add to its output.

What is added is `y ← y + (x · a_row) u + c_row`, for every row of a batch its own. Every hook is removed on leaving. Of
experts nothing of a model's own code stands here. Where they run through transformers' experts interface, they are set
to an implementation that calls their own gate, and what that puts out is the input of the down-projection. Llama 4 has
no such interface: its experts run once more with the identity as down-projection.

Shapes: b = rows of a batch, r = interventions (1 for all rows, or b), t = tokens, d, m = width of a site's output and
input (of experts, of one), p = width of one of its matrices, s = pairs of a token and an expert it is routed to.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steer2edit.core import Site
from steer2edit.errors import InvalidValueError
from steer2edit.models.language_model import LanguageModel
from steer2edit.models.site_module import ExpertBlock, Projection, SiteModule
from steer2edit.models.swapped import swapped

_IN_KNOWN_ORDER = ("grouped_mm", "batched_mm")
"""The implementations of experts that call the experts' own gate, on pairs in an order that is known."""


@dataclass(frozen=True)
class RoutedTokens:
    """Every pair of a token and an expert that it was routed to."""

    inputs: Float[Tensor, "s m"]  # x of the expert's down-projection, [s, m]
    expert: Int[Tensor, " s"]  # which, [s]
    token: Int[Tensor, " s"]  # flat position of the token in the batch, [s]
    row: Int[Tensor, " s"]  # row of the experts' output that W x is added to, [s]
    weight: Float[Tensor, " s"]  # routing weight that multiplies W x, [s]
    tokens: int  # t, how many tokens the batch has


AtMatrix = Callable[[Projection, Tensor, Tensor], Tensor | None]
"""(matrix, x, y) → the y to use instead, or `None` to leave it."""
AtExperts = Callable[[RoutedTokens, Tensor], Tensor]
"""(routed tokens, the experts' output) → the output to use, of the same shape and dtype."""
AtOutput = Callable[[int, Tensor], Tensor | None]
"""(which of the outputs that add up to what the block writes, y) → the y to use instead, or `None`."""


@contextmanager
def hooked(
    site: SiteModule,
    *,
    matrix: AtMatrix | None = None,
    routed: AtExperts | None = None,
    output: AtOutput | None = None,
) -> Iterator[None]:
    """Call functions whenever a site computes within the context.

    `matrix` at every matrix that is a module of its own (the dense site's, or the shared expert's), `routed` at the
    routed experts of a mixture, `output` at what its block writes.
    """
    with ExitStack() as stack:
        if matrix is not None:
            for p in site.plain:
                stack.enter_context(p.module.register_forward_hook(lambda _, given, y, p=p: matrix(p, given[0], y)))
        if site.experts is not None and routed is not None:
            stack.enter_context(routed_tokens(site.experts, routed))
        if site.experts is not None and output is not None:
            for index, module in enumerate(site.experts.outputs):
                stack.enter_context(module.register_forward_hook(partial(at_output, partial(output, index))))
        yield


def at_output(change: Callable[[Tensor], Tensor | None], module: nn.Module, inputs: Any, output: Any) -> Any:
    """A forward hook for a block, which may return its output alone or with the router's."""
    if not isinstance(output, tuple):
        return change(output)
    changed = change(output[0])
    return None if changed is None else (changed, *output[1:])


@contextmanager
def routed_tokens(block: ExpertBlock, update: AtExperts) -> Iterator[None]:
    """Pass every forward of the routed experts through `update` within the context; their own output stays as it is."""
    if block.scaled_inputs:
        with block.module.register_forward_hook(partial(_scaled_inputs, update)):
            yield
        return
    experts: Any = block.module
    configured, activated = experts.config._experts_implementation, list[Tensor]()
    if configured not in _IN_KNOWN_ORDER:  # the layers of a model share one config
        double = experts.down_proj.dtype == torch.float64  # which grouped_mm has not
        experts.config._experts_implementation = _IN_KNOWN_ORDER[int(double)]
    try:
        with ExitStack() as stack:
            stack.enter_context(_activations(experts, activated))
            note = partial(_interface, update, activated)
            stack.enter_context(experts.register_forward_hook(note, with_kwargs=True))
            yield
    finally:
        experts.config._experts_implementation = configured


def _activations(experts: Any, into: list[Tensor]) -> AbstractContextManager[Any]:
    """Takes what the experts' gate puts out or, where they have none, their activation."""
    if not experts.has_gate:
        handle: AbstractContextManager[Any] = experts.act_fn.register_forward_hook(lambda _, x, y: into.append(y))
        return handle
    gate = experts._apply_gate

    def watched(projected: Tensor) -> Tensor:
        into.append(gate(projected))
        return into[-1]

    return swapped(experts, "_apply_gate", watched)


def _interface(
    update: AtExperts, activated: list[Tensor], experts: Any, args: tuple[Tensor, ...], named: Any, output: Tensor
) -> Tensor:
    """A forward hook for experts that run through transformers' interface."""
    order = ("hidden_states", "top_k_index", "top_k_weights")
    given = {**dict(zip(order, args, strict=False)), **named}
    chosen, weights = given["top_k_index"].reshape(-1), given["top_k_weights"].reshape(-1)
    pairs = torch.arange(len(chosen), device=chosen.device)
    if experts.config._experts_implementation == "grouped_mm":  # in the order of the experts
        chosen, pairs = torch.sort(chosen)  # the same call on the same numbers as theirs, so the same order
    token = pairs // given["top_k_index"].shape[-1]
    tokens = len(given["top_k_index"])
    return update(RoutedTokens(activated.pop(), chosen, token, token, weights[pairs], tokens), output)


def _scaled_inputs(update: AtExperts, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A forward hook for experts that are each given every token, times its routing weight."""
    count, width, d = module.get_parameter("down_proj").shape
    padded = -(-width // d) * d  # the forward reshapes its result to rows of d
    identity = torch.eye(width, padded, dtype=inputs[0].dtype, device=inputs[0].device).expand(count, -1, -1)
    other = copy.copy(module)
    other._parameters = {**module._parameters, "down_proj": identity}  # type: ignore[dict-item]
    hidden = inputs[0].reshape(-1, inputs[0].shape[-1])
    tokens = len(hidden) // count
    row = hidden.any(dim=1).nonzero().flatten()  # a token that is not routed to an expert is given to it as zeros
    x = type(module).forward(other, *inputs).reshape(-1, padded)[row, :width]
    return update(RoutedTokens(x, row // tokens, row % tokens, row, torch.ones_like(x[:, 0]), tokens), output)


@dataclass(frozen=True)
class SiteUpdate:
    """The interventions of a batch at one site, in float32 on the site's device."""

    rows: int  # r, the number of interventions: 1 for all rows of a batch, or one for every row
    a: Float[Tensor, "_a 1 m"] | None = None  # of the edits, of every row or one for all; `None` without any
    u: Float[Tensor, "_u 1 d"] | None = None  # of the edits, likewise
    shift: Float[Tensor, "_c 1 d"] | None = None  # c of activation steering, likewise

    def part(self, columns: slice) -> "SiteUpdate":
        """The edits of one matrix of a wide site, without the shift, which is added once for the whole block."""
        return SiteUpdate(self.rows, None if self.a is None else self.a[..., columns], self.u)

    def apply(self, x: Tensor, y: Tensor) -> Tensor:
        """(x [..., m], y [..., d]) → y, changed in place to y + (x · a) u + c.

        The change is computed in float32 and rounded to the dtype of y; a row of a batch has an edit or a shift. Rows
        are taken a few at a time, so that what is in float32 for a moment stays in a CPU's cache.
        """
        x_rows, y_rows = _by_row(x, self.rows), _by_row(y, self.rows)
        at_once = max(1, _AT_ONCE[y.device.type == "cpu"] // (x_rows.shape[1] * x_rows.shape[2]))
        if at_once >= len(y_rows):
            self._add(x_rows, y_rows)
            return y_rows.view(y.shape)
        for begin in range(0, len(y_rows), at_once):
            part = slice(begin, begin + at_once)
            factors = (v if v is None or len(v) == 1 else v[part] for v in (self.a, self.u, self.shift))
            SiteUpdate(1, *factors)._add(x_rows[part], y_rows[part])
        return y_rows.view(y.shape)

    def _add(self, x: Float[Tensor, "b t m"], y: Float[Tensor, "b t d"]) -> None:
        if self.a is not None and self.u is not None:
            y.addcmul_(along(x, self.a), self.u)
        if self.shift is not None:
            y.add_(self.shift)

    def apply_shift(self, y: Tensor) -> Tensor:
        """y [..., d] → y + c."""
        assert self.shift is not None
        return (_by_row(y, self.rows) + self.shift).to(y.dtype).view(y.shape)

    def apply_routed(self, routed: RoutedTokens, y: Tensor) -> Tensor:
        """The experts' output y [..., d] → y + Σ r_e (x_e · a_e) u over the experts e that a token is routed to.

        r_e is the routing weight. u is one for all experts of a token, so nothing of size d is made per expert.
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
        change = total.view(-1, self.rows, routed.tokens // self.rows, 1) * self.u
        return (flat + change.view(flat.shape)).to(y.dtype).view(y.shape)


_AT_ONCE = (2**26, 2**19)
"""Numbers of x that are in float32 at once: on another device (where calls cost), on a CPU (2 MiB)."""
_MISFIT = "a batch of {batch} rows cannot run under {rows} interventions: give one, or one for every row."


def _by_row(values: Float[Tensor, "... n"], rows: int) -> Float[Tensor, "b t n"]:
    """Values as [b, t, n]; some projections (OPT's MLP) see the batch flattened to [b · t, n]."""
    batch = len(values) if values.ndim > 2 else rows
    if rows not in (1, batch) or len(values) % batch:
        raise InvalidValueError(_MISFIT.format(batch=len(values), rows=rows))
    return values if values.ndim == 3 else values.reshape(batch, -1, values.shape[-1])


def along(x: Float[Tensor, "b t m"], a: Float[Tensor, "_a 1 m"]) -> Float[Tensor, "b t 1"]:
    """x · a of every position, in float32: with one a for all rows, or one for each.

    A sum of products is faster than a batched matrix product of one column, and the same for one a or for many.
    """
    return (x * a).sum(dim=-1, keepdim=True)


@contextmanager
def updated_outputs(model: LanguageModel, updates: Mapping[Site, SiteUpdate]) -> Iterator[None]:
    """Add each update to what its site writes within the context; the shift of a mixture once, to the block's sum."""
    with ExitStack() as stack:
        for site, update in updates.items():
            stack.enter_context(_updated(model.sites[site], update))
        yield


def _updated(site: SiteModule, update: SiteUpdate) -> AbstractContextManager[None]:
    if site.experts is None:
        return hooked(site, matrix=lambda projection, x, y: update.apply(x, y))
    edits = None if update.a is None else update.part(slice(0, site.routed[-1].columns.stop))
    return hooked(
        site,
        matrix=None if edits is None else lambda projection, x, y: update.part(projection.columns).apply(x, y),
        routed=None if edits is None else edits.apply_routed,
        output=None if update.shift is None else lambda index, y: None if index else update.apply_shift(y),
    )
