"""Functions that are called where a site computes: at its matrices, at the experts of a mixture, at what it writes.

Every hook is removed on leaving, also after an exception. Of experts nothing of a model's own code stands here.
Architectures whose experts run through transformers' experts interface (`ExpertsInterface`) get an implementation that
runs theirs and takes what their gate puts out, which is the input of the down-projection. Llama 4 has no such
interface: its experts run once more with the identity as down-projection.

Shapes: s = pairs of a token and an expert it is routed to, t = tokens of the batch, e = experts, d, m = width of an
expert's output and input.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from steer2edit.models.site_module import ExpertBlock, Projection, SiteModule

_IMPLEMENTATION = "steer2edit"
_THEIRS = ("grouped_mm", "batched_mm")  # those that call the experts' own gate, in an order that is known


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

    Args:
        site: dense, or a mixture of experts.
        matrix: called at every matrix that is a module of its own: the dense site's, or the shared expert's.
        routed: called at the routed experts of a mixture.
        output: called at what the block of a mixture writes.
    """
    with ExitStack() as stack:
        if matrix is not None:
            for projection in site.plain:
                stack.enter_context(projection.module.register_forward_hook(partial(_at_matrix, matrix, projection)))
        if site.experts is not None and routed is not None:
            stack.enter_context(routed_tokens(site.experts, routed))
        if site.experts is not None and output is not None:
            for index, module in enumerate(site.experts.outputs):
                stack.enter_context(module.register_forward_hook(partial(at_output, partial(output, index))))
        yield


def _at_matrix(
    matrix: AtMatrix, projection: Projection, module: nn.Module, inputs: tuple[Any, ...], output: Tensor
) -> Tensor | None:
    return matrix(projection, inputs[0], output)


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
    config: Any = block.module.config
    before = config._experts_implementation
    if before != _IMPLEMENTATION:  # the layers of a model share one config
        double = block.module.get_parameter("down_proj").dtype == torch.float64  # which grouped_mm has not
        config._experts_implementation_before = before if before in _THEIRS else _THEIRS[int(double)]
    _UPDATES.setdefault(block.module, []).append(update)
    config._experts_implementation = _IMPLEMENTATION
    try:
        yield
    finally:
        config._experts_implementation = before
        if before != _IMPLEMENTATION:  # otherwise it would be saved with the config
            del config._experts_implementation_before
        _UPDATES[block.module].pop()


_UPDATES: WeakKeyDictionary[nn.Module, list[AtExperts]] = WeakKeyDictionary()


def _experts_forward(
    experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, **others: Any
) -> Tensor:
    """Their implementation, with its updates applied to what it puts out."""
    theirs = experts.config._experts_implementation_before
    activated: list[Tensor] = []
    with _activations(experts, activated):
        output: Tensor = ALL_EXPERTS_FUNCTIONS[theirs](experts, hidden_states, top_k_index, top_k_weights, **others)
    chosen, weights = top_k_index.reshape(-1), top_k_weights.reshape(-1)
    order = torch.arange(len(chosen), device=chosen.device)
    if theirs == "grouped_mm":  # in the order of the experts
        chosen, order = torch.sort(chosen)  # the same call on the same numbers as theirs, so the same order
    token = order // top_k_index.shape[-1]
    routed = RoutedTokens(activated[0], chosen, token, token, weights[order], len(top_k_index))
    for update in _UPDATES.get(experts, []):
        output = update(routed, output)
    return output


ALL_EXPERTS_FUNCTIONS.register(_IMPLEMENTATION, _experts_forward)


@contextmanager
def _activations(experts: Any, into: list[Tensor]) -> Iterator[None]:
    """Takes what the experts' gate puts out or, where they have none, their activation."""
    if not experts.has_gate:
        with experts.act_fn.register_forward_hook(lambda _, inputs, output: into.append(output)):
            yield
        return
    gate = experts._apply_gate

    def watched(projected: Tensor) -> Tensor:
        into.append(gate(projected))
        return into[-1]

    experts._apply_gate = watched  # on the instance, where it hides the class's
    try:
        yield
    finally:
        del experts._apply_gate


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
