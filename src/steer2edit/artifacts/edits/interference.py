"""How several edits of one model meet: where they overlap, and whether they help or hinder each other.

Per site and pair of edits, with ΔW_i = s_i u_i a_iᵀ:

    cos(u_1, u_2),   cos(a_1, a_2),   cos(ΔW_1, ΔW_2) = cos(u_1, u_2) · cos(a_1, a_2) · sign(s_1 s_2)
    interference = ‖Σ ΔW_i‖² / Σ ‖ΔW_i‖² − 1

Interference is 0 for edits that do not touch, 1 for two equal ones, −1 for two that cancel.
"""

from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.artifacts.edits.low_rank import Members
from steer2edit.core import Site, SiteEdit


@dataclass(frozen=True)
class PairAtSite:
    """Two edits at one site."""

    first: int  # positions of the edits in the list
    second: int
    output_cosine: float  # cos(u_1, u_2)
    row_cosine: float  # cos(a_1, a_2); 0 where one of them is zero
    cosine: float  # of the two changes as matrices (Frobenius), signs of the weights included
    shared: float  # components that both edit, as a share of those that either edits
    opposed: float | None  # of the shared ones, the share whose λ (times its weight) has opposite signs


@dataclass(frozen=True)
class SiteInterference:
    """All edits of one site together."""

    site: Site  # which
    norm: float  # ‖Σ ΔW_i‖ (Frobenius)
    separate: float  # sqrt(Σ ‖ΔW_i‖²), what it would be if they did not interfere
    pairs: tuple[PairAtSite, ...]  # every two of them

    @property
    def interference(self) -> float:
        """‖Σ‖² / Σ‖·‖² − 1; 0 where nothing is changed."""
        return (self.norm / self.separate) ** 2 - 1 if self.separate else 0.0


@dataclass(frozen=True)
class Interference:
    """All edits over all sites."""

    sites: tuple[SiteInterference, ...]  # where more than one edit acts, or only one

    @property
    def overall(self) -> float:
        """‖Σ‖² / Σ‖·‖² − 1 over all sites."""
        separate = sum(site.separate**2 for site in self.sites)
        return sum(site.norm**2 for site in self.sites) / separate - 1 if separate else 0.0

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        sites = {
            str(s.site): {"interference": s.interference, "norm": s.norm, "pairs": [asdict(p) for p in s.pairs]}
            for s in self.sites
        }
        return {"interference": self.overall, "sites": sites}


def measure_interference(members: Members) -> Interference:
    """Compare every two edits at every site, with the weights they are combined with."""
    sites = sorted({site for edit, _ in members for site in edit.sites})
    return Interference(tuple(_site(members, site) for site in sites))


def _site(members: Members, site: Site) -> SiteInterference:
    terms = {i: (edit.sites[site], weight) for i, (edit, weight) in enumerate(members) if site in edit.sites}
    U = torch.stack([edit.output_direction for edit, _ in terms.values()]).double()
    A = torch.stack([weight * edit.row.double() for edit, weight in terms.values()])
    gram = (U @ U.T) * (A @ A.T)  # ⟨ΔW_i, ΔW_j⟩ = s_i s_j (u_i · u_j) (a_i · a_j)
    norms = gram.diagonal().sqrt()
    cosines = torch.where(gram == 0, 0.0, gram / (norms[:, None] * norms))
    place = {i: k for k, i in enumerate(terms)}
    pairs = [_pair(i, j, terms[i], terms[j], cosines[place[i], place[j]].item()) for i, j in combinations(terms, 2)]
    total = max(float(gram.sum()), 0.0)  # rounding can take an exact cancellation below zero
    return SiteInterference(site, total**0.5, float(gram.diagonal().sum()) ** 0.5, tuple(pairs))


def _pair(
    first: int, second: int, one: tuple[SiteEdit, float], other: tuple[SiteEdit, float], cosine: float
) -> PairAtSite:
    (e1, w1), (e2, w2) = one, other
    lam1, lam2 = w1 * e1.magnitude, w2 * e2.magnitude
    both, either = (lam1 != 0) & (lam2 != 0), (lam1 != 0) | (lam2 != 0)
    shared, opposed = int(both.sum()), int((both & (lam1.sign() != lam2.sign())).sum())
    return PairAtSite(
        first,
        second,
        _cosine(e1.output_direction, e2.output_direction),
        _cosine(e1.row, e2.row),
        cosine,
        shared / int(either.sum()) if bool(either.any()) else 0.0,
        opposed / shared if shared else None,
    )


def _cosine(one: Float[Tensor, " n"], other: Float[Tensor, " n"]) -> float:
    norms = float(one.double().norm() * other.double().norm())
    return float(one.double() @ other.double()) / norms if norms else 0.0
