"""The files of a PEFT LoRA adapter, and the check that PEFT loads them as they were meant.

PEFT ignores a key that it does not recognise: the adapter then loads and does nothing. So names are built in one
place, and what was written is loaded through PEFT once before it counts as written.
"""

import copy
import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steer2edit.artifacts.strict_json import read_json
from steer2edit.artifacts.tensors import same_bits
from steer2edit.errors import ArtifactError
from steer2edit.models import LanguageModel
from steer2edit.models.site_module import is_linear, is_quantised
from steer2edit.models.stored import renamed

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


class Pair(NamedTuple):
    """One module's factors."""

    a: Float[Tensor, "r m"]  # `lora_A`, [r, m]; for E fused experts [E·r, m]
    b: Float[Tensor, "d r"]  # `lora_B`, [d, r]; for E fused experts [d, r·E]


def adapter_keys(module: str) -> tuple[str, str]:
    """Names of a module's `lora_A` and `lora_B` in the adapter file."""
    return f"base_model.model.{module}.lora_A.weight", f"base_model.model.{module}.lora_B.weight"


def names_in_file(model: LanguageModel, modules: Sequence[str]) -> dict[str, str]:
    """What an adapter's file calls modules, by module.

    PEFT reads the file by transformers' rules for the names of old checkpoints. Where these change a name that is
    new already, the file has the old one.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers as converted

    read = converted(model.network, LoraConfig(), {adapter_keys(module)[0]: torch.zeros(()) for module in modules})
    return {
        module: module
        if adapter_keys(module)[0] in read
        else renamed(model.network, f"{module}.lora_A", back=True).removesuffix(".lora_A")
        for module in modules
    }


def base_reference(model: LanguageModel) -> str:
    """What loads the base model again: its Hub id, or the absolute path of its directory."""
    name = model.network.name_or_path or model.name
    return str(Path(name).resolve()) if Path(name).is_dir() else str(name)


def check_adapter_config(directory: Path, rank: int, weights: Iterable[str]) -> None:
    """Refuse a config under which PEFT would not apply exactly `lora_B lora_A` to exactly these weights.

    Raises:
        ArtifactError: names the setting, its value and the value needed.
    """
    path = directory / CONFIG_FILE
    config = read_json(path)
    modules, parameters = config.get("target_modules") or [], config.get("target_parameters") or []
    needed: dict[str, Any] = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none"}
    found = {name: config.get(name) for name in needed}
    for name in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern"):
        needed[name], found[name] = None, config.get(name) or None
    needed["targets"], found["targets"] = sorted(weights), [modules, parameters]
    if isinstance(modules, list) and isinstance(parameters, list):
        found["targets"] = sorted([*(f"{module}.weight" for module in modules), *map(str, parameters)])
    for name, value in needed.items():
        if found[name] != value:
            raise ArtifactError(
                f"{path}: {name} is {str(found[name])[:200]}, but this edit needs {str(value)[:200]}: with anything "
                "else PEFT would apply another edit. Make the edit again."
            )


def check_loads_through_peft(network: nn.Module, directory: Path, pairs: Mapping[str, Pair]) -> None:
    """Load the directory through PEFT into a copy of the network without weights, and compare every factor.

    Args:
        network: the base; neither changed nor wrapped, and its weights are not copied.
        directory: the adapter.
        pairs: the factors that must arrive, by module name.

    Raises:
        ArtifactError: a factor did not arrive as written, or another module got an adapter.
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    skeleton = _without_weights(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever PEFT warns about shows in the comparison below
        PeftModel.from_pretrained(skeleton, str(directory), torch_device="cpu")
    layers = {name: module for name, module in skeleton.named_modules() if isinstance(module, LoraLayer)}
    wrong = sorted(pairs.keys() ^ layers.keys())
    wrong += [name for name in pairs.keys() & layers.keys() if not _holds(layers[name], pairs[name])]
    if wrong:
        raise ArtifactError(
            f"PEFT does not load {directory.name} as it was written: {len(wrong)} of {len(pairs)} modules differ, "
            f"the first is {wrong[0]}. This is a defect of steer2edit or of this version of PEFT; please report it."
        )


def _holds(layer: nn.Module, pair: Pair) -> bool:
    lora_a, lora_b = (layer.get_submodule(f"lora_{side}.default").get_parameter("weight") for side in "AB")
    scaling: dict[str, float] = layer.scaling  # type: ignore[assignment]
    return scaling["default"] == 1.0 and same_bits(lora_a, pair.a) and same_bits(lora_b, pair.b)


def _without_weights(network: nn.Module) -> nn.Module:
    """A copy of the module tree in which every tensor is one zero seen at its shape: it takes no memory.

    Quantised modules are plain ones in it: an adapter beside them has the same factors.
    """
    memo: dict[int, Any] = {}
    for module in network.modules():
        if is_linear(module) and is_quantised(module):
            memo[id(module)] = plain = nn.Linear(1, 1, bias=False)
            plain.in_features, plain.out_features = vars(module)["in_features"], vars(module)["out_features"]
            plain.weight = nn.Parameter(torch.zeros(()).expand(plain.out_features, plain.in_features), False)
    for tensor in itertools.chain(network.parameters(), network.buffers()):
        zero = torch.zeros(()).expand(tensor.shape)
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(zero, requires_grad=False) if is_parameter else zero
    skeleton = copy.deepcopy(network, memo)
    if hasattr(skeleton, "hf_device_map"):
        del skeleton.hf_device_map  # it would send the copy's tensors to the base's devices
    return skeleton
