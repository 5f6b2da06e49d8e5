"""Sites and components: where an edit can act.

A *site* is one output projection `W ∈ R^{d×m}` of a layer: the attention's (`attn`), a state-space mixer's (`ssm`,
such as Mamba's), or the MLP's (`mlp`; with a mixture of experts, of all its experts side by side).
A *component* is a contiguous group of that projection's input columns: a head (head_dim columns) or a neuron (one
column). Layers, heads, experts and neurons count from 0.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from steer2edit.errors import InvalidValueError

Block = Literal["attn", "ssm", "mlp"]
BLOCKS: tuple[Block, ...] = get_args(Block)
SHARES_RHO: dict[Block, Block] = {"ssm": "attn"}
"""Blocks that have no ρ of their own: the heads of a state-space mixer take the attention's."""
TUNED_BLOCKS: tuple[Block, ...] = tuple(block for block in BLOCKS if block not in SHARES_RHO)
"""Blocks that have a ρ of their own."""


@dataclass(frozen=True, order=True)
class Site:
    """One output projection: layer index and block. Printed `L12.attn`."""

    layer: int
    block: Block

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise InvalidValueError(f"layer must be >= 0, got {self.layer}: layers count from 0.")
        if self.block not in BLOCKS:
            raise InvalidValueError(f"block must be one of {', '.join(BLOCKS)}, got {self.block!r}.")

    def __str__(self) -> str:
        return f"L{self.layer}.{self.block}"

    @property
    def tuned_block(self) -> Block:
        """The block whose ρ it takes."""
        return SHARES_RHO.get(self.block, self.block)

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Read `L12.attn`, `L12.ssm` or `L12.mlp`.

        Raises:
            InvalidValueError: if the text has another form.
        """
        match = re.fullmatch(rf"L(\d+)\.({'|'.join(BLOCKS)})", text)
        if match is None:
            raise InvalidValueError(f"not a site: {text!r}. Write L<layer>.attn or L<layer>.mlp, e.g. L12.attn.")
        return cls(int(match[1]), match[2])  # type: ignore[arg-type]

    def component(self, index: int) -> "Component":
        """The head or neuron with this index; which expert's a neuron is, `Experts.neuron` says."""
        if self.block == "mlp":
            return Neuron(self.layer, index)
        return Head(self.layer, index) if self.block == "attn" else MixerHead(self.layer, index)


@dataclass(frozen=True, order=True)
class Head:
    """An attention head: head_dim contiguous input columns of the attention's output projection."""

    layer: int
    index: int

    def __str__(self) -> str:
        return f"L{self.layer}.H{self.index}"

    @property
    def site(self) -> Site:
        """The site whose columns this head is."""
        return Site(self.layer, "attn")


@dataclass(frozen=True, order=True)
class MixerHead:
    """A head of a state-space mixer: head_dim contiguous input columns of the mixer's output projection."""

    layer: int
    index: int

    def __str__(self) -> str:
        return f"L{self.layer}.S{self.index}"

    @property
    def site(self) -> Site:
        """The site whose columns this head is."""
        return Site(self.layer, "ssm")


@dataclass(frozen=True, order=True)
class Neuron:
    """An MLP neuron: one input column of the MLP's output projection."""

    layer: int
    index: int

    def __str__(self) -> str:
        return f"L{self.layer}.N{self.index}"

    @property
    def site(self) -> Site:
        """The site whose column this neuron is."""
        return Site(self.layer, "mlp")


@dataclass(frozen=True, order=True)
class ExpertNeuron:
    """A neuron of one expert: one input column of that expert's output projection. Printed `L12.E5.N801`.

    Args:
        layer: of the site.
        index: among all neurons of the site.
        expert: which routed expert; `None` for the shared one.
        neuron: within its expert.
    """

    layer: int
    index: int
    expert: int | None
    neuron: int

    def __str__(self) -> str:
        return f"L{self.layer}.{'shared' if self.expert is None else f'E{self.expert}'}.N{self.neuron}"

    @property
    def site(self) -> Site:
        """The site whose column this neuron is."""
        return Site(self.layer, "mlp")


Component = Head | MixerHead | Neuron | ExpertNeuron
