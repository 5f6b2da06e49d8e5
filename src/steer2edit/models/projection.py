"""One matrix of a site, whichever way its module stores it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steer2edit.errors import ModelError


@dataclass(frozen=True)
class Projection:
    """One output projection `y = W x + b`, `W ∈ R^{d×m}`: a dense site's only one, or one expert of a mixture.

    Args:
        name: full name of the module, e.g. `model.layers.0.self_attn.o_proj`; of fused experts, `….mlp.experts`.
        module: the `nn.Linear`, transformers' `Conv1D`, or the module of fused experts.
        columns: which entries of the site's row a (and of its mean input μ) are this matrix's.
        transposed: whether the weight is stored as [m, d].
        parameter: name of the weight in the module.
        expert: index on the parameter's first axis, where experts are fused.
    """

    name: str
    module: nn.Module
    columns: slice
    transposed: bool
    parameter: str = "weight"
    expert: int | None = None

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
        """W as [d, m]: a view of the parameter, so that writing to it edits the model.

        Raises:
            ModelError: the weight is quantised, or has been left on no device.
        """
        stored = self._stored
        if not stored.is_floating_point() or stored.itemsize < 2 or stored.is_meta:
            raise ModelError(
                f"{self.key}: the weight is not available as plain floating point (dtype {stored.dtype}, device "
                f"{stored.device}). Load the model unquantised, and with enough memory that no layer is left on the "
                "meta device."
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
        rows, columns = self._stored.shape[-2:]
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def dtype(self) -> torch.dtype:
        """The weight's dtype."""
        return self._stored.dtype

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return self._stored.device

    @property
    def _stored(self) -> Tensor:
        stored = getattr(self.module, self.parameter)
        assert isinstance(stored, Tensor)
        return stored
