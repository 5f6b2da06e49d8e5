"""Several edits of one projection as one factorisation of low rank.

    Σ_i s_i u_i a_iᵀ = B A,   B = [u_1 … u_n] ∈ R^{d×n},   A = [s_1 a_1; …; s_n a_n] ∈ R^{n×m}

Shapes: d, m = width of a site's output and input, n = edits, r ≤ n = rank of the factors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Site, SiteEdit, WeightEdit
from steer2edit.errors import InvalidValueError

Members = Sequence[tuple[WeightEdit, float]]
"""Edits with their weights: what a combined edit consists of."""

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

    def columns(self, columns: slice) -> "LowRank":
        """The part that acts on these input columns, with the same B."""
        return LowRank(self.a[:, columns], self.b)

    def padded(self, rank: int) -> "LowRank":
        """The same product with zero pairs added up to this rank."""
        missing = rank - self.rank
        a = torch.cat([self.a, self.a.new_zeros(missing, self.a.shape[1])])
        return LowRank(a, torch.cat([self.b, self.b.new_zeros(self.b.shape[0], missing)], dim=1))

    def dense(self) -> Float[Tensor, "d m"]:
        """ΔW, materialised."""
        return self.b @ self.a


def combined_factors(members: Members) -> dict[Site, LowRank]:
    """The factors of every site that the sum of the edits changes, of the smallest rank; if it changes none, of all.

    Args:
        members: edits and the weights they are added with.

    Returns:
        By site; one rank-1 zero per site where the sum changes nothing at all (an adapter needs some module).

    Raises:
        InvalidValueError: a factor is not finite with these weights.
    """
    sites = sorted({site for edit, _ in members for site in edit.sites})
    factors = {s: factorise([(edit.sites[s], weight) for edit, weight in members if s in edit.sites]) for s in sites}
    for site, f in factors.items():
        if not bool(torch.isfinite(f.a).all()):
            raise InvalidValueError(f"{site}: the edits are not finite with these weights. 1 is an edit as it is.")
    changed = {site: f for site, f in factors.items() if f.rank}
    return changed or {site: f.padded(1) for site, f in factors.items()}


def factorise(terms: Sequence[tuple[SiteEdit, float]]) -> LowRank:
    """The factors of `Σ s_i u_i a_iᵀ`, of its numerical rank in float32.

    Edits with the same direction (u_i = ±u_j, bit for bit) are added up in a. What is left is kept as it is if it has
    full rank; otherwise it is replaced by the leading singular pairs, which is exact up to float32 rounding.

    Args:
        terms: edits of one site and their weights.

    Returns:
        Factors in float32; of rank 0 if nothing is changed.
    """
    U, A = _distinct_directions(terms)
    Q, R = torch.linalg.qr(U)
    P, sizes, V = torch.linalg.svd(R @ A, full_matrices=False)
    rank = int((sizes > _ROUNDING * sizes[:1]).sum())
    if rank < len(A):
        B = Q @ P[:, :rank]
        signs = torch.where((U[:, :1] * B).sum(dim=0) < 0, -1.0, 1.0)
        U, A = B * signs, (sizes[:rank] * signs)[:, None] * V[:rank]
    return LowRank(A.float(), U.float())


def _distinct_directions(
    terms: Sequence[tuple[SiteEdit, float]],
) -> tuple[Float[Tensor, "d n"], Float[Tensor, "n m"]]:
    """(U, A) in float64, with the rows of edits that share their direction added up."""
    directions: list[Tensor] = []
    rows: list[Tensor] = []
    for edit, weight in terms:
        u, row = edit.output_direction, weight * edit.row.double()
        for i, known in enumerate(directions):
            if torch.equal(u, known) or torch.equal(u, -known):
                rows[i] = rows[i] + (row if torch.equal(u, known) else -row)
                break
        else:
            directions.append(u)
            rows.append(row)
    return torch.stack(directions, dim=1).double(), torch.stack(rows)


def common_rank(factors: Mapping[Site, LowRank]) -> int:
    """The largest rank: that of an adapter which holds them all."""
    return max(f.rank for f in factors.values())
