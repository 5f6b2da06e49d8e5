"""The decoder layers of a model, found by a short forward pass; each is run alone with the outputs of modules changed.

Shapes: b, t = rows and tokens of the short pass, n = residual streams (1, or several that layers mix),
d = width of one.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from steer2edit.errors import LayoutError, ModelError
from steer2edit.models.twin import config_parts

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


# Hooks that are put on often are functions of the module: a type checker would decorate nested ones at every call.


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


def _note_given(into: dict[Any, Any], key: Any, module: nn.Module, args: tuple[Any, ...], named: Any) -> None:
    if key not in into:
        into[key] = {place: _kept(value) for place, value in {**dict(enumerate(args)), **named}.items()}


def _note_returned(into: dict[Any, Any], key: Any, module: nn.Module, _: Any, output: Any) -> None:
    if key not in into:
        into[key] = [_kept(tensor) for tensor in tensors_in(output)]


def _kept(value: Any) -> Any:
    """A copy of floating-point numbers: some layers add to them in place."""
    return value.clone() if isinstance(value, Tensor) and value.is_floating_point() else value


def _first_tensor(values: Iterable[Any]) -> Tensor | None:
    """The first that is one, or else that is in one."""
    values = list(values)
    return next((value for value in values if isinstance(value, Tensor)), next(tensors_in(values), None))


@contextmanager
def first_calls(modules: Mapping[Any, nn.Module]) -> Iterator[tuple[dict[Any, Any], dict[Any, Any]]]:
    """(Arguments by place or name, tensors returned) by a module's key, filled as modules are called and return."""
    given: dict[Any, Any] = {}
    returned: dict[Any, Any] = {}
    with ExitStack() as stack:
        for key, module in modules.items():
            note = partial(_note_given, given, key)
            stack.enter_context(module.register_forward_pre_hook(note, with_kwargs=True))
            stack.enter_context(module.register_forward_hook(partial(_note_returned, returned, key)))
        yield given, returned


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
        with first_calls({path: module for path, module in self.module.named_modules() if path}) as (given, returned):
            self.output(changes, hidden)
        inputs = {path: _first_tensor(arguments.values()) for path, arguments in given.items()}
        found = {path: (inputs.get(path), next(iter(tensors), None)) for path, tensors in returned.items()}
        return {path: Call(x, y) for path, (x, y) in found.items() if x is not None and y is not None}

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


def run_layers(network: PreTrainedModel, path: str | None = None) -> tuple[str, list[LayerRun]]:
    """(path, layers) of the longest list of modules with parts that all are given hidden states and return such.

    Hidden states are one residual stream [b, t, d]; only where no list has that, several ([b, t, n, d] or the like). A
    LayoutError where the model does not run on a few tokens, or has no such list.
    """
    config, embedding = network.config.get_text_config(), network.get_input_embeddings()
    width = getattr(config, "hidden_size", None)
    d = width if isinstance(width, int) else int(embedding.weight.shape[-1])
    lists = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and path in (None, name)
    }
    members = dict.fromkeys(member for one in lists.values() for member in one)
    with first_calls({member: member for member in members}) as (given, returned), torch.inference_mode():
        _short_pass(network)
    for several in (False, True):
        found = []
        for name, own in lists.items():
            calls = [(f"{name}.{i}", one, given.get(one), returned.get(one)) for i, one in enumerate(own)]
            runs = [run for call in calls if (run := _layer_run(*call, d, several))]
            if len(runs) == len(own):
                found.append((name, runs))
        if found:
            return max(found, key=lambda one: len(one[1]))
    raise LayoutError(
        f"no decoder layers are found in the model type {network.config.model_type!r}: no list of modules is given "
        f"hidden states of width {d} and hands on such."
    )


def _short_pass(network: PreTrainedModel) -> None:
    """A forward pass on a few tokens of ordinary text, which are no image's or padding."""
    embedding = network.get_input_embeddings().weight
    settings = [pair for part in config_parts(network.config) for pair in vars(part).items()]
    special = {value for name, value in settings if re.search(r"token_(id|index)", name) and isinstance(value, int)}
    usual = [i for i in range(min(embedding.shape[0], 4096)) if i not in special] or [0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor(usual)[torch.randint(len(usual), (ROWS, TOKENS), generator=generator)].to(embedding.device)
    own = {name: p for name, p in network.named_parameters() if not p.is_inference()}  # those count no writes
    before = {name: parameter._version for name, parameter in own.items()}
    try:
        network.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except Exception as error:  # models raise what they like
        raise LayoutError(
            f"the model type {network.config.model_type!r} does not run on a few tokens of text alone: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    changed = [name for name, parameter in own.items() if parameter._version != before[name]]
    if changed:
        raise LayoutError(
            f"the model type {network.config.model_type!r} writes to its own weights as it runs ({changed[0]}), so an "
            "edit of them would be another one in the files. This architecture cannot be edited."
        )


def _layer_run(
    name: str, module: nn.Module, given: Mapping[int | str, Any] | None, returned: Any, d: int, several: bool
) -> LayerRun | None:
    """A layer with noise of its own size on its hidden state, so that no two tokens are alike; `None` if it is none."""
    out = next((t for t in tensors_in(returned) if _is_stream(t, d, several=several)), None)
    if out is None or given is None or not any(True for _ in module.children()):
        return None
    for place in sorted(given, key=lambda key: (isinstance(key, str), key != "hidden_states")):
        value = given[place]
        if isinstance(value, Tensor) and value.shape == out.shape and value.is_floating_point():
            size = float(value.float().square().mean().sqrt()) or 1.0
            noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
            return LayerRun(name, module, {**given, place: value + size * noise.to(value)}, place, d)
    return None


def _is_stream(value: Tensor, d: int, *, several: bool) -> bool:
    """Whether a value can be the residual stream of the short pass; with `several`, or several of them."""
    if not value.is_floating_point() or value.shape[-1:].numel() % d:
        return False
    if not several:
        return value.shape == (ROWS, TOKENS, d)
    own = value.shape[:2] if value.shape[:2] == (ROWS, TOKENS) else value.shape[1:3]
    return own == (ROWS, TOKENS) and (value.ndim == 3 or (value.ndim == 4 and value.shape[-1] == d))
