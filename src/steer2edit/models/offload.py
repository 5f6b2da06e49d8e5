"""Layers whose weights stay on the disk (`--device disk`), by accelerate's hooks: read when they run, then let go.

Several forward passes can go through them layer by layer, so that a layer is read once for all of them.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

_STACK = 16 << 20  # bytes of a waiting pass; what is not used of it is not taken


def disk_map(network: nn.Module, layers: str) -> dict[str, str]:
    """accelerate's `device_map`: the layers on the disk, all else where they run.

    Args:
        network: the structure.
        layers: path of their list.
    """
    rest = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, str] = {}

    def place(prefix: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            path = f"{prefix}{name}"
            if path == layers:
                found.update({f"{path}.{index}": "disk" for index, _ in child.named_children()})
            elif layers.startswith(f"{path}."):
                place(f"{path}.", child)
            else:
                found[path] = rest

    place("", network)
    return found


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
                stack.callback(_let_go, hook, module)
        yield


def _let_go(hook: Any, module: nn.Module) -> None:
    hook.offload = True
    hook.post_forward(module, None)


class _Pass(threading.Thread):
    """A forward pass that waits before every layer."""

    def __init__(self, run: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._run_it, self._go, self._back = run, threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None
        self.over = self.stopped = False

    def run(self) -> None:
        """In the thread."""
        self._go.acquire()
        try:
            self._run_it()
        except BaseException as error:  # raised again where the passes are led
            self.error = error
        self.over = True
        self._back.release()

    def wait(self) -> None:
        """In the thread: let the others go on."""
        self._back.release()
        self._go.acquire()
        if self.stopped:
            raise InterruptedError

    def go_on(self) -> None:
        """Until it waits again, or is over."""
        if self.over:
            return
        self._go.release()
        self._back.acquire()
        if self.error is not None and not self.stopped:
            raise self.error


class LayerByLayer:
    """Forward passes that go through the layers of a model together; one of them runs at a time.

    Args:
        layers: of the model, in the order that they run in.
        runs: each a forward pass.
    """

    def __init__(self, layers: nn.ModuleList, runs: Sequence[Callable[[], object]]) -> None:
        self._layers, self._runs = layers, runs
        self.current = 0

    def __iter__(self) -> Iterator[int]:
        """Every layer's index, when all passes are through it, with its weights still in memory."""
        before = threading.stack_size(_STACK)
        passes = [_Pass(run) for run in self._runs]
        with ExitStack() as stack:
            for layer in self._layers:
                stack.callback(layer.register_forward_pre_hook(_wait).remove)
            try:
                for one in passes:
                    one.start()
                threading.stack_size(before)
                self._all_go_on(passes)  # to the first layer
                for index, layer in enumerate(self._layers):
                    with in_memory([layer]):
                        self._all_go_on(passes)
                        yield index
            finally:
                for one in passes:
                    one.stopped = True
                    if one.is_alive():
                        one.go_on()

    def _all_go_on(self, passes: Sequence[_Pass]) -> None:
        for self.current, one in enumerate(passes):
            one.go_on()


def _wait(module: nn.Module, inputs: Any) -> None:
    thread = threading.current_thread()
    if isinstance(thread, _Pass):
        thread.wait()
