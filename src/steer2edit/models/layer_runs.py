"""A decoder layer run alone, on what it was given in a short forward pass, with the outputs of modules changed.

Shapes: b, t = rows and tokens of the short pass, n = residual streams (1, or several that layers mix),
d = width of one.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

ROWS, TOKENS = 4, 6
Change = Callable[[Tensor], Tensor]
"""What becomes of a module's output (of its first tensor, where it returns several)."""


class _Bypass:
    """Gives a norm's input instead of its output, times fixed factors (by shape: some norms are called twice)."""

    def __init__(self, factors: dict[torch.Size, Tensor] | None = None) -> None:
        self.factors = factors

    def __call__(self, given: Tensor, output: Tensor) -> Tensor:
        if given.shape != output.shape:
            return output
        return (given if self.factors is None else given * self.factors.get(given.shape, 1.0)).to(output.dtype)


# Hooks are objects, not nested functions: a type checker that decorates functions does so whenever one is made.


class _Changed:
    """A hook that changes a module's output, or the first of its outputs."""

    def __init__(self, change: Change | _Bypass) -> None:
        self.change = change

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if isinstance(self.change, _Bypass):
            return self.change(inputs[0], output) if inputs and _both_tensors(inputs[0], output) else output
        if isinstance(output, tuple | list):
            return type(output)([self.change(output[0]), *output[1:]])
        return self.change(output)


class _Inputs:
    """A hook that notes what modules are given, and ends the run when it has seen so many."""

    def __init__(self, enough: int | None) -> None:
        self.enough = enough
        self.by_module: dict[nn.Module, Tensor] = {}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.by_module[module] = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)).clone()
        if len(self.by_module) == self.enough:
            raise _SeenAll


class _Output:
    """A hook that notes a module's first tensor."""

    def __init__(self, path: str, into: dict[str, Tensor]) -> None:
        self.path, self.into = path, into

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        tensor = next(tensors_in(output), None)
        if tensor is not None:
            self.into.setdefault(self.path, tensor)


class _Factors:
    """A hook that notes what norms multiply each number by."""

    def __init__(self) -> None:
        self.by_module: dict[nn.Module, dict[torch.Size, Tensor]] = {}

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and _both_tensors(inputs[0], output) and inputs[0].shape == output.shape:
            factor = output / inputs[0]
            self.by_module.setdefault(module, {})[factor.shape] = torch.where(factor.isfinite(), factor, 1.0)


def _both_tensors(one: Any, other: Any) -> bool:
    return isinstance(one, Tensor) and isinstance(other, Tensor)


class _SeenAll(Exception):  # noqa: N818
    """Ends a run early."""


@dataclass(frozen=True)
class LayerRun:
    """One decoder layer, and what it was called with.

    Args:
        name: full name, e.g. `model.layers.3`.
        module: the layer.
        args: positional arguments.
        kwargs: named arguments.
        place: which of them is the hidden state.
        width: d.
    """

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: int | str
    width: int

    @property
    def hidden(self) -> Float[Tensor, "b t nd"]:
        """The residual streams that the layer was given, side by side."""
        return self._side_by_side(self._given)

    @torch.inference_mode()
    def output(
        self, changes: Mapping[nn.Module, Change | _Bypass] | None = None, hidden: Tensor | None = None
    ) -> Float[Tensor, "b t nd"]:
        """The residual streams that the layer hands on, side by side, with the outputs of modules changed.

        Args:
            changes: by module.
            hidden: given to the layer instead.
        """
        given = self._given.clone()  # some layers add to it in place
        if hidden is not None:
            streams(given, self.width).copy_(streams(hidden, self.width))
        args, kwargs = list(self.args), dict(self.kwargs)
        if isinstance(self.place, int):
            args[self.place] = given
        else:
            kwargs[self.place] = given
        with ExitStack() as stack:
            for module, change in (changes or {}).items():
                stack.callback(module.register_forward_hook(_Changed(change)).remove)
            result = self.module(*args, **kwargs)
        return self._side_by_side(next(t for t in tensors_in(result) if t.shape == given.shape))

    @property
    def _given(self) -> Tensor:
        given: Tensor = self.args[self.place] if isinstance(self.place, int) else self.kwargs[self.place]
        return given

    def _side_by_side(self, value: Tensor) -> Float[Tensor, "b t nd"]:
        return streams(value, self.width).flatten(2)

    def inputs(
        self,
        watched: Collection[nn.Module],
        changes: Mapping[nn.Module, Change | _Bypass] | None = None,
        hidden: Tensor | None = None,
        *,
        stop: bool = False,
    ) -> dict[nn.Module, Tensor]:
        """What modules are given, by module, if they are called. `stop` ends the run with the last of them."""
        seen = _Inputs(len(watched) if stop else None)
        with ExitStack() as stack:
            stack.enter_context(suppress(_SeenAll))
            for module in watched:
                stack.callback(module.register_forward_pre_hook(seen, with_kwargs=True).remove)
            self.output(changes, hidden)
        return seen.by_module

    @cached_property
    def called(self) -> dict[str, Tensor]:
        """First output tensor of every module of the layer that is called, by path, in the order they return."""
        outputs: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for path, module in self.module.named_modules():
                if path:
                    stack.callback(module.register_forward_hook(_Output(path, outputs)).remove)
            self.output()
        return outputs

    @cached_property
    def norms(self) -> dict[nn.Module, _Bypass]:
        """Changes under which every norm in the layer hands its input on."""
        modules = [self.module.get_submodule(path) for path in self.called]
        return {m: _Bypass() for m in modules if "norm" in type(m).__name__.lower() and not list(m.children())}

    @cached_property
    def frozen_norms(self) -> dict[nn.Module, _Bypass]:
        """Changes under which every norm multiplies each number by what it multiplied it by without any change."""
        factors = _Factors()
        with ExitStack() as stack:
            for module in self.norms:
                stack.callback(module.register_forward_hook(factors).remove)
            self.output()
        return {module: _Bypass(by_shape) for module, by_shape in factors.by_module.items()}

    def silent(self, modules: Iterable[nn.Module], *, without_norms: bool = False) -> bool:
        """Whether the layer hands its input on when these modules put out zeros.

        Each column may be multiplied by one factor (a learned scale of the stream) and get one number added (a bias),
        the same for every token. Or every token's streams may be mixed with one another, in a way of its own
        (hyper-connections, AltUp); a single stream, multiplied by one factor (a gate).
        """
        changes: dict[nn.Module, Any] = {**(self.norms if without_norms else {}), **silenced(modules)}
        given, out = (x.cpu().double().flatten(0, 1) for x in (self.hidden, self.output(changes)))
        rounding = 16 * torch.finfo(self.hidden.dtype).eps * given.abs().amax(dim=0)
        return torch.equal(given, out) or _scaled(given, out, rounding) or self._mixed(given, out, rounding)

    def _mixed(self, given: Tensor, out: Tensor, rounding: Tensor) -> bool:
        given, out = (x.view(len(x), -1, self.width).transpose(1, 2) for x in (given, out))  # [bt, d, n]
        factors = torch.linalg.lstsq(given, out).solution
        rounding = rounding.view(-1, self.width).amax(dim=0)[:, None] * factors.abs().max().clamp(min=1)
        return bool(factors.abs().max() > 1e-4) and bool(((out - given @ factors).abs() <= rounding).all())


def _scaled(given: Float[Tensor, "bt nd"], out: Float[Tensor, "bt nd"], rounding: Float[Tensor, " nd"]) -> bool:
    given, out = given - given.mean(dim=0), out - out.mean(dim=0)
    factor = (given * out).sum(dim=0) / (given * given).sum(dim=0).clamp(min=1e-30)
    fits = (out - factor * given).abs() <= rounding * factor.abs().max()
    return bool(factor.abs().median() > 1e-4) and bool(fits.all())


def silenced(modules: Iterable[nn.Module]) -> dict[nn.Module, Change]:
    """Changes under which modules put out zeros."""
    return dict.fromkeys(modules, torch.zeros_like)


@dataclass(frozen=True)
class AllRowsBut:
    """Zeros for every row of the batch but one; `None` for every row."""

    row: int | None

    def __call__(self, output: Tensor) -> Tensor:
        """The output with the other rows zero."""
        silent = torch.zeros_like(output)
        if self.row is not None:  # the batch may be flattened, and given to every expert
            by_row = (-1, ROWS, TOKENS * output.shape[-1])
            silent.view(by_row)[:, self.row] = output.reshape(by_row)[:, self.row]
        return silent


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in what a module is given or returns."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)


def is_stream(value: Any, d: int, *, several: bool) -> bool:
    """Whether a value can be the residual stream of the short pass; with `several`, or several of them."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape[-1:].numel() % d:
        return False
    if not several:
        return value.shape == (ROWS, TOKENS, d)
    own = value.shape[:2] if value.shape[:2] == (ROWS, TOKENS) else value.shape[1:3]
    return own == (ROWS, TOKENS) and (value.ndim == 3 or (value.ndim == 4 and value.shape[-1] == d))


def streams(value: Tensor, d: int) -> Float[Tensor, "b t n d"]:
    """A view of residual streams that are [b, t, n · d], [b, t, n, d] or [n, b, t, d]."""
    if value.ndim == 3:
        return value.view(ROWS, TOKENS, -1, d)
    return value if value.shape[:2] == (ROWS, TOKENS) else value.permute(1, 2, 0, 3)
