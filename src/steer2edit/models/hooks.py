"""Temporary changes to what sites output. Every hook is removed on leaving, also after an exception."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from steer2edit.core import Site
from steer2edit.models.language_model import LanguageModel

OutputUpdate = Callable[[Tensor, Tensor], Tensor]
"""(x [..., m], y [..., d]) → the new y, of the same shape and dtype."""


@contextmanager
def updated_outputs(model: LanguageModel, updates: Mapping[Site, OutputUpdate]) -> Iterator[None]:
    """Replace each site's output y by `update(x, y)` within the context.

    Args:
        model: the model; its weights are not touched.
        updates: one function per site; a site that is not in the mapping is left alone.
    """
    with ExitStack() as handles:
        for site, update in updates.items():
            handle = model.sites[site].module.register_forward_hook(_as_hook(update))
            handles.callback(handle.remove)
        yield


def _as_hook(update: OutputUpdate) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return update(inputs[0], output)

    return hook
