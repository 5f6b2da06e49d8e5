"""A PEFT LoRA adapter as the checkpoint that it amounts to: W + s B A, computed in float64 row by row when read.

Anybody's adapter, not only ours: any rank, alpha, rank-stabilised scaling, modules and (for fused experts) parameters;
with biases, trained token rows and whole modules beside the factors. Whatever of it has no place is listed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from steer2edit.artifacts.checkpoints.files import Change, StoredTensor
from steer2edit.artifacts.edits.lora import ADAPTER_FILE, CONFIG_FILE
from steer2edit.artifacts.tensors import read_pt, read_tensors
from steer2edit.audit.adapter_config import AdapterConfig, read_adapter_config
from steer2edit.audit.matrices import float_dtype
from steer2edit.audit.structure import Places
from steer2edit.errors import ArtifactError, MismatchError
from steer2edit.models import StoredMatrix

PICKLED_FILE = "adapter_model.bin"
_PREFIX = "base_model.model."
_KEY = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_[AB]\.weight|lora_B\.bias|lora_embedding_[AB]|token_adapter\.trainable_tokens_delta)"
)
_ADAPTER_NAME = re.compile(r"(\.(?:lora_\w+|trainable_tokens_delta))\.default(?=\.|$)|\.modules_to_save\.default(?=\.)")
_WRAPPER = ".base_layer"
_SIDES = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))


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
        MismatchError: its factors do not fit the base's weights.
    """
    head, embedding = places.head, base.get(places.embedding or "")
    views = dict(base)
    if places.ties_head and head is not None and embedding is not None:
        views.setdefault(head, embedding)
    reading = _Reading(read_adapter_config(directory), places, views)
    modules: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in _by_name(directory, reading.unread).items():
        match = _KEY.fullmatch(name)
        if match is None:
            others[name] = tensor
        else:
            modules.setdefault(places.named(match["module"]), {})[match["part"]] = tensor
    wrapped = {module.replace(_WRAPPER, "") for module, parts in modules.items() if len(parts) > 1}
    for name, tensor in others.items():  # first: factors add to what these put in the base's place
        reading.read_whole(name, tensor, wrapped)
    for module, parts in modules.items():
        reading.read_module(module, parts)
    if head in views and head not in base:
        if views[head] is embedding:
            del views[head]
        elif embedding is not None:
            base[head] = embedding
    return views, reading.unread


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
    places: Places
    views: dict[str, StoredTensor]
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
            self.views[target] = StoredTensor.of(tensor)

    def _leave(self, module: str, parts: set[str], why: str) -> None:
        self.unread.update({f"{_PREFIX}{module}.{part}": why for part in sorted(parts)})

    def _tensor(self, parameter: str) -> str | None:
        """The base's tensor of a parameter: by the model's own mapping, or by name where there is none."""
        known = self.places.tensors.get(parameter, parameter)
        if known in self.views:
            return known
        ends = [n for n in self.views if n.endswith(f".{parameter}") or parameter.endswith(f".{n}")]
        return ends[0] if len(ends) == 1 and self.places.model is None else None

    def _read_factors(self, module: str, parts: Mapping[str, Tensor], sides: tuple[str, str]) -> str | None:
        """Add one pair of factors; why not, where they have no place."""
        a, b = (parts[side] for side in sides)
        if a.ndim != 2 or b.ndim != 2:
            return "it is no matrix, and other factors are not read"
        plain, is_embedding = module.replace(_WRAPPER, ""), sides[0] != "lora_A.weight"
        structure = self.places.module(plain)
        own = () if structure is None else structure.named_parameters(recurse=False)
        wrapped = self.config.wrapped([f"{plain}.{name}" for name, _ in own])
        projections = ((place, place.projection) for place in self.places.by_key.values())
        experts = [place for place, own in projections if own.expert is not None and own.name == plain]
        if (wrapped or experts) and not is_embedding:
            return self._read_wrapped(module, wrapped, experts, a, b)
        place = self.places.by_key.get(plain)
        tensor = self._tensor(f"{plain}.weight") if place is None else place.tensor
        if tensor is None:
            return "the base has no such module"
        if _WRAPPER in module or not self.config.reaches(plain):
            return "PEFT ignores it, for the settings do not name this module"
        if place is not None:
            transposed = place.transposed
        elif structure is not None:
            transposed = type(structure).__name__ == "Conv1D"
        else:
            transposed = self.config.fan_in_fan_out
        b = self._scaled(plain, a, b)
        self._add(tensor, *((a.T, b.T) if is_embedding or transposed else (b, a)))
        return None

    def _read_wrapped(
        self, module: str, wrapped: list[str], experts: list[StoredMatrix], a: Tensor, b: Tensor
    ) -> str | None:
        """Factors of a parameter such as fused experts; each further one wraps those before it."""
        depth = module.count(_WRAPPER)
        if depth >= len(wrapped):
            return "PEFT ignores it, for target_parameters does not name this parameter"
        name = wrapped[len(wrapped) - 1 - depth]
        experts = [place for place in experts if place.projection.parameter_name == name]
        stored = self._tensor(name)
        if not experts and (stored is None or len(self.views[stored].shape) != 2):
            return "where this parameter is in the base's files is not known"
        count = len(experts) or 1
        b, rank = self._scaled(name, a, b, count), a.shape[0] // count
        if stored is not None and not experts:
            self._add(stored, b, a)
        for place in experts:
            projection, index = place.projection, place.projection.expert or 0
            own_a, own_b = a[index * rank : (index + 1) * rank], b[:, index::count]  # row e·r + k, column k·E + e
            flips = projection.transposed and getattr(projection.module, "is_transposed", False)
            transposed = flips != (place.transposed != projection.transposed)
            self._add(place.tensor, *((own_a.T, own_b.T) if transposed else (own_b, own_a)), place.expert)
        return None

    def _scaled(self, name: str, a: Float[Tensor, "r in"], b: Float[Tensor, "out r"], experts: int = 1) -> Tensor:
        """s B, of the rank that the settings say."""
        rank = self.config.rank(name)
        if a.shape[0] != b.shape[1] or a.shape[0] != rank * experts:
            raise ArtifactError(
                f"{name}: factors of shapes {list(a.shape)} and {list(b.shape)} are not of the rank that {CONFIG_FILE} "
                f"says (r or rank_pattern: {rank}), and PEFT cannot load them. Get the adapter again."
            )
        return self.config.scaling(name) * b.double()

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

    def _read_bias(self, module: str, bias: Tensor) -> None:
        """lora_bias: s times the bias of B adds to the module's own; a module without one gets one."""
        name = self._tensor(f"{module}.bias")
        if name is None:
            self.views[f"{module}.bias"] = StoredTensor.of(bias.float(), computed=True)
            return

        def add(values: Tensor, start: int, stop: int) -> None:
            values += bias

        self._change(name, add, self.views[name].shape == bias.shape, bias.shape)

    def _read_token_rows(self, module: str, rows: Tensor) -> str | None:
        """trainable_token_indices: some rows of an embedding are replaced."""
        name, chosen = self._tensor(f"{module}.weight"), self.config.token_rows(module)
        if name is None or not chosen:
            return "trainable_token_indices does not name this embedding" if name else "the base has no such module"

        def put(values: Tensor, start: int, stop: int) -> None:
            for index, row in zip(chosen, rows, strict=True):
                if start <= index < stop:
                    values[index - start] = row.double()

        base = self.views[name]
        fits = rows.shape == (len(chosen), base.columns) and max(chosen) < base.rows
        self._change(name, put, fits, rows.shape)
        return None

    def _change(self, name: str, change: Change, fits: bool, shape: Sequence[int]) -> None:
        base = self.views[name]
        if not fits or float_dtype(base) is None:
            raise MismatchError(
                f"{name} has shape {list(base.shape)} and dtype {base.dtype_name}, and the adapter changes it by a "
                f"tensor of shape {list(shape)}: it was made for another model, or the weight is quantised."
            )
        self.views[name] = base.changed(change)
