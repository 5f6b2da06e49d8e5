"""Block vectors: one direction per layer's output, as control vectors of other tools hold them.

A layer adds its attention's and its MLP's output to the residual stream; what it hands on is its *block output*. A
direction of block outputs is another quantity than the two steering vectors of the layer's sites, and is never turned
into them silently: `site_vectors` is told where to use it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from steer2edit.core.components import Block, Site
from steer2edit.core.vectors import ClassMeans, SiteMeans, SteeringVectors, checked_block_outputs
from steer2edit.errors import InvalidValueError, MismatchError

UseAt = Literal["attn", "mlp", "both"]
"""Which projections of a layer take its block direction as their steering vector."""

_BLOCKS: dict[UseAt, tuple[Block, ...]] = {"attn": ("attn",), "mlp": ("mlp",), "both": ("attn", "mlp")}


@dataclass(frozen=True)
class BlockVectors:
    """One direction per layer, of the layer's output."""

    layers: Mapping[int, ClassMeans]  # of the output, [d]; layers count from 0
    metadata: Mapping[str, Any] = field(default_factory=dict)  # JSON-able: where it comes from, the model's type, ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", checked_block_outputs(self.layers))

    @classmethod
    def from_mapping(cls, directions: Mapping[int, Tensor], **metadata: Any) -> "BlockVectors":
        """Directions that were made elsewhere: layer → v [d]."""
        layers = {layer: ClassMeans.of_direction(v, f"layer {layer}") for layer, v in directions.items()}
        return cls(layers, {"origin": "imported", **metadata})

    @classmethod
    def of(cls, vectors: SteeringVectors) -> "BlockVectors":
        """The block directions that were measured along with steering vectors; a MismatchError where they were not."""
        if vectors.block_outputs is None:
            raise MismatchError(
                "these vectors hold one direction per projection, and none per block output, which is another quantity"
                ": a block's output also carries everything that the layers before it wrote. Extract again with "
                "--block-outputs, which measures both in the same pass (block_outputs=True)."
            )
        return cls(vectors.block_outputs, vectors.metadata)

    def direction(self, layer: int) -> Float[Tensor, " d"]:
        """v = positive − negative of a layer's output; an InvalidValueError where there is none of that layer."""
        if layer not in self.layers:
            raise InvalidValueError(f"there is no direction of layer {layer}: there are {list(self.layers)}.")
        return self.layers[layer].difference


def site_vectors(blocks: BlockVectors, use_at: UseAt, model_sites: Collection[Site] | None = None) -> SteeringVectors:
    """Steering vectors that take each layer's block direction as v of the chosen projections of that layer.

    Where a layer adds its MLP's output to the residual stream as it is, without a norm or a factor, adding γv to that
    output is adding γv to the block's output: with `mlp`, steering does what the block direction was made for. `both`
    adds it twice per layer. Of `model_sites`, if they are known, those that the model lacks are left out, and a layer
    that has none is a MismatchError. The block outputs stay with the vectors, and the choice is in the metadata.
    """
    if use_at not in _BLOCKS:
        raise InvalidValueError(f"block directions are used at {', '.join(get_args(UseAt))}, got {use_at!r}.")
    sites: dict[Site, SiteMeans] = {}
    for layer, means in blocks.layers.items():
        chosen = [Site(layer, block) for block in _BLOCKS[use_at]]
        own = [site for site in chosen if model_sites is None or site in model_sites]
        if not own:
            raise MismatchError(
                f"the model has no {' or '.join(map(str, chosen))}: the block direction of layer {layer} cannot be "
                "used there. Choose another place, or vectors of this model."
            )
        sites |= {site: SiteMeans(means) for site in own}
    return SteeringVectors(sites, {**blocks.metadata, "block_outputs_used_at": use_at}, block_outputs=blocks.layers)
