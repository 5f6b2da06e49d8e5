"""A LoRA of any rank in PEFT's files: which targets it has in a model, and that PEFT loads it as it was meant.

A target is a module, or a parameter that holds fused experts. With E experts and rank r, PEFT's layout is `lora_A`
[E·r, m] with row e·r + k, and `lora_B` [d, r·E] with column k·E + e. PEFT ignores a key that it does not recognise: the
adapter then loads and does nothing. So names are built in one place, and what was written is loaded through PEFT once
before it counts as written.
"""

import copy
import itertools
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steer2edit.artifacts.edits.low_rank import LowRank
from steer2edit.artifacts.manifest import read_json
from steer2edit.artifacts.tensors import same_bits, write_tensors
from steer2edit.core import Site
from steer2edit.errors import ArtifactError
from steer2edit.models import LanguageModel
from steer2edit.models.site_module import is_linear, is_mixture, is_quantised
from steer2edit.models.stored import old_name

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"

Pair = tuple[Float[Tensor, "Er m"], Float[Tensor, "d rE"]]
"""One module's `lora_A` and `lora_B`; E = 1 for a plain matrix."""


@dataclass(frozen=True)
class LoraTarget:
    """One matrix of a model, or all fused experts of one parameter, with its factors."""

    site: Site  # which it is of
    name: str  # full name of the module; of the module of fused experts
    parameter: str  # full name of the stored weight
    experts: int | None  # how many are fused; `None` for a plain matrix
    a: Float[Tensor, "E r m"]  # A of every expert, [E, r, m]; E = 1 for a plain matrix
    b: Float[Tensor, "d r"]  # B [d, r], the same for every expert
    transposed: bool  # whether the model stores the weight as [m, d]
    by_parameter: bool = False  # whether PEFT is told the parameter instead of the module
    # whether PEFT takes the weight's axes the other way round: it goes by the module's `is_transposed`, which Llama 4's
    # experts lack although they are transposed. A and B then change places.
    swapped: bool = False

    @property
    def rank(self) -> int:
        """r."""
        return self.b.shape[1]

    @property
    def pair(self) -> Pair:
        """`lora_A` and `lora_B` as PEFT stores them."""
        if self.swapped:
            return (self.b.T.repeat(len(self.a), 1), self.a.permute(2, 1, 0).flatten(1))
        return (self.a.flatten(0, 1), self.b[:, :, None].expand(-1, -1, len(self.a)).flatten(1))


def lora_targets(model: LanguageModel, factors: Mapping[Site, LowRank]) -> list[LoraTarget]:
    """Every target of an adapter, with factors padded to one rank, the largest.

    PEFT would not find all modules by their names: it refuses a Mamba's output projection, and in a model with a
    mixture of experts it takes every module called down_proj for the routed experts' of an older version of
    transformers. These are given as parameters. A MismatchError where the model lacks a site or has another shape.
    """
    model.require_shapes({site: (f.b.shape[0], f.a.shape[1]) for site, f in factors.items()}, "edits")
    mixture = any(map(is_mixture, model.network.modules()))  # also one that is not edited
    targets = []
    for site, low_rank in factors.items():
        padded = low_rank.padded(max(f.rank for f in factors.values()))
        for _, group in itertools.groupby(model.sites[site].projections, key=lambda p: p.parameter_name):
            first, *_ = projections = list(group)
            fused = first.expert is not None
            target = LoraTarget(
                site=site,
                name=first.name,
                parameter=first.parameter_name,
                experts=len(projections) if fused else None,
                a=torch.stack([padded.a[:, p.columns] for p in projections]),
                b=padded.b,
                transposed=first.transposed,
                by_parameter=site.block == "ssm" or (site.block == "mlp" and mixture),
                swapped=fused and first.transposed != getattr(first.module, "is_transposed", False),
            )
            targets.append(target)
    return targets


def adapter_keys(module: str) -> tuple[str, str]:
    """Names of a module's `lora_A` and `lora_B` in the adapter file."""
    return f"base_model.model.{module}.lora_A.weight", f"base_model.model.{module}.lora_B.weight"


def names_in_file(model: LanguageModel, modules: Sequence[str]) -> dict[str, str]:
    """What an adapter's file calls modules, by module.

    PEFT reads it by transformers' rules for the names of old checkpoints: where they change a new one, it has the old.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers as converted

    read = converted(model.network, LoraConfig(), {adapter_keys(module)[0]: torch.zeros(()) for module in modules})
    return {
        module: module
        if adapter_keys(module)[0] in read
        else old_name(model.network, f"{module}.lora_A").removesuffix(".lora_A")
        for module in modules
    }


def base_reference(model: LanguageModel) -> str:
    """What loads the base model again: its Hub id, or the absolute path of its directory."""
    name = model.network.name_or_path or model.name
    return str(Path(name).resolve()) if Path(name).is_dir() else str(name)


def write_lora(
    model: LanguageModel, targets: Sequence[LoraTarget], directory: Path, pairs: Mapping[str, Pair] | None = None
) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` for PEFT, with r = lora_alpha.

    `pairs` are the modules as another engine wants them, by name, in place of the targets' own.
    """
    from peft import LoraConfig

    parameters = sorted(t.parameter for t in targets if t.by_parameter and pairs is None)
    modules = sorted(pairs or (t.name for t in targets if not t.by_parameter))
    if pairs is None:
        names = names_in_file(model, [target.name for target in targets])
        pairs = {names[target.name]: target.pair for target in targets}
    tensors = {key: own for name, pair in pairs.items() for key, own in zip(adapter_keys(name), pair, strict=True)}
    write_tensors(tensors, directory / ADAPTER_FILE, {"format": "pt"})
    config = LoraConfig(
        r=targets[0].rank,
        lora_alpha=targets[0].rank,
        lora_dropout=0.0,
        bias="none",
        target_modules=modules,
        target_parameters=parameters or None,
        fan_in_fan_out=any(t.transposed for t in targets if t.parameter not in parameters and t.experts is None),
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=base_reference(model),
        revision=model.revision,
    ).to_dict()
    config["target_modules"] = modules  # PEFT keeps a set, whose order changes from run to run
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def check_adapter_config(directory: Path, rank: int, weights: Iterable[str]) -> None:
    """Refuse, with an ArtifactError, a config by which PEFT does not apply `lora_B lora_A` to exactly these weights."""
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
    """Load the directory through PEFT into a copy without weights, and compare every factor with `pairs` by module.

    An ArtifactError where one did not arrive as it is, or another module got an adapter.
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    skeleton = without_weights(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever PEFT warns about shows in the comparison below
        PeftModel.from_pretrained(skeleton, str(directory), torch_device="cpu")
    layers = {name: module for name, module in skeleton.named_modules() if isinstance(module, LoraLayer)}
    wrong = sorted(pairs.keys() ^ layers.keys())
    for name in pairs.keys() & layers.keys():
        found = [layers[name].get_submodule(f"lora_{side}.default").get_parameter("weight") for side in "AB"]
        if layers[name].scaling["default"] != 1.0 or not all(map(same_bits, found, pairs[name])):
            wrong.append(name)
    if wrong:
        raise ArtifactError(
            f"PEFT does not load {directory.name} as it was written: {len(wrong)} of {len(pairs)} modules differ, "
            f"the first is {wrong[0]}. This is a defect of steer2edit or of this version of PEFT; please report it."
        )


def without_weights(network: nn.Module) -> nn.Module:
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
        memo[id(tensor)] = nn.Parameter(zero, requires_grad=False) if isinstance(tensor, nn.Parameter) else zero
    skeleton = copy.deepcopy(network, memo)
    if hasattr(skeleton, "hf_device_map"):
        del skeleton.hf_device_map  # it would send the copy's tensors to the base's devices
    return skeleton
