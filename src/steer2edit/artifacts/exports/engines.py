"""An adapter in the layouts of engines that do not take PEFT's: GGUF for llama.cpp and Ollama, and experts for vLLM.

llama.cpp applies `scale · alpha / r · B A`, with alpha = r here, so a scale of 1 is the edit as it is. vLLM packs the
three projections of every expert together, so it refuses an adapter that lacks one. docs/formats.md has the names.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steer2edit.artifacts.atomic import require_read_back
from steer2edit.artifacts.edits.lora import LoraTarget, write_lora
from steer2edit.artifacts.tensors import write_gguf
from steer2edit.errors import ModelError, did_you_mean
from steer2edit.models import LanguageModel
from steer2edit.models.gguf import read_header
from steer2edit.models.model_path import gguf_file

_T = gguf.MODEL_TENSOR
_OUTPUTS = {_T.ATTN_OUT, _T.FFN_DOWN, _T.FFN_DOWN_EXP, _T.FFN_DOWN_SHEXP, _T.SSM_OUT}
_ARCHITECTURES = {name: architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items()}
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@cache
def _table(name: str) -> dict[str, dict[str, Any]]:
    return tomllib.loads(Path(__file__).with_name(f"{name}.toml").read_text(encoding="utf-8"))


def write_gguf_lora(model: LanguageModel, targets: Sequence[LoraTarget], notes: Mapping[str, str], path: Path) -> None:
    """Write an adapter as llama.cpp wants it, read it back and compare every value; the same adapter, the same bytes.

    `notes` are texts by key on where the adapter comes from, written under `steer2edit.`. A ModelError where llama.cpp
    does not run this architecture, stores its projections in another form, or the base is a GGUF file of other tensors.
    """
    architecture, renamed = _architecture(model)
    tensors = _tensors(model, targets, architecture, renamed)
    if file := gguf_file(model.name):
        _require_fit(file, architecture, tensors)
    own = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": float(targets[0].rank)}
    keys = {**own, "steer2edit.schema_version": 1, **{f"steer2edit.{key}": text for key, text in notes.items()}}
    write_gguf(path, architecture, keys, tensors)
    reader = gguf.GGUFReader(path)
    expected = {"general.architecture": architecture, **keys}
    fields = {key: field.contents() for key in expected if (field := reader.get_field(key)) is not None}
    found = {t.name: (t.tensor_type, t.data.shape, t.data.tobytes()) for t in reader.tensors}
    f32 = gguf.GGMLQuantizationType.F32
    written = {name: (f32, array.shape, array.tobytes()) for name, array in tensors.items()}
    require_read_back((fields, found) == (expected, written), path.name)


def _require_fit(file: Path, architecture: str, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Refuse an adapter that does not fit the very file it is for: its architecture, its tensors and their shapes."""
    header = read_header(file)
    wanted = {name.removesuffix(".lora_b"): b for name, b in tensors.items() if name.endswith(".lora_b")}
    shapes = {n: (*b.shape[:-1], tensors[f"{n}.lora_a"].shape[-1]) for n, b in wanted.items()}
    found = {name: header.tensors[name].shape for name in shapes if name in header.tensors}
    if header.architecture != architecture or found != shapes:
        wrong = next((name for name in shapes if found.get(name) != shapes[name]), "general.architecture")
        raise ModelError(
            f"the adapter does not fit {str(file)!r}: {wrong} is {found.get(wrong, header.architecture)!r} there, and "
            f"{shapes.get(wrong, architecture)!r} in the adapter. Export another format."
        )


def _tensors(
    model: LanguageModel, targets: Sequence[LoraTarget], architecture: str, renamed: Mapping[str, str]
) -> dict[str, NDArray[np.float32]]:
    """The factors by their names in the file, by the gguf package's own map, shaped as llama.cpp wants them."""
    config, table = model.network.config.get_text_config(), _table("gguf_architectures")
    names = gguf.get_tensor_name_map(_ARCHITECTURES[architecture], int(config.num_hidden_layers))
    factors = table["factors"].get(config.model_type, {})
    tensors: dict[str, NDArray[np.float32]] = {}
    for target in targets:
        module = target.parameter.removesuffix(".weight").replace("language_model.", "")
        for ours, theirs in {**table["renamed"], **renamed}.items():
            module = module.replace(ours, theirs)
        found = names.get_type_and_name(module)
        if found is None or found[0] not in _OUTPUTS:
            raise ModelError(
                f"llama.cpp's {architecture!r} has no tensor for the output projection {target.parameter}: this "
                "variant of the architecture cannot be exported. Export another format."
            )
        scale, a, b = 1.0, target.a, target.b
        for suffix, where in factors.items():  # what llama.cpp's converter multiplies into this projection
            if target.name.endswith(suffix):
                attribute, _, index = where.partition(".")
                value = getattr(config, attribute)
                scale = float(value[int(index)] if index else value)
        a, b = (scale * a[0], b) if target.experts is None else (scale * a, b.expand(target.experts, -1, -1))
        for side, tensor in (("a", a), ("b", b)):
            tensors[f"{found[1]}.weight.lora_{side}"] = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    return tensors


def _architecture(model: LanguageModel) -> tuple[str, dict[str, str]]:
    """(name in GGUF, module names to replace before looking them up)."""
    config, table = model.network.config, _table("gguf_architectures")
    whole, text = config.model_type, config.get_text_config().model_type
    wrong = next((name for name in (text, whole) if name in table["refused"]), None)
    if wrong is None and (text not in table["architectures"] or (whole != text and whole not in table["multimodal"])):
        wrong = text if text not in table["architectures"] else whole
    if wrong is not None:
        why = "it has no known name in GGUF, or its projections may be stored there in another order. "
        why += did_you_mean(wrong, table["architectures"])
        raise ModelError(
            f"there is no GGUF adapter for the model type {wrong!r}: {table['refused'].get(wrong, why)} Export another "
            "format, or write the edited checkpoint (apply) and convert that."
        )
    if text != "granitemoehybrid":
        return (table["multimodal"].get(whole) if whole != text else "") or table["architectures"][text], {}
    # a hybrid in name only is converted as what it is: without mixers, without experts, or without both
    experts = any(site.experts is not None for site in model.sites.values())
    renamed = {} if experts else {"shared_mlp.output_linear": "mlp.down_proj"}
    mixers = any(site.block == "ssm" for site in model.sites)
    return "granitehybrid" if mixers else "granitemoe" if experts else "granite", renamed


def max_lora_rank(rank: int) -> int:
    """The smallest `--max-lora-rank` that vLLM accepts and this rank fits in."""
    return next(allowed for allowed in _VLLM_RANKS if allowed >= rank)


def write_vllm_lora(model: LanguageModel, targets: Sequence[LoraTarget], directory: Path) -> None:
    """Write the adapter with the keys that vLLM expects; a ModelError where it is not known where it keeps experts."""
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for target in targets:
        pairs |= {target.name: (target.a[0], target.b)} if target.experts is None else _expert_pairs(model, target)
    write_lora(model, targets, directory, pairs)


def _expert_pairs(model: LanguageModel, target: LoraTarget) -> dict[str, tuple[Tensor, Tensor]]:
    """Gate, up and down projection of every expert, by module; the first two are zero.

    Fused, `experts.base_layer` is gate and up together, and `experts` the down projection: A has rows (expert, rank), B
    has columns (rank, expert), however the base stores its weights.
    """
    table, name = _table("vllm_experts")["names"], target.name
    model_type = model.network.config.get_text_config().model_type
    if model_type not in table:
        raise ModelError(
            f"it is not known where vLLM looks for adapters of the experts of {model_type!r}. "
            f"{did_you_mean(model_type, table)} Serve the edited checkpoint (apply) instead."
        )
    entry = table[model_type]
    if "experts" in entry:
        layer = name[: name.index(".", name.index("layers.") + len("layers."))]
        name = f"{layer}.{entry['experts']}"
    if entry.get("fused"):
        a, b = replace(target, swapped=False).pair
        zeros = torch.zeros(len(a), target.b.shape[0]), torch.zeros(2 * a.shape[1], len(a))
        return {f"{name}.base_layer": zeros, name: (a, b)}
    gate, up, down = entry["names"]
    zeros = torch.zeros(target.rank, target.b.shape[0]), torch.zeros(target.a.shape[2], target.rank)
    return {
        f"{name}.{expert}.{projection}": pair
        for expert, a in enumerate(target.a)
        for projection, pair in ((gate, zeros), (up, zeros), (down, (a, target.b)))
    }
