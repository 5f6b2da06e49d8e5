"""The decoder layers of a model, found by a short forward pass: each with what it was given in it.

Shapes: b, t = rows and tokens of the short pass, n = residual streams, d = width of one.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from steer2edit.errors import LayoutError
from steer2edit.models.layer_runs import ROWS, TOKENS, LayerRun, is_stream, tensors_in


class _Calls:
    """Hooks that note how modules are called first, and what they return then."""

    def __init__(self) -> None:
        self.given: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.returned: dict[nn.Module, Any] = {}

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What it is given."""
        if module not in self.given:
            self.given[module] = tuple(map(_copied, args)), {key: _copied(value) for key, value in kwargs.items()}

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """What it returns."""
        self.returned.setdefault(module, output)


@dataclass(frozen=True)
class LayerRuns:
    """All decoder layers of a model.

    Args:
        path: of their list.
        runs: the layers, in order.
    """

    path: str
    runs: tuple[LayerRun, ...]


def run_layers(network: PreTrainedModel, path: str | None = None) -> LayerRuns:
    """The decoder layers: the longest list of modules with parts that all are given hidden states and return such.

    Hidden states are one residual stream [b, t, d]; only where no list has that, several ([b, t, n, d] or the like).

    Args:
        network: the model, with its weights in memory.
        path: where the list is, if that is known.

    Raises:
        LayoutError: the model does not run on a few tokens, or has no such list.
    """
    d = stream_width(network)
    lists = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and path in (None, name)
    }
    calls = _Calls()
    with ExitStack() as stack, torch.inference_mode():
        for module in dict.fromkeys(member for one in lists.values() for member in one):
            stack.callback(module.register_forward_pre_hook(calls.before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(calls.after).remove)
        _short_pass(network)
    for several in (False, True):
        found: list[LayerRuns] = []
        for name, members in lists.items():
            runs = [_layer_run(f"{name}.{i}", member, calls, d, several) for i, member in enumerate(members)]
            if all(runs):
                found.append(LayerRuns(name, tuple(run for run in runs if run is not None)))
        if found:
            return max(found, key=lambda one: len(one.runs))
    raise LayoutError(
        f"no decoder layers are found in the model type {network.config.model_type!r}: no list of modules is given "
        f"hidden states of width {d} and hands on such."
    )


def stream_width(network: PreTrainedModel) -> int:
    """d, the width of the residual stream."""
    config = network.config.get_text_config()
    width = getattr(config, "hidden_size", None)
    return width if isinstance(width, int) else int(network.get_input_embeddings().weight.shape[-1])


def _short_pass(network: PreTrainedModel) -> None:
    """A forward pass on a few tokens of ordinary text, which are no image's or padding."""
    rows = network.get_input_embeddings().weight.shape[0]
    settings = [pair for part in _configs(network.config) for pair in vars(part).items()]
    special = {value for name, value in settings if re.search(r"token_(id|index)", name) and isinstance(value, int)}
    usual = [i for i in range(min(rows, 4096)) if i not in special] or [0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor(usual)[torch.randint(len(usual), (ROWS, TOKENS), generator=generator)]
    ids = ids.to(network.get_input_embeddings().weight.device)
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


def _configs(config: Any) -> Iterator[Any]:
    yield config
    for value in vars(config).values():
        if hasattr(value, "model_type"):
            yield from _configs(value)


def _layer_run(name: str, module: nn.Module, calls: _Calls, d: int, several: bool) -> LayerRun | None:
    returned = next((t for t in tensors_in(calls.returned.get(module)) if is_stream(t, d, several=several)), None)
    if returned is None or not any(True for _ in module.children()):
        return None
    args, kwargs = calls.given[module]
    for place in [*range(len(args)), *sorted(kwargs, key=lambda key: key != "hidden_states")]:
        value = args[place] if isinstance(place, int) else kwargs[place]
        if isinstance(value, Tensor) and value.shape == returned.shape and value.is_floating_point():
            if isinstance(place, int):
                args = (*args[:place], _varied(value), *args[place + 1 :])
            else:
                kwargs = {**kwargs, place: _varied(value)}
            return LayerRun(name, module, args, kwargs, place, d)
    return None


def _varied(hidden: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The hidden state with noise of its own size (or of 1, where it is zero), so that no two tokens are alike."""
    size = float(hidden.float().square().mean().sqrt()) or 1.0
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    return hidden + size * noise.to(hidden)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_floating_point() else value
