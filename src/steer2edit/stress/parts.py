"""Edits derived from an edit: some of its components, random others of the same size, and its magnitudes shuffled.

Shapes: m = width of a site's input, n = components of the site, w = m / n their width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steer2edit.core import Site, SiteEdit, WeightEdit
from steer2edit.errors import InvalidValueError
from steer2edit.method.rule import unit_rows
from steer2edit.models import LanguageModel

Kind = Literal["edit", "top", "rest", "random", "shuffled"]
Chosen = Mapping[Site, Bool[Tensor, " n"]]
"""Which components of every site."""
Directions = Mapping[Site, Float[Tensor, "n w"]]
"""k_i of every component by site; 0 where a component cannot write along u."""


@dataclass(frozen=True)
class Part:
    """An edit derived from the edit."""

    kind: Kind  # which derivation
    label: str  # the arm's
    edit: WeightEdit  # what is applied
    top: int | None = None  # the n it belongs to; `None` for the whole edit and its shuffles
    unedited: bool = True  # for a random draw, whether it is of components that the edit leaves alone


def parts_of(edit: WeightEdit, counts: Sequence[int], directions: Directions, draws: int, seed: int) -> list[Part]:
    """Shuffles of the edit, half as many as `draws`, rounded up; for every n the top, all but it, and random draws."""
    generator, parts = torch.Generator().manual_seed(seed), []
    for draw in range(1, (draws + 1) // 2 + 1):
        parts.append(Part("shuffled", f"shuffled {draw}", shuffled(edit, directions, generator)))
    for count in counts:
        top = strongest(edit, count)
        parts.append(Part("top", f"top {count}", only(edit, top), count))
        parts.append(Part("rest", f"all but top {count}", only(edit, {s: ~own for s, own in top.items()}), count))
        for draw in range(1, draws + 1):
            drawn, unedited = random_components(edit, top, directions, generator)
            parts.append(Part("random", f"random {count}, draw {draw}", drawn, count, unedited))
    return parts


def edited_count(edit: WeightEdit) -> int:
    """How many components have λ ≠ 0."""
    return sum(int(site.magnitude.count_nonzero()) for site in edit.sites.values())


def strongest(edit: WeightEdit, count: int) -> Chosen:
    """The `count` components of largest |λ|, fewer if the edit has fewer; ties by site and index."""
    sizes = [site.magnitude.abs() for site in edit.sites.values()]
    every = torch.cat(sizes)
    top = every.argsort(descending=True, stable=True)[:count]
    mask = torch.zeros(len(every), dtype=torch.bool)
    mask[top] = every[top] > 0
    return dict(zip(edit.sites, torch.split(mask, [len(own) for own in sizes]), strict=True))


def only(edit: WeightEdit, chosen: Chosen) -> WeightEdit:
    """The edit of these components alone, each with its own columns of a."""
    return replace(edit, sites={s: own.only(chosen[s]) for s, own in edit.sites.items()})


def input_directions_of(model: LanguageModel, edit: WeightEdit) -> Directions:
    """k_i = W_iᵀu / ‖W_iᵀu‖ of every component of the edited sites, edited or not (Theorem 3.2)."""
    found = {}
    for site, own in edit.sites.items():
        u = own.output_direction
        parts = [p.weight.float().T.mv(u.to(p.device, torch.float32)).cpu() for p in model.sites[site].projections]
        found[site] = unit_rows(torch.cat(parts).view(-1, own.component_width))
    return found


def random_components(
    edit: WeightEdit, chosen: Chosen, directions: Directions, generator: torch.Generator
) -> tuple[WeightEdit, bool]:
    """As many other components as are chosen, with the same magnitudes: the control of which components they are.

    For every block (heads for heads, neurons for neurons) as many are drawn among all its sites' components with
    λ = 0; where there are too few, among all that are not chosen; where there are still too few, among all. Each
    takes one of the chosen ones' |λ|, its own k, and the sign of its own g, as the paper's rule would have it.

    Returns the edit, of the same Σλ², and whether all draws were of components with λ = 0. An InvalidValueError where
    fewer components can write along u than are chosen.
    """
    drawn: dict[Site, SiteEdit] = {}
    unedited = True
    for block in dict.fromkeys(site.block for site in edit.sites):
        own = {site: one for site, one in edit.sites.items() if site.block == block}
        sizes = torch.cat([component_norms(one) for one in own.values()])
        wanted = torch.cat([chosen[site] for site in own])
        usable = torch.cat([directions[site].any(dim=1) for site in own])
        count, pools = int(wanted.sum()), (usable & (sizes == 0), usable & ~wanted, usable)
        pool = next((pool for pool in pools if int(pool.sum()) >= count), None)
        if pool is None:
            raise InvalidValueError(
                f"{count} components of {block} are to be replaced, but only {int(usable.sum())} can write along the "
                "edit's directions: there is no random control. Test fewer components."
            )
        places = pool.nonzero().flatten()
        moved = torch.zeros_like(sizes)
        moved[places[torch.randperm(len(places), generator=generator)[:count]]] = sizes[wanted]
        parts = torch.split(moved, [one.magnitude.numel() for one in own.values()])
        drawn |= {s: _with_sizes(one, part, directions[s]) for (s, one), part in zip(own.items(), parts, strict=True)}
        unedited &= count == 0 or pool is pools[0]
    return replace(edit, sites=drawn), unedited


def shuffled(edit: WeightEdit, directions: Directions, generator: torch.Generator) -> WeightEdit:
    """The same |λ| at every site, moved on by one along a random order of its components, which keep their k and g.

    So none stays where it was; but a site of one component stays as it is.
    """
    sites = dict(edit.sites)
    for site, own in edit.sites.items():
        if (n := own.magnitude.numel()) > 1:
            order = torch.randperm(n, generator=generator)
            moved = torch.empty_like(own.magnitude)
            moved[order] = component_norms(own)[order.roll(1)]
            sites[site] = _with_sizes(own, moved, directions[site])
    return replace(edit, sites=sites)


def component_norms(edit: SiteEdit) -> Float[Tensor, " n"]:
    """Length of each component's columns of a: |λ| by the paper's rule."""
    lengths: Tensor = torch.linalg.vector_norm(edit.row.view(-1, edit.component_width), dim=1)
    return lengths


def _with_sizes(edit: SiteEdit, sizes: Float[Tensor, " n"], k: Float[Tensor, "n w"]) -> SiteEdit:
    """The site with these |λ|, signed by g (+ where g is 0), and with the components' own k."""
    magnitude = torch.where(edit.importance < 0, -sizes, sizes)
    return replace(edit, row=(magnitude[:, None] * k.to(edit.row)).flatten(), magnitude=magnitude)
