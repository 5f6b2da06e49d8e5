"""The decoder layers of a model, found by a short forward pass on a few tokens."""

import re
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from steer2edit.errors import LayoutError
from steer2edit.models.layer_runs import ROWS, TOKENS, LayerRun, tensors_in
from steer2edit.models.twin import config_parts


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
    given: dict[nn.Module, dict[int | str, Any]] = {}
    returned: dict[nn.Module, Any] = {}

    def note_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module not in given:  # the first call, with its arguments as they are before it
            arguments: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
            given[module] = {
                key: value.clone() if isinstance(value, Tensor) and value.is_floating_point() else value
                for key, value in arguments.items()
            }

    def note_return(module: nn.Module, _: Any, output: Any) -> None:
        returned.setdefault(module, output)

    with ExitStack() as stack, torch.inference_mode():
        for module in dict.fromkeys(member for one in lists.values() for member in one):
            stack.callback(module.register_forward_pre_hook(note_call, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(note_return).remove)
        _short_pass(network)
    for several in (False, True):
        found = []
        for name, members in lists.items():
            calls = [(f"{name}.{i}", one, given.get(one), returned.get(one)) for i, one in enumerate(members)]
            runs = [run for call in calls if (run := _layer_run(*call, d, several))]
            if len(runs) == len(members):
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
