"""Gated rows, beyond the paper: they fire where the behaviour is wanted, and stay silent where it is not.

One row over the columns of all sites at once, the most attribute for what it costs:

    maximise   sᵀa − ½ aᵀ M a,     M = ½ diag(C + C̄) + ½ ⊕ ΨᵀΨ/q + ω SᵀS/r

    s   mean over wanted requests of φ: what a unit of each column adds to the decision (`models.effects`), on the
        wanted response less on the model's own
    Ψ   the same of tokens drawn from the model on benign replies: KL per token ≈ ½ mean((Ψa)²), and C = mean(Ψ²) by
        column. ⊕: columns of one site count together, those of two sites apart, for a covariance over all columns is
        mostly noise when draws are few; within a site it is shrunk half way to its diagonal and the site's mean C̄
    S   φ of requests that the edit is to stay silent on: a nat² of what it does there counts as 2ω nats of drift

so a = M⁻¹s, by Woodbury: as many equations as there are draws, site after site, and then silent requests, however wide
the sites are. It is written a = ŝ / (C + C̄): the effects ŝ stand for s in `effect_rows`, columns apart.

Shapes: n, r, q = wanted requests, silent requests, draws; m = width of a site's input.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Site
from steer2edit.method.curvature import divided_by_drift, shared_cost

SILENCE = 1e-3
"""ω: chosen on other requests than those it was made from, where 3e-4 to 3e-3 differ little (docs/findings.md)."""


@dataclass(frozen=True)
class Gate:
    """What gated rows are made of, and what they do on requests that they were not made from."""

    effects: Mapping[Site, Float[Tensor, " m"]]  # ŝ by site
    gain: float  # sᵀa ≥ 0, what the row adds to the decision on the wanted requests, in nats to first order
    wanted: Float[Tensor, " n"]  # φ_i·a of every wanted request, with a made from all others
    silent: Float[Tensor, " r"]  # the same of silent requests


def gated_effects(
    wanted: Mapping[Site, Float[Tensor, "n m"]],
    silent: Mapping[Site, Float[Tensor, "r m"]],
    draws: Mapping[Site, Float[Tensor, "q m"]],
    silence: float = SILENCE,
) -> Gate:
    """ŝ of all sites, solved together, of n ≥ 1 wanted requests, r ≥ 0 silent ones and q ≥ 1 draws.

    A site whose draws are all zero gets no row. Predictions left out are in closed form: φ_i·a / (1 − h_i) with h_i =
    ω φ_iᵀM⁻¹φ_i / r of silent requests, and (n φ_i·a − φ_iᵀM⁻¹φ_i) / (n − 1) of wanted ones.
    """
    n, r = (len(next(iter(rows.values()))) for rows in (wanted, silent))
    gram = torch.zeros(n + r, n + r, dtype=torch.float64)
    divided = {}
    for site, psi in draws.items():
        rows = torch.cat([wanted[site], silent[site]])
        divided[site] = divided_by_drift(rows, psi)
        gram += rows.double() @ divided[site].T.double()
    weight = silence / max(r, 1)
    known = torch.eye(r, dtype=torch.float64) + weight * gram[n:, n:]
    correction = weight * torch.linalg.solve(known, gram[n:])  # (1/w + G)⁻¹ G
    products = gram - gram[:, n:] @ correction  # Z M⁻¹ Zᵀ
    mean = torch.full((n,), 1 / n, dtype=torch.float64)
    said, own = products[:, :n] @ mean, products.diagonal()
    left_out = (n * said[:n] - own[:n]) / max(n - 1, 1), said[n:] / (1 - weight * own[n:])
    shares = torch.cat([mean, -(correction[:, :n] @ mean)])
    effects = {
        site: (shares @ rows.double() * shared_cost(draws[site])).to(rows.dtype) for site, rows in divided.items()
    }
    return Gate(effects, said[:n].mean().item(), *left_out)
