"""One decoder layer of a model, run alone with the outputs of modules changed.

Shapes: b, t = rows and tokens of the short pass, n = residual streams (1, or several that layers mix),
d = width of one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steer2edit.errors import ModelError

ROWS, TOKENS = 4, 6
Change = Callable[[Tensor], Tensor]
"""What becomes of a module's output (of its first tensor, where it returns several)."""


class Call(NamedTuple):
    """What a module was given, and what it returned: the first tensor of each."""

    input: Tensor
    output: Tensor


@dataclass(frozen=True)
class Bypass:
    """Gives a norm's input instead of its output, times fixed factors (by shape: some norms are called twice)."""

    factors: Mapping[torch.Size, Tensor] = field(default_factory=dict)


# Hooks that are put on often are functions of the module, not nested ones: a type checker that decorates functions does
# so whenever one is made.


def _change(change: Change | Bypass, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    if isinstance(change, Bypass):
        alike = _are_alike(inputs, output)
        return (inputs[0] * change.factors.get(output.shape, 1.0)).to(output.dtype) if alike else output
    if isinstance(output, tuple | list):
        return type(output)([change(output[0]), *output[1:]])
    return change(output)


def _are_alike(inputs: tuple[Any, ...], output: Any) -> bool:
    """Whether a module was given a tensor, and returns one of the same shape."""
    given = inputs[0] if inputs else None
    return isinstance(given, Tensor) and isinstance(output, Tensor) and given.shape == output.shape


def _note_input(
    into: dict[str, Tensor], path: str, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
) -> None:
    given = (*args, *named.values())
    tensor = next((value for value in given if isinstance(value, Tensor)), next(tensors_in(given), None))
    if tensor is not None and path not in into:
        into[path] = tensor.clone()  # some layers add to it in place


def _note_output(into: dict[str, Tensor], path: str, module: nn.Module, _: Any, output: Any) -> None:
    tensor = next(tensors_in(output), None)
    if tensor is not None and path not in into:
        into[path] = tensor.clone()


@dataclass(frozen=True)
class LayerRun:
    """One decoder layer, and what it was called with."""

    name: str  # full name, e.g. `model.layers.3`.
    module: nn.Module  # the layer
    arguments: Mapping[int | str, Any]  # by place or by name
    stream: int | str  # which of them is the hidden state
    width: int  # d

    @property
    def hidden(self) -> Float[Tensor, "b t nd"]:
        """The residual streams that the layer was given, side by side."""
        return _streams(self.arguments[self.stream], self.width).flatten(2)

    @torch.inference_mode()
    def output(
        self, changes: Mapping[nn.Module, Change | Bypass] | None = None, hidden: Tensor | None = None
    ) -> Float[Tensor, "b t nd"]:
        """The residual streams that the layer hands on, side by side, with the outputs of modules changed."""
        given = self.arguments[self.stream].clone()  # some layers add to it in place
        if hidden is not None:
            streams = _streams(given, self.width)
            streams.copy_(hidden.reshape(streams.shape))
        arguments = {**self.arguments, self.stream: given}
        with ExitStack() as stack:
            for module, change in (changes or {}).items():
                stack.callback(module.register_forward_hook(partial(_change, change)).remove)
            args = [value for place, value in arguments.items() if isinstance(place, int)]
            result = self.module(*args, **{name: v for name, v in arguments.items() if isinstance(name, str)})
        return _streams(next(t for t in tensors_in(result) if t.shape == given.shape), self.width).flatten(2)

    @cached_property
    def called(self) -> dict[str, Call]:
        """`calls` without changes."""
        return self.calls()

    def calls(
        self, changes: Mapping[nn.Module, Change | Bypass] | None = None, hidden: Tensor | None = None
    ) -> dict[str, Call]:
        """First call of every module in the layer, by path, in the order they return; outputs are before a change."""
        given: dict[str, Tensor] = {}
        returned: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for path, module in self.module.named_modules():
                if path:
                    note = partial(_note_input, given, path)
                    stack.enter_context(module.register_forward_pre_hook(note, with_kwargs=True))
                    stack.enter_context(module.register_forward_hook(partial(_note_output, returned, path)))
            self.output(changes, hidden)
        return {path: Call(given[path], output) for path, output in returned.items() if path in given}

    @cached_property
    def norms(self) -> dict[nn.Module, Bypass]:
        """Changes under which every norm in the layer hands its input on."""
        modules = [self.module.get_submodule(path) for path in self.called]
        return {m: Bypass() for m in modules if "norm" in type(m).__name__.lower() and not list(m.children())}

    @cached_property
    def frozen_norms(self) -> dict[nn.Module, Bypass]:
        """Changes under which every norm multiplies each number by what it multiplied it by without any change."""
        factors: dict[nn.Module, dict[torch.Size, Tensor]] = {}

        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if _are_alike(inputs, output):
                factor = output / inputs[0]
                factors.setdefault(module, {})[factor.shape] = torch.where(factor.isfinite(), factor, 1.0)

        with ExitStack() as stack:
            for module in self.norms:
                stack.callback(module.register_forward_hook(note).remove)
            self.output()
        return {module: Bypass(by_shape) for module, by_shape in factors.items()}

    def silent(self, modules: Iterable[nn.Module], *, without_norms: bool = False) -> bool:
        """Whether the layer hands its input on when these modules put out zeros.

        Each column may be multiplied by one factor (a learned scale of the stream) and get one number added (a bias),
        the same for every token. Or every token's streams may be mixed with one another, in a way of its own
        (hyper-connections, AltUp); a single stream, multiplied by one factor (a gate).
        """
        changes: dict[nn.Module, Any] = {**(self.norms if without_norms else {}), **silenced(modules)}
        given, out = (x.cpu().double().flatten(0, 1) for x in (self.hidden, self.output(changes)))
        if not bool(given.isfinite().all()):
            raise ModelError(
                f"a {type(self.module).__name__} of the model is given numbers that are not finite: a weight is "
                "damaged, or the model overflows in this dtype. Load it in bfloat16 or float32, or get it again."
            )
        rounding = 16 * torch.finfo(self.hidden.dtype).eps * given.abs().amax(dim=0)
        return bool(out.isfinite().all()) and (
            torch.equal(given, out) or _scaled(given, out, rounding) or _mixed(given, out, rounding, self.width)
        )


def _scaled(given: Float[Tensor, "bt nd"], out: Float[Tensor, "bt nd"], rounding: Float[Tensor, " nd"]) -> bool:
    given, out = given - given.mean(dim=0), out - out.mean(dim=0)
    factor = (given * out).sum(dim=0) / (given * given).sum(dim=0).clamp(min=1e-30)
    fits = (out - factor * given).abs() <= rounding * factor.abs().max()
    return bool(factor.abs().median() > 1e-4) and bool(fits.all())


def _mixed(
    given: Float[Tensor, "bt nd"], out: Float[Tensor, "bt nd"], rounding: Float[Tensor, " nd"], width: int
) -> bool:
    given, out = (x.view(len(x), -1, width).transpose(1, 2) for x in (given, out))  # [bt, d, n]
    factors = torch.linalg.lstsq(given, out).solution
    rounding = rounding.view(-1, width).amax(dim=0)[:, None] * factors.abs().max().clamp(min=1)
    return bool(factors.abs().max() > 1e-4) and bool(((out - given @ factors).abs() <= rounding).all())


def silenced(modules: Iterable[nn.Module]) -> dict[nn.Module, Change]:
    """Changes under which modules put out zeros."""
    return dict.fromkeys(modules, torch.zeros_like)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in what a module returns."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(item)


def _streams(value: Tensor, d: int) -> Float[Tensor, "b t n d"]:
    """A view of residual streams that are [b, t, n · d], [b, t, n, d] or [n, b, t, d]."""
    if value.ndim == 3:
        return value.view(ROWS, TOKENS, -1, d)
    return value if value.shape[:2] == (ROWS, TOKENS) else value.permute(1, 2, 0, 3)
