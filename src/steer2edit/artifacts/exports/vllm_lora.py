"""An adapter as vLLM serves it: PEFT's files, with the experts of a mixture spelled out.

    …mlp.experts.{e}.down_proj.lora_A.weight [r, m], .lora_B.weight [d, r], and zeros for gate_proj and up_proj

vLLM packs the three projections of every expert together, so it refuses an adapter that lacks one.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steer2edit.artifacts.edits.lora_layout import LoraTarget, write_lora_config
from steer2edit.artifacts.edits.peft_files import ADAPTER_FILE, adapter_keys
from steer2edit.artifacts.tensors import write_tensors
from steer2edit.errors import ModelError, did_you_mean
from steer2edit.models import LanguageModel

_TABLE = Path(__file__).with_name("vllm_experts.toml")
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def max_lora_rank(rank: int) -> int:
    """The smallest `--max-lora-rank` that vLLM accepts and this rank fits in."""
    return next(allowed for allowed in _RANKS if allowed >= rank)


def write_vllm_lora(model: LanguageModel, targets: Sequence[LoraTarget], rank: int, directory: Path) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` with the keys that vLLM expects, and read them back.

    Raises:
        ModelError: it is not known where vLLM keeps the experts of this model type.
        ArtifactError: the file reads back differently.
    """
    tensors: dict[str, Tensor] = {}
    for target in targets:
        if target.experts is None:
            tensors |= zip(adapter_keys(target.name), (target.a[0], target.b), strict=True)
        else:
            tensors |= _expert_tensors(model, target)
    write_tensors(tensors, directory / ADAPTER_FILE, {"format": "pt"})
    modules = sorted({key.removeprefix("base_model.model.").rsplit(".", 2)[0] for key in tensors})
    transposed = any(t.transposed for t in targets if t.experts is None)
    write_lora_config(model, directory, rank, modules, [], transposed=transposed)


@cache
def _table() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = tomllib.loads(_TABLE.read_text(encoding="utf-8"))["names"]
    return table


def _expert_tensors(model: LanguageModel, target: LoraTarget) -> dict[str, Tensor]:
    model_type = model.network.config.get_text_config().model_type
    if model_type not in _table():
        raise ModelError(
            f"it is not known where vLLM looks for adapters of the experts of {model_type!r}. "
            f"{did_you_mean(model_type, _table())} Serve the edited checkpoint (apply) instead."
        )
    entry = _table()[model_type]
    name = target.name
    if "experts" in entry:
        layer = name[: name.index(".", name.index("layers.") + len("layers."))]
        name = f"{layer}.{entry['experts']}"
    return _fused(name, target) if entry.get("fused") else _one_by_one(name, entry["names"], target)


def _one_by_one(name: str, projections: Sequence[str], target: LoraTarget) -> dict[str, Tensor]:
    """Gate, up and down projection of every expert; the first two are zero."""
    gate, up, down = projections
    rank, width = target.a.shape[1:]
    zeros = torch.zeros(rank, target.b.shape[0]), torch.zeros(width, rank)
    tensors: dict[str, Tensor] = {}
    for expert, a in enumerate(target.a):
        for projection, pair in ((gate, zeros), (up, zeros), (down, (a, target.b))):
            tensors |= zip(adapter_keys(f"{name}.{expert}.{projection}"), pair, strict=True)
    return tensors


def _fused(name: str, target: LoraTarget) -> dict[str, Tensor]:
    """`experts.base_layer` is gate and up together, which are zero; `experts` is the down projection.

    A has rows (expert, rank), B has columns (rank, expert), however the base stores its weights.
    """
    a, b = replace(target, swapped=False).pair
    rows, width = a.shape
    zeros = torch.zeros(rows, target.b.shape[0]), torch.zeros(2 * width, rows)
    pairs = ((f"{name}.base_layer", zeros), (name, (a, b)))
    return {key: tensor for module, pair in pairs for key, tensor in zip(adapter_keys(module), pair, strict=True)}
