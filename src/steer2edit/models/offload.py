"""Layers whose weights stay on the disk (`--device disk`), by accelerate's hooks: read when they run, then let go.

Several forward passes can go through them layer by layer, so that a layer is read once for all of them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import nn


def disk_map(network: nn.Module, layers: str) -> dict[str, str]:
    """accelerate's `device_map`: the layers, of this path, on the disk, all else where they run."""
    rest, parts = "cuda" if torch.cuda.is_available() else "cpu", layers.split(".")
    around = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
    children = [(of, name) for of in ("", *around) for name, _ in network.get_submodule(of).named_children()]
    places = {f"{of}.{name}".removeprefix("."): "disk" if of == layers else rest for of, name in children}
    return {path: place for path, place in places.items() if path not in around}


def offload_hooks(module: nn.Module) -> list[tuple[Any, nn.Module]]:
    """The hooks that read weights for a module and those in it, with the module that each is of."""
    found = []
    for own in module.modules():
        hook = vars(own).get("_hf_hook")
        found += [(one, own) for one in getattr(hook, "hooks", [hook]) if getattr(one, "offload", False)]
    return found


@contextmanager
def in_memory(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Hold the weights of modules, and of those in them, in memory for a while: each is read once."""
    with ExitStack() as stack:
        for hook, module in (pair for one in dict.fromkeys(modules) for pair in offload_hooks(one)):
            if hook.offload:  # not held already
                hook.pre_forward(module)
                hook.offload = False
                stack.callback(hook.post_forward, module, None)
                stack.callback(setattr, hook, "offload", True)  # before the other: callbacks run from the last on
        yield


class LayerByLayer:
    """Forward passes that go through the layers of a model together, each a greenlet that waits before every layer."""

    def __init__(self, layers: nn.ModuleList, runs: Sequence[Callable[[], object]]) -> None:
        self._layers, self._passes = layers, [greenlet(run) for run in runs]
        self.current = 0

    def __iter__(self) -> Iterator[int]:
        """Every layer's index, when all passes are through it, with its weights still in memory."""
        with ExitStack() as stack:
            stack.callback(self._with_all, greenlet.throw)  # ends those that wait
            for layer in self._layers:
                stack.enter_context(layer.register_forward_pre_hook(self._wait))
            self._with_all(greenlet.switch)  # to the first layer
            for index, layer in enumerate(self._layers):
                with in_memory([layer]):
                    self._with_all(greenlet.switch)
                    yield index

    @torch.inference_mode()  # here too: the mode is the thread's, and would stay on where a pass is left
    def _with_all(self, act: Callable[[greenlet], object]) -> None:
        for index, one in enumerate(self._passes):
            self.current = index
            if not one.dead:
                act(one)

    def _wait(self, module: nn.Module, inputs: Any) -> None:
        own = getcurrent()
        if own in self._passes:
            own.parent.switch()
