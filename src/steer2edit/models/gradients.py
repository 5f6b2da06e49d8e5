"""Gradients of activations, from the embedding on, also through quantised matrices.

Some kernels of quantised matrices have no backward pass, and some give a wrong gradient without a word. Where that is
so, y = W x + b is differentiated as what it is:

    ∂A/∂x = Wᵀ ∂A/∂y,    W as the module itself applies it to the identity (`Projection.weight`), read anew each time

so that one dequantised matrix is held at a time.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steer2edit.errors import InvalidValueError
from steer2edit.models.language_model import LanguageModel
from steer2edit.models.site_module import Projection, is_linear, is_quantised
from steer2edit.models.swapped import swapped


@contextmanager
def activation_gradients(model: LanguageModel, without: Sequence[Projection] = ()) -> Iterator[None]:
    """Gradients of activations, from the embedding on, and of no parameter; all is as before on leaving."""
    wanted = [p for p in model.network.parameters() if p.requires_grad]
    embedding: nn.Module = model.network.get_input_embeddings()  # type: ignore[operator]
    for parameter in wanted:
        parameter.requires_grad_(False)
    handle = embedding.register_forward_hook(lambda module, inputs, output: output.detach().requires_grad_(True))
    try:
        with ExitStack() as stack:
            for projection in without:
                kernel, module = projection.module.forward, projection.module
                stack.enter_context(swapped(module, "forward", partial(_Matrix.apply, kernel, projection)))
            stack.enter_context(torch.enable_grad())
            yield
    finally:
        handle.remove()
        for parameter in wanted:
            parameter.requires_grad_(True)


def backward(model: LanguageModel, total: Tensor, *, retain_graph: bool) -> None:
    """Differentiate a score, within `activation_gradients`; an InvalidValueError where some kernel cannot."""
    try:
        torch.autograd.backward(total, retain_graph=retain_graph)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:  # a kernel without a backward pass, a score without a graph
        raise InvalidValueError(
            f"effects need gradients, and {model.name!r} gives none ({' '.join(str(error).split())[:150]}). Load it "
            "unquantised, or convert with --importance cosine."
        ) from error


def without_gradients(model: LanguageModel) -> list[Projection]:
    """The quantised matrices of the whole network of a kind that passes no gradient or a wrong one."""
    quantised = [
        Projection(name, module, slice(0, vars(module)["in_features"]), False, quantised=model.dtype)
        for name, module in model.network.named_modules()
        if is_linear(module) and is_quantised(module)
    ]
    kinds = {type(projection.module): projection for projection in quantised}
    wrong = {kind for kind, projection in kinds.items() if not _passes_gradients(projection)}
    return [projection for projection in quantised if type(projection.module) in wrong]


def _passes_gradients(projection: Projection) -> bool:
    x = torch.ones(1, projection.shape[1], dtype=projection.dtype, device=projection.device, requires_grad=True)
    with torch.enable_grad(), warnings.catch_warnings(), suppress(RuntimeError):  # of outputs without a graph
        warnings.simplefilter("ignore")
        torch.autograd.backward(projection.module.forward(x).sum())
    expected = projection.weight.float().sum(dim=0)
    return x.grad is not None and bool((x.grad[0].float() - expected).norm() <= 0.05 * expected.norm())


class _Matrix(torch.autograd.Function):
    """y = W x + b by any kernel, ∂A/∂x = Wᵀ ∂A/∂y."""

    @staticmethod
    def forward(ctx: Any, kernel: Callable[[Tensor], Tensor], projection: Projection, x: Tensor) -> Tensor:
        ctx.projection, ctx.dtype = projection, x.dtype
        return kernel(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:  # type: ignore[override]
        weight = ctx.projection.weight
        return None, None, (gradient.to(weight.dtype) @ weight).to(ctx.dtype)
