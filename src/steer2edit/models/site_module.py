"""A site's projection module, whichever way it stores its weight."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steer2edit.core import Site
from steer2edit.errors import ModelError


@dataclass(frozen=True)
class SiteModule:
    """The output projection of one site.

    Args:
        site: which site.
        name: full module name in the model, e.g. `model.layers.0.self_attn.o_proj`.
        module: the `nn.Linear`, or transformers' `Conv1D`, whose weight is stored transposed.
        component_width: input columns per component.
        transposed: whether the weight is stored as [m, d].
    """

    site: Site
    name: str
    module: nn.Module
    component_width: int
    transposed: bool

    @property
    def weight(self) -> Float[Tensor, "d m"]:
        """W as [d, m]: a view of the parameter, so that writing to it edits the model.

        Raises:
            ModelError: the weight is quantised, or has been left on no device.
        """
        stored = self._stored
        if not stored.is_floating_point() or stored.is_meta:
            raise ModelError(
                f"{self.site} ({self.name}): the weight is not available as plain floating point "
                f"(dtype {stored.dtype}, device {stored.device}). Load the model "
                "unquantised, and with enough memory that no layer is left on the meta device."
            )
        return stored.detach().T if self.transposed else stored.detach()

    @property
    def bias(self) -> Float[Tensor, " d"] | None:
        """b [d] of the projection `y = W x + b`, or `None`."""
        bias: Tensor | None = getattr(self.module, "bias", None)
        return None if bias is None else bias.detach()

    @property
    def _stored(self) -> Tensor:
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def dtype(self) -> torch.dtype:
        """The weight's dtype."""
        return self._stored.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """(d, m)."""
        rows, columns = self._stored.shape
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return self._stored.device

    @property
    def component_count(self) -> int:
        """n = m / component_width."""
        return self.shape[1] // self.component_width
