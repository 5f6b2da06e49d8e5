"""The weight edit: per site, one exactly rank-1 update of the output projection.

    ΔW = u aᵀ,   a = concat_i(λ_i k_i)

Shapes: d = width of a site's output, m = width of its input, n = components of the site, w = m / n their width.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steer2edit.core.components import BLOCKS, TUNED_BLOCKS, Block, Component, Experts, Site
from steer2edit.errors import InvalidValueError

Edited = TypeVar("Edited", bound="WeightEdit")


@dataclass(frozen=True, eq=False)
class SiteEdit:
    """One site's edit `ΔW = u aᵀ` and the quantities it was made from."""

    output_direction: Float[Tensor, " d"]  # u, of unit length
    row: Float[Tensor, " m"]  # a = concat_i(λ_i k_i)
    magnitude: Float[Tensor, " n"]  # λ, signed; 0 where a component is not edited
    importance: Float[Tensor, " n"]  # g
    experts: Experts | None = None  # how the components divide into experts, where the site is a mixture of experts

    def __post_init__(self) -> None:
        n, m = self.magnitude.numel(), self.row.numel()
        if self.importance.shape != self.magnitude.shape or n == 0 or m % n:
            raise InvalidValueError(
                f"a row of {m} columns cannot hold {n} components with {self.importance.numel()} importances: "
                "components are equal, contiguous groups of columns."
            )
        if self.experts is not None and not self.experts.neurons == n == m:
            raise InvalidValueError(
                f"{self.experts} are {self.experts.neurons} neurons, but the edit has {n} of {m} columns."
            )
        for name in ("output_direction", "row", "magnitude", "importance"):
            if not bool(torch.isfinite(getattr(self, name)).all()):
                raise InvalidValueError(f"the edit's {name} has non-finite entries: it cannot be applied.")

    @property
    def component_width(self) -> int:
        """w = m / n: head_dim for heads, 1 for neurons."""
        return self.row.numel() // self.magnitude.numel()

    def part(self, columns: slice) -> "SiteEdit":
        """The edit of one of the matrices that a wide site consists of: these columns of it, with the same u."""
        width = self.component_width
        own = slice(columns.start // width, columns.stop // width)
        return SiteEdit(self.output_direction, self.row[columns], self.magnitude[own], self.importance[own])

    def only(self, kept: Bool[Tensor, " n"]) -> "SiteEdit":
        """The edit of these components alone, each with its own columns of a."""
        columns = kept.repeat_interleave(self.component_width)
        row, magnitude = torch.zeros_like(self.row), torch.zeros_like(self.magnitude)
        row[columns], magnitude[kept] = self.row[columns], self.magnitude[kept]
        return replace(self, row=row, magnitude=magnitude)

    def dense(self) -> Float[Tensor, "d m"]:
        """ΔW = u aᵀ, materialised."""
        return torch.outer(self.output_direction, self.row)

    def scaled(self, strength: float) -> "SiteEdit":
        """The edit `strength · ΔW`; u and g stay."""
        return replace(self, row=self.row * strength, magnitude=self.magnitude * strength)


@dataclass(frozen=True, eq=False)
class WeightEdit:
    """A model's edit: one `SiteEdit` per edited site, at least one."""

    sites: Mapping[Site, SiteEdit]  # a site that is not in the mapping is left as it is
    metadata: Mapping[str, Any] = field(default_factory=dict)  # JSON-able: method, hyper-parameters, base model, ...

    def __post_init__(self) -> None:
        if not self.sites:
            raise InvalidValueError("a weight edit needs at least one site, got none.")
        object.__setattr__(self, "sites", MappingProxyType(dict(sorted(self.sites.items()))))

    @property
    def is_empty(self) -> bool:
        """Whether every ΔW is zero."""
        return not any(bool(edit.row.any()) for edit in self.sites.values())

    @property
    def shapes(self) -> dict[Site, tuple[int, int]]:
        """(d, m) by site."""
        return {site: (edit.output_direction.numel(), edit.row.numel()) for site, edit in self.sites.items()}

    def digest(self) -> str:
        """Identity of what the edit adds: SHA-256 over the name, u and a of every site, in float32."""
        digest = hashlib.sha256()
        for site, edit in self.sites.items():
            digest.update(f"{site} {edit.output_direction.numel()} {edit.row.numel()}\n".encode())
            for values in (edit.output_direction, edit.row):
                digest.update(values.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def scaled(self, strength: float) -> "WeightEdit":
        """The edit with every ΔW multiplied by `strength`."""
        return replace(self, sites={s: e.scaled(strength) for s, e in self.sites.items()})

    def without(self: Edited, *names: str) -> Edited:
        """The edit with some of it switched off; what was measured of the whole is no longer said.

        Args:
            names: of components, `L12.H5`; of sites, `L12.mlp`; of layers, `L12`.

        Raises:
            InvalidValueError: the edit has nothing of that name.
        """
        if not names:
            return self
        wanted, known, sites = set(names), set[str](), {}
        for site, own in self.sites.items():
            known |= (whole := wanted & {str(site), f"L{site.layer}"})
            kept = torch.full_like(own.magnitude, not whole, dtype=torch.bool)
            if any(name.startswith(f"L{site.layer}.") for name in wanted):
                changed = own.row.view(own.magnitude.numel(), -1).any(dim=1) | (own.magnitude != 0)
                named = {str(Component(site, i, own.experts)): i for i in changed.nonzero().flatten().tolist()}
                known |= (parts := wanted & named.keys())
                kept[[named[name] for name in parts]] = False
            sites[site] = own.only(kept)
        if unknown := sorted(wanted - known):
            raise InvalidValueError(
                f"{', '.join(unknown)}: the edit has nothing of that name. It can be without components such as "
                f"{', '.join(str(component) for component, _, _ in self.top_components(2))}, sites or layers."
            )
        metadata = {key: value for key, value in self.metadata.items() if key != "drift"}
        metadata["without"] = sorted(wanted.union(metadata.get("without", ())))
        return replace(self, sites=sites, metadata=metadata)

    def components(self) -> Iterator[tuple[Component, float, float]]:
        """(component, λ, g) of every component with λ ≠ 0, by site and index."""
        for site, edit in self.sites.items():
            for index in edit.magnitude.nonzero().flatten().tolist():
                yield Component(site, index, edit.experts), edit.magnitude[index].item(), edit.importance[index].item()

    def top_components(self, count: int) -> list[tuple[Component, float, float]]:
        """The `count` components of largest |λ|, largest first."""
        strongest = []
        for site, edit in self.sites.items():
            indices = edit.magnitude.abs().argsort(descending=True, stable=True)[:count].tolist()
            strongest += [
                (Component(site, i, edit.experts), edit.magnitude[i].item(), edit.importance[i].item()) for i in indices
            ]
        strongest = [entry for entry in strongest if entry[1]]
        return sorted(strongest, key=lambda entry: (-abs(entry[1]), entry[0].site, entry[0].index))[:count]


class BlockExtent(NamedTuple):
    """How much of one block an edit touches: its sites, without which it is off, and counts of components."""

    sites: tuple[Site, ...]
    edited: int
    total: int
    strengthened: int


def shown_blocks(edit: WeightEdit) -> dict[Block, BlockExtent]:
    """The blocks to speak of: those every model has, and of the others those the edit has."""
    shown: dict[Block, BlockExtent] = {}
    for block in BLOCKS:
        sites = tuple(site for site in edit.sites if site.block == block)
        if sites or block in TUNED_BLOCKS:
            found = torch.cat([torch.empty(0), *(edit.sites[site].magnitude for site in sites)])
            shown[block] = BlockExtent(sites, int(found.count_nonzero()), found.numel(), int((found > 0).sum()))
    return shown


@dataclass(frozen=True)
class ExpertEdit:
    """What a weight edit does to one expert of a mixture, summed over its neurons. Printed `L12.E5`."""

    site: Site  # the mixture
    name: str  # of the expert: E5, or shared
    neurons: int  # how many it has
    strengthened: int  # how many of them have λ > 0
    weakened: int  # how many have λ < 0
    raised: float  # the sum of the positive λ, ≥ 0
    lowered: float  # the sum of the negative λ, ≤ 0

    def __str__(self) -> str:
        return f"L{self.site.layer}.{self.name}"

    @property
    def edited(self) -> int:
        """How many neurons have λ ≠ 0."""
        return self.strengthened + self.weakened

    @property
    def mass(self) -> float:
        """Σ|λ|."""
        return self.raised - self.lowered

    @property
    def signed_mass(self) -> float:
        """Σ|λ| with the sign of Σλ: opposite neurons do not cancel, and the sign says which of them outweigh."""
        return self.mass if self.raised + self.lowered >= 0 else -self.mass


def expert_edits(edit: WeightEdit) -> list[ExpertEdit]:
    """Every expert of every mixture that the edit has, by layer and in the order of the site's columns."""
    found = []
    mixtures = [(site, own.magnitude, own.experts) for site, own in edit.sites.items() if own.experts]
    for site, magnitudes, sizes in mixtures:
        for name, magnitude in zip(sizes.names, torch.split(magnitudes, sizes.widths), strict=True):
            up, down = magnitude.clamp(min=0).double(), magnitude.clamp(max=0).double()
            counts = magnitude.numel(), int(up.count_nonzero()), int(down.count_nonzero())
            found.append(ExpertEdit(site, name, *counts, up.sum().item(), down.sum().item()))
    return found


def top_experts(edit: WeightEdit, count: int | None = None) -> list[ExpertEdit]:
    """The experts of largest Σ|λ|, largest first, all unless a count is given; only those with an edited neuron."""
    edited = [expert for expert in expert_edits(edit) if expert.edited]
    return sorted(edited, key=lambda expert: -expert.mass)[:count]
