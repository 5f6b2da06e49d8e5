"""Which tensors of a checkpoint's files are which parameters of the model, and which of them are its projections."""

from collections.abc import Mapping, Sequence
from functools import cached_property

from torch import nn

from steer2edit.core import Site
from steer2edit.models import LanguageModel, StoredMatrix, stored_matrices, stored_parameters
from steer2edit.models.stored import renamed


class Places:
    """A model's parameters by where they are stored: nothing where the architecture is not known.

    Args:
        model: its structure, without weights.
        tensors: the checkpoint's tensors by name, with their shapes.

    Raises:
        ModelError: a projection is in no tensor.
    """

    def __init__(self, model: LanguageModel | None = None, tensors: Mapping[str, Sequence[int]] | None = None) -> None:
        self.network = None if model is None else model.network
        self.by_key: dict[str, StoredMatrix] = {}
        """By the projection's key."""
        self.tensors: dict[str, str] = {}
        """Tensors of the files by the parameter that they are."""
        if model is not None and tensors is not None:
            self.by_key = stored_matrices(model, tensors)
            self.tensors = stored_parameters(model, tensors)

    @cached_property
    def by_tensor(self) -> dict[str, list[StoredMatrix]]:
        """The projections that a tensor holds: one, or several experts."""
        found: dict[str, list[StoredMatrix]] = {}
        for place in self.by_key.values():
            found.setdefault(place.tensor, []).append(place)
        return found

    @cached_property
    def by_site(self) -> dict[Site, list[StoredMatrix]]:
        """The projections of a site."""
        found: dict[Site, list[StoredMatrix]] = {}
        for place in self.by_key.values():
            found.setdefault(place.site, []).append(place)
        return found

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
        found = self.module(module)
        return [] if found is None else [f"{module}.{name}" for name, _ in found.named_parameters(recurse=False)]

    def named(self, module: str) -> str:
        """A module's name in the model, where a file has that of an old checkpoint."""
        if self.network is None or self.module(module) is not None:
            return module
        new = renamed(self.network, f"{module}.lora_A").removesuffix(".lora_A")
        return module if self.module(new) is None else new

    def module(self, name: str) -> nn.Module | None:
        """The module of this name, if the structure is known and has one."""
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
