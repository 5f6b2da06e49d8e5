"""An edit as a GGUF LoRA adapter, for llama.cpp and Ollama. See docs/formats.md.

    blk.{i}.attn_output.weight.lora_a   A [r, m]      blk.{i}.attn_output.weight.lora_b   B [d, r]
    blk.{i}.ffn_down_exps.weight.lora_a A [E, r, m]   …lora_b B [E, d, r]     for the E routed experts of a layer

Shapes are numpy's; GGUF lists them in the other order. llama.cpp applies `scale · alpha / r · B A`, with alpha = r
here, so a scale of 1 is the edit as it is.
"""

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from steer2edit.artifacts.edits.lora_layout import LoraTarget
from steer2edit.artifacts.manifest import SCHEMA_VERSION
from steer2edit.errors import ArtifactError, ModelError, did_you_mean
from steer2edit.models import LanguageModel
from steer2edit.models.gguf_checkpoint import read_header
from steer2edit.models.model_path import gguf_file

_TABLE = Path(__file__).with_name("gguf_architectures.toml")
_OUTPUTS = {
    gguf.MODEL_TENSOR.ATTN_OUT,
    gguf.MODEL_TENSOR.FFN_DOWN,
    gguf.MODEL_TENSOR.FFN_DOWN_EXP,
    gguf.MODEL_TENSOR.FFN_DOWN_SHEXP,
    gguf.MODEL_TENSOR.SSM_OUT,
}


def write_gguf_lora(
    model: LanguageModel, targets: Sequence[LoraTarget], rank: int, notes: Mapping[str, str], path: Path
) -> None:
    """Write an adapter as llama.cpp wants it, read it back and compare every value; the same adapter, the same bytes.

    Args:
        model: the base; only names and settings are read.
        targets: its targets with their factors, all of one rank.
        rank: that rank; `adapter.lora.alpha` is the same number.
        notes: texts by key: where the adapter comes from; written under `steer2edit.`.
        path: of the file.

    Raises:
        ModelError: llama.cpp does not run this architecture, or stores its projections in another form; or the base
            is a GGUF file with other tensors.
        ArtifactError: it reads back differently.
    """
    architecture, renamed = _architecture(model)
    tensors = _tensors(model, targets, architecture, renamed)
    if file := gguf_file(model.name):
        _require_fit(file, architecture, tensors)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
    writer.add_uint32("steer2edit.schema_version", SCHEMA_VERSION)
    for key, text in notes.items():
        writer.add_string(f"steer2edit.{key}", text)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = gguf.GGUFReader(path)
    expected = {
        "general.architecture": architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(rank),
    }
    fields = {key: field.contents() for key in expected if (field := reader.get_field(key)) is not None}
    found = {t.name: (t.tensor_type, t.data.shape, t.data.tobytes()) for t in reader.tensors}
    f32 = gguf.GGMLQuantizationType.F32
    if fields != expected or found != {name: (f32, a.shape, a.tobytes()) for name, a in tensors.items()}:
        raise ArtifactError(
            f"{path.name} reads back differently from what was written: the disk may be failing. Nothing was kept; "
            "export to another place."
        )


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
    """The factors by their names in the file, shaped as llama.cpp wants them."""
    layers = int(model.network.config.get_text_config().num_hidden_layers)
    names = gguf.get_tensor_name_map(_ARCHITECTURES[architecture], layers)
    tensors: dict[str, NDArray[np.float32]] = {}
    for target in targets:
        name = _tensor_name(names, target, renamed, architecture)
        a, b = target.a * _factor(model, target.name), target.b
        a, b = (a[0], b) if target.experts is None else (a, b.expand(target.experts, -1, -1))
        tensors |= {f"{name}.lora_{side}": _array(tensor) for side, tensor in (("a", a), ("b", b))}
    return tensors


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    return array


@cache
def _table() -> dict[str, dict[str, Any]]:
    return tomllib.loads(_TABLE.read_text(encoding="utf-8"))


_ARCHITECTURES = {name: architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items()}


def _architecture(model: LanguageModel) -> tuple[str, dict[str, str]]:
    """(name in GGUF, module names to replace before looking them up)."""
    config = model.network.config
    whole, text = config.model_type, config.get_text_config().model_type
    table = _table()
    for model_type in (text, whole):
        if model_type in table["refused"]:
            raise ModelError(
                f"there is no GGUF adapter for the model type {model_type!r}: {table['refused'][model_type]} "
                "Export another format, or write the edited checkpoint (apply) and convert that."
            )
    if text not in table["architectures"] or (whole != text and whole not in table["multimodal"]):
        unknown = text if text not in table["architectures"] else whole
        raise ModelError(
            f"the model type {unknown!r} has no known name in GGUF, or its projections may be stored there in another "
            f"order. {did_you_mean(unknown, table['architectures'])} "
            "Export another format, or write the edited checkpoint (apply) and convert that."
        )
    if text == "granitemoehybrid":
        return _granite(model)
    return (table["multimodal"].get(whole) if whole != text else "") or table["architectures"][text], {}


def _granite(model: LanguageModel) -> tuple[str, dict[str, str]]:
    """A hybrid in name only is converted as what it is: without mixers, without experts, or without both."""
    experts = any(site.experts is not None for site in model.sites.values())
    renamed = {} if experts else {"shared_mlp.output_linear": "mlp.down_proj"}
    if any(site.block == "ssm" for site in model.sites):
        return "granitehybrid", renamed
    return "granitemoe" if experts else "granite", renamed


def _tensor_name(names: gguf.TensorNameMap, target: LoraTarget, renamed: Mapping[str, str], architecture: str) -> str:
    """`blk.3.ffn_down.weight`, by the gguf package's own map from module names."""
    module = target.parameter.removesuffix(".weight").replace("language_model.", "")
    for ours, theirs in {**_table()["renamed"], **renamed}.items():
        module = module.replace(ours, theirs)
    found = names.get_type_and_name(module)
    if found is None or found[0] not in _OUTPUTS:
        raise ModelError(
            f"llama.cpp's {architecture!r} has no tensor for the output projection {target.parameter}: this variant of "
            "the architecture cannot be exported. Export another format."
        )
    return f"{found[1]}.weight"


def _factor(model: LanguageModel, module: str) -> float:
    """What llama.cpp's converter multiplies into this projection, and so into its edit."""
    config = model.network.config.get_text_config()
    for suffix, where in _table()["factors"].get(config.model_type, {}).items():
        if module.endswith(suffix):
            attribute, _, index = where.partition(".")
            value = getattr(config, attribute)
            return float(value[int(index)] if index else value)
    return 1.0
