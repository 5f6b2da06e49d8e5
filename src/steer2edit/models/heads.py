"""Which columns of a mixer's projection belong to one head: what the config says, checked by what its layers do.

Shapes: b, t = rows and tokens of the short pass, m = columns of a projection.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig

from steer2edit.models.layers import ROWS, TOKENS, LayerRun, silenced
from steer2edit.models.site_module import is_linear

_PROBES = 8  # columns of a matrix that are changed to see where they go


def heads_of(run: LayerRun, path: str, writers: Iterable[nn.Module], config: PreTrainedConfig) -> tuple[str, str]:
    """(the config's attribute with the number of heads of a mixer, why there is none)."""
    columns = run.called[path].input.shape[-1]
    layer = int(run.name.rpartition(".")[2])
    names = ["num_attention_heads", *(name for name in vars(config) if "head" in name)]
    counted = {name: head_count(config, name, layer) for name in names}
    counts = {name: count for name, count in counted.items() if count is not None and columns % count == 0}
    spans = head_spans(run, path, writers)
    if spans:
        good = [name for name, count in counts.items() if fits(spans[0], columns // count)]
        if not good:
            together = f"its {columns} columns belong together {spans[0][1] - spans[0][0] + 1} at a time"
            return "", f"{together}, and the config has no such number of heads"
        words = set(re.split(r"[._]", path)) - {"attn", "attention", "proj", "out"}  # the one called most like it
        likeness = {n: (-len(words & set(n.split("_"))), "key" in n or "kv" in n, n != good[0]) for n in good}
        return min(good, key=likeness.__getitem__), ""
    if counts.get("num_attention_heads") == 1:
        return "num_attention_heads", ""
    return "", "it has no heads that can be told apart"


def head_count(config: PreTrainedConfig, name: str, layer: int) -> int | None:
    """A number of heads in the config, where it may be one per layer; `None` if there is none."""
    if getattr(config, "is_heterogeneous", False):
        config = config.per_layer_config[layer]
    value = getattr(config, name, None)
    if isinstance(value, list | tuple) and layer < len(value):
        value = value[layer]
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def head_spans(run: LayerRun, writer: str, silent: Iterable[nn.Module]) -> list[tuple[int, int]]:
    """First and last column of a mixer's projection that one number before it reaches, for those that tell heads apart.

    A number of a query, or of a decay, reaches its head's columns and no other; one of a value reaches one column of
    each head that shares it, which tells nothing and is not listed. Norms are left out, because one over all heads
    carries everything everywhere. Each row of the batch has another column changed.
    """
    quiet: dict[nn.Module, Any] = {**run.frozen_norms, **silenced(silent)}
    base = run.calls(quiet)[writer].input.reshape(ROWS, TOKENS, -1)
    spans: list[tuple[int, int]] = []
    for path, (_, output) in run.called.items():
        if path == writer:
            break
        module = run.module.get_submodule(path)
        weight = getattr(module, "weight", None)
        matrix = isinstance(weight, Tensor) and weight.ndim == 2 and output.shape[-1] in weight.shape
        whole = output.numel() == ROWS * TOKENS * output.shape[-1] and not isinstance(module, nn.Embedding)
        if module in quiet or not whole or not (matrix or is_linear(module)):
            continue
        columns = torch.linspace(0, output.shape[-1] - 1, _PROBES).round().int().tolist()
        for start in range(0, _PROBES, ROWS):
            probe = partial(_probed, columns[start : start + ROWS])
            seen = run.calls({**quiet, module: probe})[writer].input
            spans += _reached(base, seen.reshape(base.shape))
    return sorted(spans, key=lambda span: span[1] - span[0])


def _probed(columns: Sequence[int], output: Tensor) -> Tensor:
    """An output with something added to one column, in every row of the batch another."""
    if output.numel() % (ROWS * TOKENS):  # a second call, on something else
        return output
    changed = output.clone().reshape(ROWS, TOKENS, -1)
    size = 4 * changed.float().square().mean().sqrt().to(output.dtype) + 0.1
    for row, column in enumerate(columns):
        changed[row, :, column] += size
    return changed.reshape(output.shape)


def _reached(before: Float[Tensor, "b t m"], after: Float[Tensor, "b t m"]) -> Iterator[tuple[int, int]]:
    """First and last column that a change reaches noticeably, of each row in which they lie together."""
    change = (before.float() - after.float()).abs().amax(dim=1)
    largest = change.amax(dim=1, keepdim=True)
    for reached in (change > 0.01 * largest) & (largest > 1e-4 * before.float().abs().max()):
        at = reached.nonzero().flatten().tolist()
        width = at[-1] - at[0] + 1 if at else 0
        if 1 < width <= min(len(reached) / 2, 2 * len(at)):
            yield at[0], at[-1]


def fits(span: tuple[int, int], width: int) -> bool:
    """Whether columns that are reached together lie in one head of this width, and make up most of it."""
    return span[0] // width == span[1] // width and span[1] - span[0] + 1 > width / 2
