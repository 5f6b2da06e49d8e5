"""Sites and components: where an edit can act.

A *site* is one output projection `W ∈ R^{d×m}` of a layer: the attention's (`attn`), a state-space mixer's (`ssm`,
such as Mamba's), or the MLP's (`mlp`; with a mixture of experts, of all its experts side by side).
A *component* is a contiguous group of that projection's input columns: a head (head_dim columns) or a neuron (one
column). Layers, heads, experts and neurons count from 0.
"""

import re
from dataclasses import dataclass, field
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
        """Read `L12.attn`, `L12.ssm` or `L12.mlp`; an InvalidValueError for another form."""
        match = re.fullmatch(rf"L(\d+)\.({'|'.join(BLOCKS)})", text)
        if match is None:
            raise InvalidValueError(f"not a site: {text!r}. Write L<layer>.attn or L<layer>.mlp, e.g. L12.attn.")
        return cls(int(match[1]), match[2])  # type: ignore[arg-type]


@dataclass(frozen=True)
class Experts:
    """How the neurons of a mixture of experts are numbered within their site.

    An mlp site with experts is one wide projection: the down-projections of all routed experts side by side, and the
    shared expert's last. Its row a, its λ and its g follow that order.
    """

    routed: int  # number of routed experts
    width: int  # neurons of each of them
    shared: int = 0  # neurons of the shared expert, 0 if there is none

    def __post_init__(self) -> None:
        if self.routed < 1 or self.width < 1 or self.shared < 0:
            raise InvalidValueError(
                f"a mixture of experts has at least one expert with one neuron, got {self.routed} of {self.width}, "
                f"and {self.shared} shared neurons."
            )

    @property
    def neurons(self) -> int:
        """All of them."""
        return self.routed * self.width + self.shared

    @property
    def names(self) -> list[str]:
        """Names of the experts, in order: E0, E1, ..., shared."""
        return [f"E{e}" for e in range(self.routed)] + (["shared"] if self.shared else [])

    @property
    def widths(self) -> list[int]:
        """Neurons of each expert, in order."""
        return [self.width] * self.routed + ([self.shared] if self.shared else [])

    def neuron(self, index: int) -> str:
        """Name of the neuron at a place of the site's row: `E5.N801`."""
        expert = min(index // self.width, self.routed)
        return f"{f'E{expert}' if expert < self.routed else 'shared'}.N{index - expert * self.width}"


_LETTERS: dict[Block, str] = {"attn": "H", "ssm": "S", "mlp": "N"}


@dataclass(frozen=True, order=True)
class Component:
    """A head or a neuron: contiguous input columns of a site. Printed `L12.H5`, `L12.S5` of a mixer, `L12.N801`."""

    site: Site  # whose columns it is
    index: int  # within the site
    experts: Experts | None = field(default=None, compare=False)  # of a mixture, whose neurons print as `L12.E5.N801`

    def __str__(self) -> str:
        name = self.experts.neuron(self.index) if self.experts else f"{_LETTERS[self.site.block]}{self.index}"
        return f"L{self.site.layer}.{name}"
