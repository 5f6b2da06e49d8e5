"""The blocks of a layer: what the page calls them, how it draws them, and how much of each an edit touches."""

from collections.abc import Mapping
from dataclasses import dataclass

from steer2edit.core import BLOCKS, TUNED_BLOCKS, Block, Site, WeightEdit
from steer2edit.report import themes


@dataclass(frozen=True)
class BlockStyle:
    """One block in words and marks."""

    name: str  # as in "the attention block"
    unit: str  # a component
    title: str  # of a figure or a table
    example: str  # what a component's name means
    colour: str  # of its marks
    symbol: str  # of its marks
    offset: float  # by how much its marks stand beside the layer, so that intervals do not cover each other


STYLES: Mapping[Block, BlockStyle] = {
    "attn": BlockStyle(
        "attention", "head", "Attention heads", "L12.H5 is attention head 5 of layer 12", themes.ATTN, "circle", -0.12
    ),
    "ssm": BlockStyle(
        "state-space mixer", "head", "State-space mixer heads",
        "L12.S2 is head 2 of the state-space mixer of layer 12", themes.SSM, "diamond", 0.0,
    ),
    "mlp": BlockStyle(
        "MLP", "neuron", "MLP neurons", "L12.N801 is MLP neuron 801 of layer 12", themes.MLP, "square", 0.12
    ),
}  # fmt: skip


@dataclass(frozen=True)
class BlockExtent:
    """How much of one block an edit touches; without a site the block is off."""

    style: BlockStyle
    sites: tuple[Site, ...]
    edited: int
    total: int
    strengthened: int


def block_extent(edit: WeightEdit, block: Block) -> BlockExtent:
    """The edited sites of one block and counts of its edited components."""
    sites = tuple(site for site in edit.sites if site.block == block)
    magnitudes = [edit.sites[site].magnitude for site in sites]
    return BlockExtent(
        STYLES[block],
        sites,
        edited=sum(int(magnitude.count_nonzero()) for magnitude in magnitudes),
        total=sum(magnitude.numel() for magnitude in magnitudes),
        strengthened=sum(int((magnitude > 0).sum()) for magnitude in magnitudes),
    )


def shown_blocks(edit: WeightEdit) -> dict[Block, BlockExtent]:
    """The blocks to speak of: those every model has, and of the others those the edit has."""
    found = {block: block_extent(edit, block) for block in BLOCKS}
    return {block: extent for block, extent in found.items() if block in TUNED_BLOCKS or extent.sites}
