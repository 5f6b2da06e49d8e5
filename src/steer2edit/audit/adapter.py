"""A PEFT LoRA adapter as the checkpoint that it amounts to: W + s B A, computed in float64 row by row when read.

Anybody's adapter, not only ours. PEFT itself loads it into a copy of the base without weights, so that names, ranks,
scalings and targets are as it understands them; what of it has no place there, or in the base's files, is listed.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, ValidationError
from torch import Tensor, nn

from steer2edit.artifacts.checkpoints.files import Change, StoredTensor
from steer2edit.artifacts.edits.lora import ADAPTER_FILE, CONFIG_FILE, without_weights
from steer2edit.artifacts.facts import Record
from steer2edit.artifacts.manifest import read_json
from steer2edit.artifacts.tensors import read_pt, read_tensors
from steer2edit.audit.matrices import float_dtype
from steer2edit.audit.structure import Places
from steer2edit.errors import ArtifactError, MismatchError, ModelError

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

PICKLED_FILE = "adapter_model.bin"
WITHOUT_EFFECT = frozenset({
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout",  # in training only
    "bias",  # what it adds is in the file, under names of its own
    "loftq_config", "eva_config", "corda_config", "lora_ga_config",  # init_lora_weights says whether they are used
    "megatron_core",  # the name of a package, used with megatron_config
    "qalora_group_size",  # used with use_qalora
    "runtime_config",  # PEFT ignores it in a file
})  # fmt: skip
"""Fields of PEFT's `LoraConfig` that change nothing of what the file's tensors mean."""

_KEEPS_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights with which PEFT leaves the base's own weights as they are."""
_WAY_OUT = "Merge it with PEFT (merge_and_unload) and audit the merged checkpoint."
_PREFIX = "base_model.model."
_OF_THE_ADAPTER = re.compile(
    r"(\.(?:lora_\w+|trainable_tokens_delta))\.default(?=\.|$)|\.modules_to_save\.default(?=\.)"
)
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?:embedding_)?[AB]\.default.*")
_ROWS = ".token_adapter.trainable_tokens_delta.default"


def _are_patterns(patterns: Any) -> Any:
    for pattern in [patterns] if isinstance(patterns, str) else patterns or ():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression ({error})") from error
    return patterns


_Rank = Annotated[int, Field(strict=True, gt=0)]
_Alpha = Annotated[float, Field(strict=True)]
_Rows = Annotated[list[Annotated[int, Field(strict=True, ge=0)]], Field(min_length=1)]
_NamesOrPattern = Annotated[list[str] | str | None, AfterValidator(_are_patterns)]


class AdapterConfig(Record):
    """The fields that are understood, with PEFT's defaults. One that is in neither set, and not empty, is refused."""

    r: _Rank = 8
    lora_alpha: _Alpha = 8
    lora_bias: bool = False
    use_rslora: bool = False
    rank_pattern: Annotated[dict[str, _Rank] | None, AfterValidator(_are_patterns)] = None
    alpha_pattern: Annotated[dict[str, _Alpha] | None, AfterValidator(_are_patterns)] = None
    fan_in_fan_out: bool = False
    init_lora_weights: bool | str | None = True
    target_modules: _NamesOrPattern = None
    exclude_modules: _NamesOrPattern = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: _NamesOrPattern = None
    modules_to_save: Annotated[list[str] | None, AfterValidator(_are_patterns)] = None
    target_parameters: list[str] | None = None
    trainable_token_indices: _Rows | dict[str, _Rows] | None = None


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds a PEFT adapter."""
    return (directory / CONFIG_FILE).is_file()


def adapter_views(
    directory: Path, base: dict[str, StoredTensor], places: Places
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The base's tensors with the adapter's changes on top, and why others of the adapter's tensors were not read.

    Where the base's output head is its embedding and the adapter changes it, the base is given it as a tensor.

    Raises:
        ArtifactError: the adapter is no LoRA, has settings that are not understood, or is damaged.
        MismatchError: PEFT cannot load it into the base's structure, or its tensors do not fit the base's weights.
    """
    head, embedding = places.head, base.get(places.embedding or "")
    views = dict(base)
    if places.ties_head and head is not None and embedding is not None:
        views.setdefault(head, embedding)
    if places.model is None:
        raise ModelError(
            f"{directory} is an adapter, which is read by the structure of its base, and that is not known. Give its "
            f"layout (--layout). Or: {_WAY_OUT}"
        )
    model, loaded, unread = _loaded(directory, places.model.network)
    reading = _Reading(places, views, unread)
    for name in [name for name in loaded if not _FACTOR.fullmatch(name)]:  # first: factors add to these
        reading.read_whole(name, loaded[name], model)
    for name in dict.fromkeys(match["module"] for name in loaded if (match := _FACTOR.fullmatch(name))):
        reading.read_factors(name, [n for n in loaded if n.startswith(f"{name}.lora_")], model.get_submodule(name))
    if head in views and head not in base:
        if views[head] is embedding:
            del views[head]
        elif embedding is not None:
            base[head] = embedding
    return views, unread


def _loaded(directory: Path, network: nn.Module) -> tuple[nn.Module, dict[str, Tensor], dict[str, str]]:
    """(The network with the adapter's modules, what came from the file by its name there, what PEFT ignores)."""
    from peft import LoraConfig, PeftModel, set_peft_model_state_dict

    settings = read_adapter_config(directory).model_dump(exclude_none=True) | {"init_lora_weights": False}
    tensors = _by_name(directory)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PEFT warns of shows in what it has loaded
            model = PeftModel(without_weights(network), LoraConfig(**settings), low_cpu_mem_usage=True)
            before = dict(model.named_parameters(remove_duplicate=False))
            ignored = set_peft_model_state_dict(model, tensors, low_cpu_mem_usage=True).unexpected_keys
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise MismatchError(
            f"PEFT cannot load {directory} into its base: {' '.join(str(error).split())[:300]}. It was made for "
            f"another model, or with another rank or other targets than {CONFIG_FILE} says. Get the adapter again."
        ) from error
    found = {n: p for n, p in model.named_parameters(remove_duplicate=False) if p is not before[n]}
    unread = {_OF_THE_ADAPTER.sub(r"\1", name): "PEFT ignores it: its settings name no such place" for name in ignored}
    return model.base_model.model, {n.removeprefix(_PREFIX): p.detach() for n, p in found.items()}, unread


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
    found = {_OF_THE_ADAPTER.sub(r"\1", str(key)): tensor for key, tensor in tensors.items()}
    if len(found) != len(tensors):
        raise ArtifactError(f"{path} holds a tensor twice, once with the name of an adapter in it. Remove one.")
    return found


@dataclass(frozen=True)
class _Reading:
    places: Places
    views: dict[str, StoredTensor]
    unread: dict[str, str]

    def read_whole(self, name: str, tensor: Tensor, model: nn.Module) -> None:
        """A parameter that takes the place of the base's, or some rows of it."""
        module, is_rows, _ = name.partition(_ROWS)
        plain = f"{module}.weight" if is_rows else _OF_THE_ADAPTER.sub(r"\1", name).replace(".base_layer", "")
        target = self._tensor(plain)
        if target is None:
            self._leave([name], "the base has no such tensor")
        elif not is_rows:
            self.views[target] = StoredTensor.of(tensor)
        else:
            chosen = model.get_submodule(f"{module}.token_adapter").token_indices["default"]  # type: ignore[index]

            def put(values: Tensor, start: int, stop: int) -> None:
                for index, row in zip(chosen, tensor, strict=True):
                    if start <= index < stop:
                        values[index - start] = row.double()

            base = self.views[target]
            fits = tensor.shape == (len(chosen), base.columns) and max(chosen) < base.rows
            self._change(target, put, fits, tensor.shape)

    def read_factors(self, name: str, parts: Sequence[str], layer: "LoraLayer") -> None:
        """One pair of factors, and their bias; `parts` are the names of what there is of them."""
        plain = name.replace(".base_layer", "")
        if len([part for part in parts if not part.endswith(".bias")]) != 2:
            raise ArtifactError(f"the adapter has only one of the factors of {plain}. Get it again.")
        parameter = f"{plain}.{getattr(layer, 'parameter_name', 'weight')}"
        scaling, left, right = layer.scaling["default"], *_as_the_parameter(layer)
        matrices = [place for place in self.places.by_key.values() if place.projection.parameter_name == parameter]
        stored = self._tensor(parameter)
        for place in matrices:
            own = place.projection.expert or 0
            p, q = scaling * left[own].double(), right[own]
            if place.transposed != place.projection.transposed:
                p, q = q.T, p.T
            self._add(place.tensor, p, q, place.expert)
        if not matrices and stored is None:
            return self._leave(parts, "where this parameter is in the base's files is not known")
        if not matrices and stored is not None:
            fused = len(self.views[stored].shape) == 3
            for index in range(len(left)):
                self._add(stored, scaling * left[index].double(), right[index], index if fused else None)
        if (bias := getattr(layer.lora_B["default"], "bias", None) if len(layer.lora_B) else None) is not None:
            if bias.is_meta:
                raise ArtifactError(f"{CONFIG_FILE} says lora_bias, but the adapter has none of {plain}. Get it again.")
            self._add_bias(f"{plain}.bias", scaling * bias.detach().double())
        return None

    def _tensor(self, parameter: str) -> str | None:
        """The base's tensor of a parameter."""
        name = self.places.tensors.get(parameter, parameter)
        return name if name in self.views else None

    def _leave(self, parts: Sequence[str], why: str) -> None:
        self.unread.update({_PREFIX + _OF_THE_ADAPTER.sub(r"\1", part): why for part in sorted(parts)})

    def _add(self, name: str, left: Tensor, right: Tensor, expert: int | None = None) -> None:
        """Add left [p, r] right [r, q] to a tensor, or to one expert's matrix in it."""
        left, right, base = left.double(), right.double(), self.views[name]
        rows = base.shape[-2] if len(base.shape) > 1 else 0
        first, shape = (0 if expert is None else expert * rows), (left.shape[0], right.shape[1])

        def add(values: Tensor, start: int, stop: int) -> None:
            low, high = max(start, first), min(stop, first + rows)
            if low < high:
                values[low - start : high - start] += left[low - first : high - first] @ right

        fits = len(base.shape) == (2 if expert is None else 3) and shape == (rows, base.columns)
        self._change(name, add, fits, shape)

    def _add_bias(self, parameter: str, bias: Tensor) -> None:
        """lora_bias: s times the bias of B adds to the module's own; a module without one gets one."""
        name = self._tensor(parameter)
        if name is None:
            self.views[parameter] = StoredTensor.of(bias.float(), computed=True)
            return

        def add(values: Tensor, start: int, stop: int) -> None:
            values += bias

        self._change(name, add, self.views[name].shape == bias.shape, bias.shape)

    def _change(self, name: str, change: Change, fits: bool, shape: Sequence[int]) -> None:
        base = self.views[name]
        if not fits or float_dtype(base) is None:
            raise MismatchError(
                f"{name} has shape {list(base.shape)} and dtype {base.dtype_name}, and the adapter changes it by a "
                f"tensor of shape {list(shape)}: it was made for another model, or the weight is quantised."
            )
        self.views[name] = base.changed(change)


def _as_the_parameter(layer: "LoraLayer") -> tuple[Tensor, Tensor]:
    """(L [E, p, r], R [E, r, q]): s L R changes the parameter, in its own layout; E = 1 unless experts are fused."""
    if "default" in layer.lora_embedding_A:
        a, b = layer.lora_embedding_A["default"].detach(), layer.lora_embedding_B["default"].detach()
        return a.T[None], b.T[None]
    if hasattr(layer, "get_param") and layer.get_param().ndim == 3:
        left, right, _ = layer.get_delta_factors("default")
        return left.detach(), right.detach()
    a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    return (a.T[None], b.T[None]) if layer.fan_in_fan_out else (b[None], a[None])


def read_adapter_config(directory: Path) -> AdapterConfig:
    """Read an adapter's config; an ArtifactError where it is no W + s B A, or has a setting that is not known."""
    path = directory / CONFIG_FILE
    raw = read_json(path)
    if raw.get("peft_type") != "LORA":
        raise ArtifactError(
            f"{path}: peft_type is {raw.get('peft_type')!r}, and only LORA is read. If PEFT can merge this adapter, "
            "merge it (merge_and_unload) and audit the merged checkpoint."
        )
    known = AdapterConfig.model_fields.keys() | WITHOUT_EFFECT | {"peft_type"}
    for field, value in raw.items():
        if field not in known and value not in (None, False, {}, [], ""):
            raise ArtifactError(
                f"{path}: with {field} = {str(value)[:80]} the adapter may be something else than W + s B A. {_WAY_OUT}"
            )
    try:
        config = AdapterConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(
            f"{path}: {where} is {str(first['input'])[:80]} ({first['msg']}), and PEFT cannot load that either. Get "
            "the adapter again, or set the value that it was trained with."
        ) from error
    if config.init_lora_weights not in _KEEPS_THE_BASE:
        raise ArtifactError(
            f"{path}: with init_lora_weights = {str(config.init_lora_weights)[:80]} PEFT changes the base's weights "
            f"before it adds B A to them. {_WAY_OUT}"
        )
    return config
