"""A PEFT LoRA adapter as the checkpoint that it amounts to: W + s B A, computed in float64 row by row when read.

Anybody's adapter, not only ours. PEFT itself loads it into a copy of the base without weights, so that names, ranks,
scalings and targets are as it understands them; what of it has no place there, or in the base's files, is listed.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from steer2edit.artifacts.checkpoints.files import StoredTensor
from steer2edit.artifacts.edits.lora import ADAPTER_FILE, CONFIG_FILE, without_weights
from steer2edit.artifacts.manifest import read_json
from steer2edit.artifacts.tensors import read_pt, read_tensors
from steer2edit.audit.structure import Places
from steer2edit.errors import ArtifactError, MismatchError, ModelError

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

PICKLED_FILE = "adapter_model.bin"
UNDERSTOOD = frozenset({
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "init_lora_weights",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save",
    "target_parameters",
})  # fmt: skip
"""Fields of PEFT's `LoraConfig` with which an adapter stays W + s B A."""
WITHOUT_EFFECT = frozenset({
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout",  # in training only
    "bias",  # what it adds is in the file, under names of its own
    "loftq_config", "eva_config", "corda_config", "lora_ga_config",  # init_lora_weights says whether they are used
    "megatron_core",  # the name of a package, used with megatron_config
    "qalora_group_size",  # used with use_qalora
    "runtime_config",  # PEFT ignores it in a file
})  # fmt: skip
"""Fields that change nothing of what the file's tensors mean. One that is in neither set, and not empty, is refused."""

_KEEPS_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights with which PEFT leaves the base's own weights as they are."""
_WAY_OUT = "Merge it with PEFT (merge_and_unload) and audit the merged checkpoint."
_PREFIX = "base_model.model."
_OF_THE_ADAPTER = re.compile(r"(\.lora_\w+)\.default(?=\.|$)|\.modules_to_save\.default(?=\.)")
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?:embedding_)?[AB](?:\..*)?")


def adapter_views(
    directory: Path, base: Mapping[str, StoredTensor], places: Places
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The base's tensors with the adapter's changes on top, and why others of the adapter's tensors were not read.

    An output head that is the base's embedding is a tensor of its own where the adapter changes it.
    """
    if places.model is None:
        raise ModelError(
            f"{directory} is an adapter, which is read by the structure of its base, and that is not known. Give its "
            f"layout (--layout). Or: {_WAY_OUT}"
        )
    views, head, embedding = dict(base), places.head or "", base.get(places.embedding or "")
    if places.ties_head and embedding is not None:
        views.setdefault(head, embedding)
    model, loaded, unread = _loaded(directory, places.model.network)
    factors: dict[str, list[str]] = {}
    for name, tensor in loaded.items():
        plain = name.replace(".base_layer", "")  # a parameter in place of the base's, unless it is a factor
        if match := _FACTOR.fullmatch(name):
            factors.setdefault(match["module"], []).append(name)
        elif (stored := places.tensors.get(plain, plain)) in views:
            views[stored] = StoredTensor.of(tensor)
        else:
            unread[_PREFIX + name] = "the base has no such tensor"
    for module, names in factors.items():  # afterwards: they add to what was put in place
        if len(names) != 2:
            raise ArtifactError(f"the adapter has only one of the factors of {module}. Get it again.")
        if not _add_factors(views, places, module.replace(".base_layer", ""), model.get_submodule(module)):
            why = "where this parameter is in the base's files is not known"
            unread |= {_PREFIX + name: why for name in sorted(names)}
    if head not in base and views.get(head) is embedding:
        views.pop(head, None)
    return views, unread


def _loaded(directory: Path, network: nn.Module) -> tuple[nn.Module, dict[str, Tensor], dict[str, str]]:
    """(The network with the adapter's modules, what came from the file by its name there, what PEFT ignores)."""
    from peft import LoraConfig, PeftModel, set_peft_model_state_dict

    settings, tensors = _settings(directory / CONFIG_FILE), _by_name(directory)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PEFT warns of shows in what it has loaded
            model = PeftModel(without_weights(network), LoraConfig(**settings), low_cpu_mem_usage=True)
            before = dict(model.named_parameters(remove_duplicate=False))
            ignored = set_peft_model_state_dict(model, tensors, low_cpu_mem_usage=True).unexpected_keys
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, re.error) as error:
        raise MismatchError(
            f"PEFT cannot load {directory} into its base: {' '.join(str(error).split())[:300]}. It was made for "
            f"another model, or with another rank or other targets than {CONFIG_FILE} says. Get the adapter again."
        ) from error
    parameters = model.named_parameters(remove_duplicate=False)
    found = {_plain(name).removeprefix(_PREFIX): p.detach() for name, p in parameters if p is not before[name]}
    unread = {_plain(name): "PEFT ignores it: its settings name no such place" for name in ignored}
    return model.base_model.model, found, unread


def _plain(name: str) -> str:
    """A tensor's name without the name of the adapter, which files need not have."""
    return _OF_THE_ADAPTER.sub(r"\1", name)


def _settings(path: Path) -> dict[str, Any]:
    """An adapter's settings for PEFT; an ArtifactError where it is no W + s B A, or has a setting that is not known."""
    raw = read_json(path)
    if raw.get("peft_type") != "LORA":
        raise ArtifactError(f"{path}: peft_type is {raw.get('peft_type')!r}, and only LORA is read. {_WAY_OUT}")
    for field, value in raw.items():
        understood = field in UNDERSTOOD | WITHOUT_EFFECT | {"peft_type"} or value in (None, False, {}, [], "")
        if not understood or (field == "init_lora_weights" and value not in _KEEPS_THE_BASE):
            raise ArtifactError(
                f"{path}: with {field} = {str(value)[:80]} the adapter may be something else than W + s B A on the "
                f"base's own weights. {_WAY_OUT}"
            )
    return {name: raw[name] for name in UNDERSTOOD & raw.keys()} | {"init_lora_weights": False}


def _by_name(directory: Path) -> dict[str, Tensor]:
    """The adapter's tensors as PEFT names them, without the adapter's own name."""
    path = directory / ADAPTER_FILE
    if not path.is_file():
        path = directory / PICKLED_FILE
    if not path.is_file():
        raise ArtifactError(f"{directory} has neither {ADAPTER_FILE} nor {PICKLED_FILE}. Get the adapter again, whole.")
    tensors = read_pt(path) if path.name == PICKLED_FILE else read_tensors(path, "adapter's tensors")[0]
    if not isinstance(tensors, dict) or not tensors or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ArtifactError(f"{path} must hold tensors by name, and holds none or something else. Get it again.")
    found = {_plain(str(key)): tensor for key, tensor in tensors.items()}
    if len(found) != len(tensors):
        raise ArtifactError(f"{path} holds a tensor twice, once with the name of an adapter in it. Remove one.")
    return found


def _add_factors(views: dict[str, StoredTensor], places: Places, module: str, layer: "LoraLayer") -> bool:
    """Add s B A to where the parameter of a module is stored; whether that is known."""
    parameter = f"{module}.{getattr(layer, 'parameter_name', 'weight')}"
    left, right = _as_the_parameter(layer)
    # (the tensor, the expert in it, the expert of the factors, whether it is stored the other way round)
    targets: list[tuple[str, int | None, int, bool]] = [
        (place.tensor, place.expert, place.projection.expert or 0, place.transposed != place.projection.transposed)
        for place in places.matrices
        if place.projection.parameter_name == parameter
    ]
    if not targets and (name := places.tensors.get(parameter, parameter)) in views:
        fused = len(views[name].shape) == 3
        targets = [(name, expert if fused else None, expert, False) for expert in range(len(left))]
    for tensor, expert, own, flipped in targets:
        factors = (right[own].T, left[own].T) if flipped else (left[own], right[own])
        views[tensor] = _with_product(tensor, views[tensor], *factors, expert)
    return bool(targets)


def _as_the_parameter(layer: "LoraLayer") -> tuple[Tensor, Tensor]:
    """(L [E, p, r], R [E, r, q]): L R changes the parameter, in its own layout; E = 1 unless experts are fused."""
    if "default" in layer.lora_embedding_A:
        left, right = layer.lora_embedding_A["default"].T[None], layer.lora_embedding_B["default"].T[None]
    elif hasattr(layer, "get_param") and layer.get_param().ndim == 3:
        left, right, _ = layer.get_delta_factors("default")
    else:
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        left, right = (a.T[None], b.T[None]) if layer.fan_in_fan_out else (b[None], a[None])
    return layer.scaling["default"] * left.detach().double(), right.detach().double()


def _with_product(name: str, base: StoredTensor, left: Tensor, right: Tensor, expert: int | None) -> StoredTensor:
    """A tensor, or one expert's matrix in it, with left [p, r] right [r, q] added."""
    rows, shape = len(left), (len(left), right.shape[1])
    if base.shape[0 if expert is None else 1 :] != shape or not base.is_plain_float:
        raise MismatchError(
            f"{name} has shape {list(base.shape)} and dtype {base.dtype_name}, and the adapter changes it by a "
            f"tensor of shape {list(shape)}: it was made for another model, or the weight is quantised."
        )
    first = (expert or 0) * rows

    def add(values: Tensor, start: int, stop: int) -> None:
        low, high = max(start, first), min(stop, first + rows)
        if low < high:
            values[low - start : high - start] += left[low - first : high - first] @ right

    return replace(base, changes=(*base.changes, add))
