"""Which tensors of a checkpoint's files are which parameters of the model, and which of them are its projections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

from torch import nn

from steer2edit.core import Site
from steer2edit.models import LanguageModel, StoredMatrix, stored_matrices, stored_parameters
from steer2edit.models.stored import renamed


@dataclass(frozen=True)
class Places:
    """A model's parameters by where they are stored: nothing where the architecture is not known."""

    model: LanguageModel | None = None  # the structure, without weights
    by_key: Mapping[str, StoredMatrix] = field(default_factory=dict)  # by the projection's key
    tensors: Mapping[str, str] = field(default_factory=dict)  # tensors of the files by the parameter that they are

    @classmethod
    def of(cls, model: LanguageModel, tensors: Mapping[str, Sequence[int]]) -> "Places":
        """Of the shapes of a checkpoint's tensors by name; a ModelError where a projection is in none."""
        return cls(model, stored_matrices(model, tensors), stored_parameters(model, tensors))

    @cached_property
    def by_tensor(self) -> dict[str, list[StoredMatrix]]:
        """The projections that a tensor holds: one, or several experts."""
        places = sorted(self.by_key.values(), key=lambda place: place.tensor)
        return {tensor: list(own) for tensor, own in groupby(places, key=lambda place: place.tensor)}

    @cached_property
    def by_site(self) -> dict[Site, list[StoredMatrix]]:
        """The projections of a site."""
        places = sorted(self.by_key.values(), key=lambda place: place.site)
        return {site: list(own) for site, own in groupby(places, key=lambda place: place.site)}

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
        if self.model is None or self.head is None or self.embedding is None:
            return False
        return self.model.network.get_output_embeddings().weight is self.model.network.get_input_embeddings().weight  # type: ignore[operator]

    def named(self, module: str) -> str:
        """A module's name in the model, where a file has that of an old checkpoint."""
        if self.model is None or self.module(module) is not None:
            return module
        new = renamed(self.model.network, f"{module}.lora_A").removesuffix(".lora_A")
        return module if self.module(new) is None else new

    def module(self, name: str) -> nn.Module | None:
        """The module of this name, if the structure is known and has one."""
        try:
            return None if self.model is None else self.model.network.get_submodule(name)
        except AttributeError:
            return None

    def _weight(self, getter: str) -> str | None:
        wanted = None if self.model is None else getattr(self.model.network, getter)()
        if self.model is None or wanted is None:
            return None
        name = next(f"{name}.weight" for name, module in self.model.network.named_modules() if module is wanted)
        return self.tensors.get(name, name)
