"""What passes through the experts of a mixture: the input of each expert's down-projection, token by token.

Nothing of a model's own code stands here. Architectures whose experts run through transformers' experts interface
(`ExpertsInterface`) get an implementation that runs theirs and takes what their gate puts out, which is the input of
the down-projection. Llama 4 has no such interface: its experts run once more with the identity as down-projection.

Shapes: s = pairs of a token and an expert it is routed to, t = tokens of the batch, d, m = width of an expert's output
and input.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from steer2edit.models.site_module import ExpertBlock

_IMPLEMENTATION = "steer2edit"
_THEIRS = ("grouped_mm", "batched_mm")  # those that call the experts' own gate, in an order that is known


@dataclass(frozen=True)
class RoutedTokens:
    """Every pair of a token and an expert that it was routed to.

    Args:
        inputs: x of the expert's down-projection, [s, m].
        expert: which, [s].
        token: flat position of the token in the batch, [s].
        row: row of the experts' output that W x is added to, [s].
        weight: routing weight that multiplies W x, [s].
        tokens: t, how many tokens the batch has.
    """

    inputs: Float[Tensor, "s m"]
    expert: Int[Tensor, " s"]
    token: Int[Tensor, " s"]
    row: Int[Tensor, " s"]
    weight: Float[Tensor, " s"]
    tokens: int


RoutedUpdate = Callable[[RoutedTokens, Tensor], Tensor]
"""(routed tokens, the experts' output) → the new output, of the same shape and dtype."""


@contextmanager
def routed_tokens(block: ExpertBlock, update: RoutedUpdate) -> Iterator[None]:
    """Pass every forward of the routed experts through `update` within the context; their own output stays as it is.

    Args:
        block: the mixture of experts.
        update: is given the routed tokens and the output, and returns the output to use.
    """
    if block.scaled_inputs:
        handle = block.module.register_forward_hook(_scaled_inputs_hook(update))
        try:
            yield
        finally:
            handle.remove()
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


_UPDATES: WeakKeyDictionary[nn.Module, list[RoutedUpdate]] = WeakKeyDictionary()


def _experts_forward(
    experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, **others: Any
) -> Tensor:
    """Their implementation, with its updates applied to what it puts out."""
    theirs = experts.config._experts_implementation_before
    activated: list[Tensor] = []
    with _activations(experts, activated):
        output: Tensor = ALL_EXPERTS_FUNCTIONS[theirs](experts, hidden_states, top_k_index, top_k_weights, **others)
    routed = _routed(activated[0], top_k_index, top_k_weights, in_order_of_experts=theirs == "grouped_mm")
    for update in _UPDATES.get(experts, []):
        output = update(routed, output)
    return output


@contextmanager
def _activations(experts: Any, into: list[Tensor]) -> Iterator[None]:
    """Takes what the experts' gate puts out or, where they have none, their activation."""
    if not experts.has_gate:
        handle = experts.act_fn.register_forward_hook(lambda _, inputs, output: into.append(output))
        try:
            yield
        finally:
            handle.remove()
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


ALL_EXPERTS_FUNCTIONS.register(_IMPLEMENTATION, _experts_forward)


def _routed(inputs: Tensor, top_k_index: Tensor, top_k_weights: Tensor, *, in_order_of_experts: bool) -> RoutedTokens:
    experts, weights = top_k_index.reshape(-1), top_k_weights.reshape(-1)
    order = torch.arange(len(experts), device=experts.device)
    if in_order_of_experts:
        experts, order = torch.sort(experts)  # the same call on the same numbers as theirs, so the same order
    token = order // top_k_index.shape[-1]
    return RoutedTokens(inputs, experts, token, token, weights[order], len(top_k_index))


def _scaled_inputs_hook(update: RoutedUpdate) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        count = module.get_parameter("down_proj").shape[0]
        hidden = inputs[0].reshape(-1, inputs[0].shape[-1])
        tokens = len(hidden) // count
        row = hidden.any(dim=1).nonzero().flatten()  # a token that is not routed to an expert is given to it as zeros
        x = _with_identity(module, inputs).reshape(len(hidden), -1)[row]
        routed = RoutedTokens(x, row // tokens, row % tokens, row, torch.ones_like(x[:, 0]), tokens)
        return update(routed, output)

    return hook


def _with_identity(module: nn.Module, inputs: tuple[Tensor, ...]) -> Float[Tensor, "e t m"]:
    """The experts' forward with the identity in place of their down-projections [e, m, d]."""
    count, width, d = module.get_parameter("down_proj").shape
    padded = -(-width // d) * d  # the forward reshapes its result to rows of d
    identity = torch.eye(width, padded, dtype=inputs[0].dtype, device=inputs[0].device).expand(count, -1, -1)
    result: Tensor = torch.func.functional_call(_Unhooked(module), {"module.down_proj": identity}, inputs)
    return result.reshape(count, -1, padded)[..., :width]


class _Unhooked(nn.Module):
    """A module's forward without its hooks."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        """The module's own forward."""
        output: Tensor = self.module.forward(*inputs)
        return output
