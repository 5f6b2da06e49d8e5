"""Which columns of a mixer's projection belong to one head: what the config says, checked by what its layers do.

Shapes: b, t = rows and tokens of the short pass, m = columns of a projection.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedConfig

from steer2edit.models.layer_runs import ROWS, TOKENS, LayerRun, silenced
from steer2edit.models.site_module import is_linear

_PROBES = 8  # columns of a matrix that are changed to see where they go


def heads_of(
    run: LayerRun, path: str, module: nn.Module, writers: Iterable[nn.Module], config: PreTrainedConfig
) -> tuple[str, str]:
    """(the config's attribute with the number of heads of a mixer, why there is none)."""
    columns = run.inputs([module], stop=True)[module].shape[-1]
    layer = int(run.name.rpartition(".")[2])
    names = ["num_attention_heads", *(name for name in vars(config) if "head" in name)]
    counted = {name: head_count(config, name, layer) for name in names}
    counts = {name: count for name, count in counted.items() if count is not None and columns % count == 0}
    spans = head_spans(run, module, writers)
    if spans:
        good = [name for name, count in counts.items() if fits(spans[0], columns // count)]
        together = f"its {columns} columns belong together {spans[0][1] - spans[0][0] + 1} at a time"
        return (_nearest(good, path), "") if good else ("", f"{together}, and the config has no such number of heads")
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


def _nearest(names: list[str], path: str) -> str:
    """Of attributes with the same number, the one that is called most like the module."""
    words = set(re.split(r"[._]", path)) - {"attn", "attention", "proj", "out"}
    return min(
        names,
        key=lambda name: (-len(words & set(name.split("_"))), "key" in name or "kv" in name, name != names[0]),
    )


def head_spans(run: LayerRun, writer: nn.Module, silent: Iterable[nn.Module]) -> list[tuple[int, int]]:
    """First and last column of a mixer's projection that one number before it reaches, for those that tell heads apart.

    A number of a query, or of a decay, reaches its head's columns and no other; one of a value reaches one column of
    each head that shares it, which tells nothing and is not listed. Norms are left out, because one over all heads
    carries everything everywhere. Each row of the batch has another column changed.
    """
    quiet: dict[nn.Module, Any] = {**run.frozen_norms, **silenced(silent)}
    base = run.inputs([writer], quiet, stop=True)[writer].reshape(ROWS, TOKENS, -1)
    spans = []
    for path, output in run.called.items():
        module = run.module.get_submodule(path)
        if module is writer:
            break
        if module in quiet or not _is_matrix(module, output):
            continue
        columns = torch.linspace(0, output.shape[-1] - 1, _PROBES).round().int().tolist()
        for start in range(0, _PROBES, ROWS):
            seen = run.inputs([writer], {**quiet, module: _Probe(columns[start : start + ROWS])}, stop=True)[writer]
            spans += [span for row in _reached(base, seen.reshape(base.shape)) if (span := _span(row)) is not None]
    return sorted(spans, key=lambda span: span[1] - span[0])


@dataclass(frozen=True)
class _Probe:
    """Adds to one column of an output, in every row of the batch another."""

    columns: list[int]

    def __call__(self, output: Tensor) -> Tensor:
        if output.numel() % (ROWS * TOKENS):  # a second call, on something else
            return output
        changed = output.clone().reshape(ROWS, TOKENS, -1)
        size = 4 * changed.float().square().mean().sqrt().to(output.dtype) + 0.1
        for row, column in enumerate(self.columns):
            changed[row, :, column] += size
        return changed.reshape(output.shape)


def _is_matrix(module: nn.Module, output: Tensor) -> bool:
    if isinstance(module, nn.Embedding) or output.numel() != ROWS * TOKENS * output.shape[-1]:
        return False
    weight = getattr(module, "weight", None)
    return is_linear(module) or (isinstance(weight, Tensor) and weight.ndim == 2 and output.shape[-1] in weight.shape)


def _reached(before: Float[Tensor, "b t m"], after: Float[Tensor, "b t m"]) -> Bool[Tensor, "b m"]:
    """The columns that a change reaches noticeably, in each row; none where it makes no difference to speak of."""
    change = (before.float() - after.float()).abs().amax(dim=1)
    largest = change.amax(dim=1, keepdim=True)
    return (change > 0.01 * largest) & (largest > 1e-4 * before.float().abs().max())


def _span(reached: Bool[Tensor, " m"]) -> tuple[int, int] | None:
    at = reached.nonzero().flatten().tolist()
    width = at[-1] - at[0] + 1 if at else 0
    return (at[0], at[-1]) if 1 < width <= min(len(reached) / 2, 2 * len(at)) else None


def fits(span: tuple[int, int], width: int) -> bool:
    """Whether columns that are reached together lie in one head of this width, and make up most of it."""
    return span[0] // width == span[1] // width and span[1] - span[0] + 1 > width / 2
