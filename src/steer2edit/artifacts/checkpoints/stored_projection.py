"""One projection's weight in the files of a checkpoint, and what edits add to it.

Shapes: d, m = width of a projection's output and input; r, c = rows and columns as stored, [d, m] or [m, d].
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.artifacts.checkpoints.stored_tensor import StoredTensor, row_chunks
from steer2edit.core import Site, SiteEdit
from steer2edit.editing.weights import add_outer
from steer2edit.errors import ArtifactError
from steer2edit.models import sample_step


@dataclass(frozen=True)
class StoredProjection:
    """A projection's weight W [d, m], and where it is stored.

    Args:
        key: of the projection.
        tensor: that holds it.
        expert: index on the tensor's first axis, where experts are fused.
        transposed: whether it is stored as [m, d].
        shape: (d, m).

    Raises:
        ArtifactError: the tensor has another shape.
    """

    key: str
    tensor: StoredTensor
    expert: int | None
    transposed: bool
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        stored = self.tensor.shape
        own = stored if self.expert is None else stored[1:]
        if own != (self.shape[::-1] if self.transposed else self.shape) or (self.expert or 0) >= stored[0]:
            raise ArtifactError(
                f"{self.tensor.file.name}: {self.tensor.name} has shape {list(stored)}, which is not what config.json "
                f"says of {self.key}: {list(self.shape)}. The files do not belong together, or the weight is packed."
            )

    @property
    def rows(self) -> range:
        """The matrix's rows in its tensor."""
        count = self.tensor.shape[-2]
        return range((self.expert or 0) * count, ((self.expert or 0) + 1) * count)

    def chunks(self) -> Iterator[tuple[slice, Float[Tensor, "_ _"]]]:
        """Parts of W as stored, with which rows (transposed: columns) of it each holds."""
        for start, stop in row_chunks(len(self.rows), self.tensor.columns):
            yield slice(start, stop), self.tensor.read_rows(self.rows.start + start, self.rows.start + stop)

    def sampled_rows(self) -> Float[Tensor, "_ m"]:
        """Evenly spaced rows of W: only they are read, unless it is stored transposed."""
        step = sample_step(self.shape[0])
        if self.transposed:
            return torch.cat([part[:, ::step].T for _, part in self.chunks()], dim=1)
        return torch.cat([self.tensor.read_rows(row, row + 1) for row in self.rows[::step]])


@dataclass(frozen=True)
class Addition:
    """What is added to one projection: `strength · u aᵀ`.

    Args:
        site: that it belongs to.
        projection: the matrix.
        edit: of it.
        strength: factor.
    """

    site: Site
    projection: StoredProjection
    edit: SiteEdit
    strength: float

    def add_to(self, wide: Float[Tensor, "r c"], start: int, product: Tensor) -> None:
        """Add it to what of the matrix is among rows of its tensor, in place.

        Args:
            wide: rows of the tensor, float32 or float64.
            start: which is the first.
            product: float32 memory of at least the same shape.
        """
        own = self.projection.rows
        first, stop = max(start, own.start), min(start + len(wide), own.stop)
        if first >= stop:
            return
        part, rows = slice(first - own.start, stop - own.start), wide[first - start : stop - start]
        u, a = self.edit.output_direction, self.strength * self.edit.row
        if self.projection.transposed:
            u, a = a, u  # (u aᵀ)ᵀ: the products are the same numbers
        add_outer(rows, u[part], a, product[: len(rows)])
