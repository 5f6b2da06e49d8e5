"""Functions that are called where a site computes, and temporary changes to what sites output.

Every hook is removed on leaving, also after an exception.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from steer2edit.core import Site
from steer2edit.models.experts import RoutedUpdate, routed_tokens
from steer2edit.models.language_model import LanguageModel
from steer2edit.models.site_module import Projection, SiteModule
from steer2edit.models.updates import SiteUpdate

AtMatrix = Callable[[Projection, Tensor, Tensor], Tensor | None]
"""(matrix, x, y) → the y to use instead, or `None` to leave it."""
AtOutput = Callable[[int, Tensor], Tensor | None]
"""(which of the outputs that add up to what the block writes, y) → the y to use instead, or `None`."""


@contextmanager
def hooked(
    site: SiteModule,
    *,
    matrix: AtMatrix | None = None,
    routed: RoutedUpdate | None = None,
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
                stack.callback(projection.module.register_forward_hook(partial(_at_matrix, matrix, projection)).remove)
        if site.experts is not None and routed is not None:
            stack.enter_context(routed_tokens(site.experts, routed))
        if site.experts is not None and output is not None:
            for index, module in enumerate(site.experts.outputs):
                stack.callback(module.register_forward_hook(at_output(partial(output, index))).remove)
        yield


def _at_matrix(
    matrix: AtMatrix, projection: Projection, module: nn.Module, inputs: tuple[Any, ...], output: Tensor
) -> Tensor | None:
    return matrix(projection, inputs[0], output)


def at_output(change: Callable[[Tensor], Tensor | None]) -> Callable[[nn.Module, Any, Any], Any]:
    """A forward hook for a block, which may return its output alone or with the router's."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, tuple):
            return change(output)
        changed = change(output[0])
        return None if changed is None else (changed, *output[1:])

    return hook


@contextmanager
def updated_outputs(model: LanguageModel, updates: Mapping[Site, SiteUpdate]) -> Iterator[None]:
    """Add each update to what its site writes within the context.

    Args:
        model: the model; its weights are not touched.
        updates: by site; a site that is not in the mapping is left alone.
    """
    with ExitStack() as stack:
        for site, update in updates.items():
            attach = _updated_dense if model.sites[site].experts is None else _updated_experts
            stack.enter_context(attach(model.sites[site], update))
        yield


def _updated_dense(site: SiteModule, update: SiteUpdate) -> AbstractContextManager[None]:
    return hooked(site, matrix=lambda projection, x, y: update.apply(x, y))


def _updated_experts(site: SiteModule, update: SiteUpdate) -> AbstractContextManager[None]:
    """The edits at every matrix, and the shift once, at the block's output."""
    edits = None if update.a is None else update.part(slice(0, site.routed[-1].columns.stop))
    return hooked(
        site,
        matrix=None if update.a is None else lambda projection, x, y: update.part(projection.columns).apply(x, y),
        routed=None if edits is None else edits.apply_routed,
        output=None if update.shift is None else lambda index, y: None if index else update.apply_shift(y),
    )
