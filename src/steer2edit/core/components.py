"""Sites and components: where an edit can act.

A *site* is one output projection `W ∈ R^{d×m}` of a layer: the attention's (`attn`) or the MLP's (`mlp`).
A *component* is a contiguous group of that projection's input columns: an attention head (head_dim columns)
or an MLP neuron (one column). Layers, heads and neurons count from 0.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from steer2edit.errors import InvalidValueError

Block = Literal["attn", "mlp"]
BLOCKS: tuple[Block, ...] = get_args(Block)


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

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Read `L12.attn` or `L12.mlp`.

        Raises:
            InvalidValueError: if the text has another form.
        """
        match = re.fullmatch(r"L(\d+)\.(attn|mlp)", text)
        if match is None:
            raise InvalidValueError(f"not a site: {text!r}. Write L<layer>.attn or L<layer>.mlp, e.g. L12.attn.")
        return cls(int(match[1]), match[2])  # type: ignore[arg-type]

    def component(self, index: int) -> "Component":
        """The head or neuron with this index."""
        return Head(self.layer, index) if self.block == "attn" else Neuron(self.layer, index)


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


Component = Head | Neuron
