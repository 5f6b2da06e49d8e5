"""A site: the projections through which one block of a layer writes to the residual stream."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from steer2edit.core import Component, Experts, Site
from steer2edit.errors import ModelError
from steer2edit.models.offload import in_memory, offload_hooks

PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of weights that are stored as they are."""
_ROWS = 1024
"""Of the identity, that a quantised module is given at once."""


def is_linear(module: nn.Module) -> bool:
    """Whether a module computes `y = W x + b`, also with a W that is packed."""
    return isinstance(module, nn.Linear | Conv1D) or {"in_features", "out_features"} <= vars(module).keys()


def is_quantised(module: nn.Module) -> bool:
    """Whether a linear module's weight is not stored as plain numbers."""
    weight = getattr(module, "weight", None)
    return not (type(weight) in (Tensor, nn.Parameter) and weight is not None and weight.dtype in PLAIN)


def is_mixture(module: nn.Module) -> bool:
    """Whether a module holds the fused down-projections of experts."""
    down = dict(module.named_parameters(recurse=False)).get("down_proj")
    return down is not None and down.ndim == 3


@dataclass(frozen=True)
class Projection:
    """One output projection `y = W x + b`, `W ∈ R^{d×m}`: a dense site's only one, or one expert of a mixture."""

    name: str  # full name of the module, e.g. `model.layers.0.self_attn.o_proj`; of fused experts, `….mlp.experts`.
    module: nn.Module  # the `nn.Linear`, transformers' `Conv1D`, or the module of fused experts
    columns: slice  # which entries of the site's row a (and of its mean input μ) are this matrix's
    transposed: bool  # whether the weight is stored as [m, d]
    parameter: str = "weight"  # name of the weight in the module
    expert: int | None = None  # index on the parameter's first axis, where experts are fused
    # the dtype that the module computes in, where its weight is not stored as plain numbers
    quantised: torch.dtype | None = None

    @property
    def key(self) -> str:
        """Unique name: the module's, or `….experts.down_proj[5]` for a fused expert."""
        return self.name if self.expert is None else f"{self.parameter_name}[{self.expert}]"

    @property
    def parameter_name(self) -> str:
        """Name of the stored tensor in the model's state dict."""
        return f"{self.name}.{self.parameter}"

    @property
    def weight(self) -> Float[Tensor, "d m"]:
        """W as [d, m]: a view of the parameter, so that writing to it edits the model; a copy, where it is quantised.

        A ModelError where it is on no device, or its quantised format cannot be read here.
        """
        if self._is_elsewhere:
            with in_memory([self.module]):
                return self.weight.clone()
        if self.quantised is not None:
            return self._dequantised(self.quantised)
        stored = self._stored
        if not stored.is_floating_point() or stored.itemsize < 2 or stored.is_meta:
            raise ModelError(
                f"{self.key}: the weight is not available as plain floating point (dtype {stored.dtype}, device "
                f"{stored.device}). Load the model unquantised, and in memory."
            )
        own = stored.detach() if self.expert is None else stored.detach()[self.expert]
        return own.T if self.transposed else own

    @property
    def bias(self) -> Float[Tensor, " d"] | None:
        """b [d] of a module's own projection, or `None`; that of fused experts is not needed anywhere."""
        bias: Tensor | None = getattr(self.module, "bias", None)
        return None if bias is None or self.expert is not None else bias.detach()

    @property
    def shape(self) -> tuple[int, int]:
        """(d, m)."""
        if self.quantised is not None:
            return vars(self.module)["out_features"], vars(self.module)["in_features"]
        rows, columns = self._stored.shape[-2:]
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def dtype(self) -> torch.dtype:
        """The weight's dtype; of a quantised one, that it is computed with."""
        return self.quantised or self._stored.dtype

    @property
    def device(self) -> torch.device:
        """Where the weight is, or is read to."""
        if hooks := offload_hooks(self.module):
            return torch.device(hooks[0][0].execution_device)
        if self.quantised is None:
            return self._stored.device
        return next(chain(self.module.parameters(), self.module.buffers())).device

    def require_plain(self, doing: str) -> None:
        """Refuse to write to a weight that is quantised, or on the disk, with a ModelError."""
        if self._is_elsewhere:
            raise ModelError(
                f"{self.key} is on the disk (--device disk), and {doing} would be lost. Write the edited checkpoint "
                "(steer2edit apply), or use the edit at run time."
            )
        if self.quantised is not None:
            raise ModelError(
                f"{self.key} is quantised ({type(self.module).__name__}), and {doing} would round the edit away. Use "
                "the edit at run time or as an adapter, which stay beside the quantised weights."
            )

    @torch.no_grad()
    def _dequantised(self, dtype: torch.dtype) -> Float[Tensor, "d m"]:
        """W as the module itself applies it: what it makes of the rows of the identity, without its bias."""
        _, m = self.shape
        bias = getattr(self.module, "bias", None)
        parts = []
        try:
            if bias is not None:
                self.module.register_parameter("bias", None)
            for first in range(0, m, _ROWS):
                rows = torch.zeros(min(_ROWS, m - first), m, dtype=dtype, device=self.device)
                rows.diagonal(first).fill_(1)
                parts.append(self.module.forward(rows))
        except Exception as error:  # kernels raise what they like
            raise ModelError(
                f"{self.key} is quantised in a format that cannot be read here ({type(self.module).__name__}: "
                f"{' '.join(str(error).split())[:200]}). Use the unquantised checkpoint."
            ) from error
        finally:
            if bias is not None:
                self.module.bias = bias
        return torch.cat(parts).T

    @property
    def _is_elsewhere(self) -> bool:
        return any(module is self.module for _, module in offload_hooks(self.module))

    @property
    def _stored(self) -> Tensor:
        stored = getattr(self.module, self.parameter)
        assert isinstance(stored, Tensor)
        return stored


@dataclass(frozen=True)
class ExpertBlock:
    """What a mixture of experts needs besides its matrices."""

    sizes: Experts  # how the site's columns divide into experts
    module: nn.Module  # of the routed experts, whose parameters are fused
    # the modules whose outputs add up to what the block writes; the first takes what is added to it
    outputs: tuple[nn.Module, ...]
    # whether every expert is given every token, its input multiplied by its routing weight (Llama 4), instead of its
    # output
    scaled_inputs: bool = False


@dataclass(frozen=True)
class SiteModule:
    """The output projection of one site; a mixture of experts has several, side by side."""

    site: Site  # which site
    # full name of the projection's module, e.g. `model.layers.0.self_attn.o_proj`; of the block, for experts.
    name: str
    projections: tuple[Projection, ...]  # its matrices, in the order of the site's columns
    component_width: int  # input columns per component
    experts: ExpertBlock | None = None  # `None` for a dense site

    def in_memory(self) -> AbstractContextManager[None]:
        """Hold weights that are on the disk in memory for a while, so that they are read once."""
        return in_memory(projection.module for projection in self.projections)

    @property
    def shape(self) -> tuple[int, int]:
        """(d, m), with m over all matrices."""
        return self.projections[0].shape[0], self.projections[-1].columns.stop

    @property
    def component_count(self) -> int:
        """n = m / component_width."""
        return self.shape[1] // self.component_width

    @property
    def sizes(self) -> Experts | None:
        """How the components divide into experts; `None` for a dense site."""
        return self.experts.sizes if self.experts else None

    def component(self, index: int) -> Component:
        """The head or neuron with this index."""
        return Component(self.site, index, self.sizes)

    @property
    def routed(self) -> tuple[Projection, ...]:
        """The matrices of routed experts."""
        return tuple(p for p in self.projections if p.expert is not None)

    @property
    def plain(self) -> tuple[Projection, ...]:
        """The matrices that are modules of their own, which see every token."""
        return tuple(p for p in self.projections if p.expert is None)

    @property
    def only(self) -> Projection:
        """The matrix of a dense site."""
        (projection,) = self.projections
        return projection

    @property
    def module(self) -> nn.Module:
        """The module of a dense site."""
        return self.only.module

    @property
    def weight(self) -> Float[Tensor, "d m"]:
        """W [d, m] of a dense site: a view of the parameter, so that writing to it edits the model."""
        return self.only.weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.projections[0].device
