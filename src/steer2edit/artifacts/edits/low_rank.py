"""Several edits of one projection: their sum as one factorisation of low rank, and how they meet.

    Σ_i s_i u_i a_iᵀ = B A,   B = [u_1 … u_n] ∈ R^{d×n},   A = [s_1 a_1; …; s_n a_n] ∈ R^{n×m}

How they meet, with ΔW_i = s_i u_i a_iᵀ:

    interference = ‖Σ ΔW_i‖² / Σ ‖ΔW_i‖² − 1

It is 0 for edits that do not touch, 1 for two equal ones, −1 for two that cancel.

Shapes: d, m = width of a site's output and input, n = edits, r ≤ n = rank of the factors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Site, SiteEdit, WeightEdit
from steer2edit.errors import InvalidValueError

ScaledEdits = Sequence[tuple[WeightEdit, float]]
"""Edits with their strengths: what is added is the sum of `strength · u aᵀ` over them."""

_ROUNDING = 4 * torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class LowRank:
    """ΔW = B A of one site."""

    a: Float[Tensor, "r m"]  # A [r, m], `lora_A`
    b: Float[Tensor, "d r"]  # B [d, r], `lora_B`

    @classmethod
    def of(cls, edit: SiteEdit) -> "LowRank":
        """A single edit's factors, of rank 1."""
        return cls(edit.row.float()[None], edit.output_direction.float()[:, None])

    @property
    def rank(self) -> int:
        """r: how many pairs of factors there are."""
        return self.a.shape[0]

    def padded(self, rank: int) -> "LowRank":
        """The same product with zero pairs added up to this rank."""
        missing = rank - self.rank
        a = torch.cat([self.a, self.a.new_zeros(missing, self.a.shape[1])])
        return LowRank(a, torch.cat([self.b, self.b.new_zeros(self.b.shape[0], missing)], dim=1))


def combined_factors(edits: ScaledEdits) -> dict[Site, LowRank]:
    """The factors of every site that the sum of the edits changes, of the smallest rank.

    One rank-1 zero per site where the sum changes nothing at all: an adapter needs some module. An InvalidValueError
    where a factor is not finite with these weights.
    """
    sites = sorted({site for edit, _ in edits for site in edit.sites})
    factors = {s: factorise([(edit.sites[s], weight) for edit, weight in edits if s in edit.sites]) for s in sites}
    for site, f in factors.items():
        if not bool(torch.isfinite(f.a).all()):
            raise InvalidValueError(f"{site}: the edits are not finite with these weights. 1 is an edit as it is.")
    changed = {site: f for site, f in factors.items() if f.rank}
    return changed or {site: f.padded(1) for site, f in factors.items()}


def factorise(terms: Sequence[tuple[SiteEdit, float]]) -> LowRank:
    """The factors of `Σ s_i u_i a_iᵀ` from one site's edits and their weights, of its numerical rank in float32.

    What has full rank is kept as it is; otherwise it is replaced by the leading singular pairs, which is exact up to
    float32 rounding. Factors are in float32, of rank 0 if nothing is changed.
    """
    U = torch.stack([edit.output_direction for edit, _ in terms], dim=1).double()
    A = torch.stack([weight * edit.row.double() for edit, weight in terms])
    Q, R = torch.linalg.qr(U)
    P, sizes, V = torch.linalg.svd(R @ A, full_matrices=False)
    rank = int((sizes > _ROUNDING * A.norm(dim=1).max()).sum())
    if rank < len(A):
        B = Q @ P[:, :rank]
        sign = torch.where((U[:, :1] * B).sum(dim=0) < 0, -1.0, 1.0)
        U, A = B * sign, (sizes[:rank] * sign)[:, None] * V[:rank]
    return LowRank(A.float(), U.float())


@dataclass(frozen=True)
class Interference:
    """‖Σ ΔW_i‖² / Σ ‖ΔW_i‖² − 1."""

    interference: float  # over all sites
    sites: dict[str, float]  # by name of every site that several edits change


def measure_interference(edits: ScaledEdits) -> Interference:
    """How edits meet, with the weights they are combined with."""
    sites, whole, separate = dict[str, float](), 0.0, 0.0
    for site in sorted({site for edit, _ in edits for site in edit.sites}):
        own = [(edit.sites[site], weight) for edit, weight in edits if site in edit.sites]
        U = torch.stack([edit.output_direction.double() for edit, _ in own])
        A = torch.stack([weight * edit.row.double() for edit, weight in own])
        gram = (U @ U.T) * (A @ A.T)  # ⟨ΔW_i, ΔW_j⟩ = s_i s_j (u_i · u_j) (a_i · a_j)
        both, apart = float(gram.sum()), float(gram.trace())
        whole, separate = whole + both, separate + apart
        if len(own) > 1:
            sites[str(site)] = _interference(both, apart)
    return Interference(_interference(whole, separate), sites)


def _interference(both: float, apart: float) -> float:
    return max(both, 0.0) / apart - 1 if apart else 0.0  # rounding can take an exact cancellation below zero
