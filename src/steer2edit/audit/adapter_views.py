"""A PEFT LoRA adapter as the checkpoint that it amounts to: W + s B A, computed in float64 row by row when read.

Anybody's adapter, not only ours: any rank, alpha, rank-stabilised scaling, modules and (for fused experts) parameters;
with biases, trained token rows and whole modules beside the factors. Whatever of it has no place is listed.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.artifacts.checkpoints.stored_tensor import DTYPES
from steer2edit.artifacts.edits.peft_files import ADAPTER_FILE, CONFIG_FILE
from steer2edit.artifacts.tensors import read_tensors
from steer2edit.artifacts.vector_files.pt_files import read_pt
from steer2edit.audit.adapter_config import AdapterConfig, read_adapter_config
from steer2edit.audit.places import Places
from steer2edit.audit.views import TensorView
from steer2edit.errors import ArtifactError, MismatchError

PICKLED_FILE = "adapter_model.bin"
_PREFIX = "base_model.model."
_KEY = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_[AB]\.weight|lora_B\.bias|lora_embedding_[AB]|token_adapter\.trainable_tokens_delta)"
)
_ADAPTER_NAME = re.compile(r"(\.(?:lora_\w+|trainable_tokens_delta))\.default(?=\.|$)|\.modules_to_save\.default(?=\.)")
_WRAPPER = ".base_layer"
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_SIDES = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))


@dataclass(frozen=True)
class Factors:
    """One module's LoRA: s B A.

    Args:
        a: A [r, in].
        b: B [out, r].
        scaling: s.
        transpose: whether the weight is stored as [in, out].
    """

    a: Float[Tensor, "r in"]
    b: Float[Tensor, "out r"]
    scaling: float
    transpose: bool = False

    @property
    def sides(self) -> tuple[Float[Tensor, "p r"], Float[Tensor, "r q"]]:
        """Factors of the change as it is stored, in float64."""
        a, b = self.a.double(), self.scaling * self.b.double()
        return (a.T, b.T) if self.transpose else (b, a)


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds a PEFT adapter."""
    return (directory / CONFIG_FILE).is_file()


def adapter_views(
    directory: Path, base: Mapping[str, TensorView], places: Places
) -> tuple[dict[str, TensorView], dict[str, str]]:
    """The base's tensors with the adapter's changes on top, and why others of the adapter's tensors were not read.

    Raises:
        ArtifactError: the adapter is no LoRA, has settings that are not understood, or is damaged.
        MismatchError: its factors do not fit the base's weights.
    """
    reading = _Reading(read_adapter_config(directory), base, places, dict(base))
    modules: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in _by_name(directory, reading.unread).items():
        match = _KEY.fullmatch(name)
        if match is None:
            others[name] = tensor
        else:
            modules.setdefault(match["module"], {})[match["part"]] = tensor
    wrapped = {module.replace(_WRAPPER, "") for module, parts in modules.items() if len(parts) > 1}
    for name, tensor in others.items():  # first: factors add to what these put in the base's place
        reading.read_whole(name, tensor, wrapped)
    for module, parts in modules.items():
        reading.read_module(module, parts)
    return reading.views, reading.unread


def _by_name(directory: Path, unread: dict[str, str]) -> dict[str, Tensor]:
    """The adapter's tensors as PEFT names them, without its prefix and the adapter's own name."""
    path = directory / ADAPTER_FILE
    if not path.is_file():
        path = directory / PICKLED_FILE
    if not path.is_file():
        raise ArtifactError(f"{directory} has neither {ADAPTER_FILE} nor {PICKLED_FILE}. Get the adapter again, whole.")
    tensors = read_pt(path) if path.name == PICKLED_FILE else read_tensors(path, "adapter's tensors")[0]
    if not isinstance(tensors, dict) or not tensors or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ArtifactError(f"{path} must hold tensors by name, and holds none or something else. Get it again.")
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = _ADAPTER_NAME.sub(r"\1", str(key))
        if not name.startswith(_PREFIX):
            unread[str(key)] = f"PEFT ignores names that do not begin with {_PREFIX}"
        elif name.removeprefix(_PREFIX) in found:
            raise ArtifactError(f"{path} holds {name} twice, once with the name of an adapter in it. Remove one.")
        else:
            found[name.removeprefix(_PREFIX)] = tensor
    return found


@dataclass(frozen=True)
class _Reading:
    config: AdapterConfig
    base: Mapping[str, TensorView]
    places: Places
    views: dict[str, TensorView]
    unread: dict[str, str] = field(default_factory=dict)

    def read_module(self, module: str, parts: Mapping[str, Tensor]) -> None:
        """Everything that the adapter holds of one module besides its own parameters."""
        rest = set(parts)
        for sides in _SIDES:
            there = [part for part in sides if part in parts]
            if len(there) == 1:
                raise ArtifactError(f"the adapter has only one of the factors of {module}. Get it again.")
            if there and (why := self._read_factors(module, parts, sides)):
                self._leave(module, rest, why)
                return
            rest -= set(sides)
        plain = module.replace(_WRAPPER, "")
        if "lora_B.bias" in rest:
            self._read_bias(plain, self.config.scaling(plain) * parts["lora_B.bias"].double())
            rest.remove("lora_B.bias")
        for part in rest:
            if why := self._read_token_rows(plain, parts[part]):
                self._leave(module, rest, why)

    def read_whole(self, name: str, tensor: Tensor, wrapped: set[str]) -> None:
        """A parameter that takes the place of the base's."""
        plain = name.replace(_WRAPPER, "")
        target = self._tensor(plain)
        if target is None:
            self.unread[_PREFIX + name] = "the base has no such tensor"
        elif (_WRAPPER in name) != (plain.rpartition(".")[0] in wrapped):
            self.unread[_PREFIX + name] = "PEFT ignores it, for it loads this module under another name"
        else:
            self.views[target] = _view_of(tensor)

    def _leave(self, module: str, parts: set[str], why: str) -> None:
        self.unread.update({f"{_PREFIX}{module}.{part}": why for part in sorted(parts)})

    def _tensor(self, parameter: str) -> str | None:
        """The base's tensor of a parameter: by the model's own mapping, or by name where there is none."""
        known = self.places.tensors.get(parameter, parameter)
        if known in self.base:
            return known
        ends = [n for n in self.base if n.endswith(f".{parameter}") or parameter.endswith(f".{n}")]
        return ends[0] if len(ends) == 1 and self.places.network is None else None

    def _read_factors(self, module: str, parts: Mapping[str, Tensor], sides: tuple[str, str]) -> str | None:
        """Add one pair of factors; why not, where they have no place."""
        a, b = (parts[side] for side in sides)
        if a.ndim != 2 or b.ndim != 2:
            return "it is no matrix, and other factors are not read"
        plain = module.replace(_WRAPPER, "")
        wrapped = self.config.wrapped(self.places.parameters(plain))
        experts = {k: p for k, p in self.places.by_key.items() if k.startswith(f"{plain}.") and k.endswith("]")}
        if (wrapped or experts) and sides[0] == "lora_A.weight":
            return self._read_wrapped(module, wrapped, a, b)
        target = self.places.by_key.get(plain)
        tensor = self._tensor(f"{plain}.weight") if target is None else target[0]
        if tensor is None:
            return "the base has no such module"
        if _WRAPPER in module or not self.config.reaches(plain):
            return "PEFT ignores it, for the settings do not name this module"
        flipped = self.places.is_flipped(plain) if target is None else target[1].transposed
        is_embedding = sides[0] != "lora_A.weight"
        transpose = is_embedding or (self.config.fan_in_fan_out if flipped is None else flipped)
        self._add(tensor, _factors(plain, a, b, self.config, transpose=transpose), None)
        return None

    def _read_wrapped(self, module: str, wrapped: list[str], a: Tensor, b: Tensor) -> str | None:
        """Factors of a parameter such as fused experts; each further one wraps those before it."""
        depth = module.count(_WRAPPER)
        if depth >= len(wrapped):
            return "PEFT ignores it, for target_parameters does not name this parameter"
        name = wrapped[len(wrapped) - 1 - depth]
        experts = {k: p for k, p in self.places.by_key.items() if k.startswith(f"{name}[")}
        if experts:
            for key, factors in _expert_factors(name, a, b, self.config, self.places, list(experts)).items():
                tensor, place = experts[key]
                self._add(tensor, factors, place.expert)
            return None
        stored = self._tensor(name)
        if stored is None or len(self.base[stored].shape) != 2:
            return "where this parameter is in the base's files is not known"
        self._add(stored, _factors(name, a, b, self.config), None)
        return None

    def _add(self, name: str, factors: Factors, expert: int | None) -> None:
        left, right = factors.sides
        base = self.views[name]
        rows = base.shape[-2] if len(base.shape) > 1 else 0
        first = 0 if expert is None else expert * rows
        if len(base.shape) != (2 if expert is None else 3) or (left.shape[0], right.shape[1]) != (rows, base.columns):
            raise _misfit(name, base, [left.shape[0], right.shape[1]])

        def add(values: Tensor, start: int, stop: int) -> None:
            low, high = max(start, first), min(stop, first + rows)
            if low < high:
                values[low - start : high - start] += left[low - first : high - first] @ right

        self._change(name, add)

    def _read_bias(self, module: str, bias: Tensor) -> None:
        """lora_bias: s times the bias of B adds to the module's own; a module without one gets one."""
        name = self._tensor(f"{module}.bias")
        if name is None:
            self.views[f"{module}.bias"] = replace(_view_of(bias.float()), computed=True)
            return
        if self.views[name].shape != bias.shape:
            raise _misfit(name, self.views[name], list(bias.shape))

        def add(values: Tensor, start: int, stop: int) -> None:
            values += bias

        self._change(name, add)

    def _read_token_rows(self, module: str, rows: Tensor) -> str | None:
        """trainable_token_indices: some rows of an embedding are replaced."""
        name, chosen = self._tensor(f"{module}.weight"), self.config.token_rows(module)
        if name is None or not chosen:
            return "trainable_token_indices does not name this embedding" if name else "the base has no such module"
        base = self.views[name]
        if rows.shape != (len(chosen), base.columns) or max(chosen) >= base.rows:
            raise _misfit(name, base, list(rows.shape))

        def put(values: Tensor, start: int, stop: int) -> None:
            for index, row in zip(chosen, rows, strict=True):
                if start <= index < stop:
                    values[index - start] = row.double()

        self._change(name, put)
        return None

    def _change(self, name: str, change: Callable[[Tensor, int, int], None]) -> None:
        view = self.views[name]
        if view.dtype is None:
            raise _misfit(name, view, list(view.shape))

        def read(start: int, stop: int) -> Tensor:
            values = view.read_rows(start, stop).double()
            change(values, start, stop)
            return values

        self.views[name] = TensorView(view.shape, "F32", torch.float32, read, computed=True)


def _factors(
    name: str, a: Tensor, b: Tensor, config: AdapterConfig, experts: int = 1, *, transpose: bool = False
) -> Factors:
    rank = config.rank(name)
    if a.shape[0] != b.shape[1] or a.shape[0] != rank * experts:
        raise ArtifactError(
            f"{name}: factors of shapes {list(a.shape)} and {list(b.shape)} are not of the rank that {CONFIG_FILE} "
            f"says (r or rank_pattern: {rank}), and PEFT cannot load them. Get the adapter again."
        )
    return Factors(a, b, config.scaling(name), transpose)


def _expert_factors(
    name: str, a: Tensor, b: Tensor, config: AdapterConfig, places: Places, keys: list[str]
) -> dict[str, Factors]:
    """Factors by expert: row e·r + k of A, column k·E + e of B."""
    count = len(keys)
    whole, rank = _factors(name, a, b, config, count), a.shape[0] // count
    projections = {p.key: p for site in places.sites.values() for p in site.projections if p.key in keys}
    by_expert: dict[str, Factors] = {}
    for key, projection in projections.items():
        index = projection.expert or 0
        flips = projection.transposed and getattr(projection.module, "is_transposed", False)
        stored_otherwise = places.by_key[key][1].transposed != projection.transposed
        own = replace(whole, a=a[index * rank : (index + 1) * rank], b=b[:, index::count])
        by_expert[key] = replace(own, transpose=flips != stored_otherwise)
    return by_expert


def _view_of(tensor: Tensor) -> TensorView:
    shape = tuple(tensor.shape)
    rows = tensor.contiguous().reshape(-1, shape[-1] if shape else 1)
    dtype = tensor.dtype if tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64) else None
    return TensorView(shape, _DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), dtype, lambda a, b: rows[a:b])


def _misfit(name: str, base: TensorView, shape: list[int]) -> MismatchError:
    return MismatchError(
        f"{name} has shape {list(base.shape)} and dtype {base.dtype_name}, and the adapter changes it by a tensor of "
        f"shape {shape}: it was made for another model, or the weight is quantised."
    )
