"""Where a model's parameters and projections are in the files of its checkpoint."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    ConversionOps,
    ErnieFuseAndSplitTextVisionExperts,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

from steer2edit.core import Component, Site
from steer2edit.errors import ModelError
from steer2edit.models.language_model import LanguageModel
from steer2edit.models.site_module import Projection, SiteModule

_MERGES = (MergeModulelist, ErnieFuseAndSplitTextVisionExperts)
"""What makes one parameter of experts; the latter two, of which the first half of the experts is the text's."""


@dataclass(frozen=True)
class StoredMatrix:
    """Where one projection's weight is in the files of a checkpoint."""

    tensor: str  # its name in the files
    expert: int | None  # index on the tensor's first axis, where the file has the experts fused
    transposed: bool  # whether it is stored as [m, d]
    module: SiteModule  # the site that the projection is of
    projection: Projection

    @property
    def site(self) -> Site:
        """Which site it is of."""
        return self.module.site

    def component(self, index: int) -> Component:
        """The head or neuron with this index within the matrix."""
        return self.module.component(self.projection.columns.start // self.module.component_width + index)


def stored_parameters(model: LanguageModel, tensors: Iterable[str]) -> dict[str, str]:
    """By parameter or buffer, the tensor of the files that is loaded into it as it is, renamed at most."""
    state = model.network.state_dict()
    return {target: name for name, target, converter in _renamed(model, tensors) if target in state and not converter}


def _renamed(model: LanguageModel, tensors: Iterable[str]) -> Iterator[tuple[str, str, WeightConverter | None]]:
    """(tensor, the parameter that loading makes of it, how it is converted), by transformers' own rules."""
    transforms = get_model_conversion_mapping(model.network)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    state = model.network.state_dict()
    for name in tensors:
        target, pattern = rename_source_key(name, renamings, converters, model.network.base_model_prefix, state)
        yield name, target, next((c for c in converters if pattern is not None and pattern in c.source_patterns), None)


def old_name(network: PreTrainedModel, name: str) -> str:
    """The name of old checkpoints that transformers' rules make this one of."""
    for rule in reversed(get_model_conversion_mapping(network, add_legacy=False)):
        if isinstance(rule, WeightRenaming):
            name, _ = rule.reverse_transform().rename_source_key(name)
    return name


def stored_matrices(model: LanguageModel, tensors: Mapping[str, Sequence[int] | None]) -> dict[str, StoredMatrix]:
    """Which tensor of a checkpoint's files holds each projection of a model, by `Projection.key`.

    Files may name tensors otherwise than the model does, and hold experts one by one that the model has fused;
    transformers' own rules for loading say which is which. A ModelError for a projection that is in no tensor, or that
    loading computes in a way that cannot be edited in the file.
    """
    state = model.network.state_dict()
    wanted: dict[str, list[tuple[SiteModule, Projection]]] = {}
    for module in model.sites.values():
        for projection in module.projections:
            wanted.setdefault(projection.parameter_name, []).append((module, projection))
    found: dict[str, StoredMatrix] = {}
    for name, target, converter in _renamed(model, tensors):
        if target not in wanted:
            continue
        fits = tuple(tensors[name] or ()) == tuple(state[target].shape)  # some families transpose only what does not
        operations = [] if converter is None else converter.operations
        applied = [o for o in operations if not (isinstance(o, Transpose) and o.check_dims and fits)]
        located = _located(name, wanted[target], applied)
        if twice := located.keys() & found.keys():
            key = min(twice)
            raise ModelError(
                f"the files of {model.name!r} hold {key} twice, as {found[key].tensor!r} and as {name!r}: which of "
                "them counts is not defined. Remove one."
            )
        found |= located
    missing = [key for projections in wanted.values() for _, p in projections if (key := p.key) not in found]
    if missing:
        raise ModelError(
            f"the files of {model.name!r} have no tensor for {len(missing)} of its projections ({missing[0]}, ...). "
            "Check that config.json and the weights belong together."
        )
    return found


def _located(
    name: str, projections: list[tuple[SiteModule, Projection]], operations: list[ConversionOps]
) -> dict[str, StoredMatrix]:
    others = [o for o in operations if not isinstance(o, (*_MERGES, Transpose))]
    if others:
        raise ModelError(
            f"{name}: loading this tensor applies {type(others[0]).__name__}, so the edit cannot be written into the "
            "file. Use the edit as an adapter instead (steer2edit export)."
        )
    flipped = any(isinstance(o, Transpose) for o in operations)
    merged = any(isinstance(o, _MERGES) for o in operations)
    number = int(re.findall(r"\.(\d+)\.", name)[-1]) if merged else None  # ...experts.17.down_proj.weight
    return {
        p.key: StoredMatrix(name, None if merged else p.expert, p.transposed != flipped, module, p)
        for module, p in projections
        if not merged or p.expert == number
    }
