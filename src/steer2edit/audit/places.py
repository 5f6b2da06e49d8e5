"""Which tensors of a checkpoint's files are which parameters of the model, and which of them are its projections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn

from steer2edit.audit.change import Place
from steer2edit.core import Site
from steer2edit.models import LanguageModel, SiteModule, stored_matrices, stored_parameters


@dataclass(frozen=True)
class Places:
    """A model's parameters by where they are stored.

    Args:
        by_tensor: the projections that a tensor holds: one, or several experts.
        sites: the model's sites.
        network: its structure, without weights; `None` where the architecture is not known.
        tensors: tensors of the files by the parameter that they are.
    """

    by_tensor: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)
    sites: Mapping[Site, SiteModule] = field(default_factory=dict)
    network: nn.Module | None = None
    tensors: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def by_key(self) -> dict[str, tuple[str, Place]]:
        """(tensor, place) by the projection's key."""
        return {place.key: (tensor, place) for tensor, places in self.by_tensor.items() for place in places}

    @property
    def embedding(self) -> str | None:
        """The input embedding's tensor."""
        return self._weight("get_input_embeddings")

    @property
    def head(self) -> str | None:
        """The tensor of the output head, whether it is in the files or tied to the embedding."""
        return self._weight("get_output_embeddings")

    @property
    def ties_head(self) -> bool:
        """Whether the output head is the input embedding."""
        if self.network is None or self.head is None or self.embedding is None:
            return False
        return self.network.get_output_embeddings().weight is self.network.get_input_embeddings().weight  # type: ignore[operator]

    def parameters(self, module: str) -> list[str]:
        """Names of a module's own parameters, without those of modules within it."""
        found = self._module(module)
        return [] if found is None else [f"{module}.{name}" for name, _ in found.named_parameters(recurse=False)]

    def is_flipped(self, module: str) -> bool | None:
        """Whether a module's weight is [in, out]; `None` where its structure is not known."""
        found = self._module(module)
        return None if found is None else type(found).__name__ == "Conv1D"

    def _module(self, name: str) -> nn.Module | None:
        try:
            return None if self.network is None else self.network.get_submodule(name)
        except AttributeError:
            return None

    def _weight(self, getter: str) -> str | None:
        wanted = getattr(self.network, getter, lambda: None)()
        if self.network is None or wanted is None:
            return None
        name = next(f"{name}.weight" for name, module in self.network.named_modules() if module is wanted)
        return self.tensors.get(name, name)


def find_places(model: LanguageModel, tensors: Mapping[str, Sequence[int]]) -> Places:
    """Where each parameter of a model is in a checkpoint's tensors, which are given by name with their shapes.

    Raises:
        ModelError: a projection is in no tensor.
    """
    stored = stored_matrices(model, tensors)
    found: dict[str, list[Place]] = {}
    for site, module in model.sites.items():
        for projection in module.projections:
            where = stored[projection.key]
            place = Place(
                site=site,
                key=projection.key,
                columns=projection.columns,
                component_width=module.component_width,
                site_width=module.shape[1],
                transposed=where.transposed,
                expert=where.expert,
                sizes=module.sizes,
            )
            found.setdefault(where.tensor, []).append(place)
    by_tensor = {tensor: tuple(places) for tensor, places in found.items()}
    return Places(by_tensor, model.sites, model.network, stored_parameters(model, tensors))
