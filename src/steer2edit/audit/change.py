"""What became of one tensor: nothing, a few entries, a rank-1 or low-rank change, rounding, or everything.

A rank-1 change of a projection is read back as the heads and neurons that carry it:

    ΔW = u aᵀ,   k_i = W_iᵀu / ‖W_iᵀu‖,   λ_i = a_i · k_i

λ does not depend on the sign of u, which a change alone cannot tell: with −u, both a and k turn round. Nothing but
W and W' is needed: no vectors, no hyper-parameters.

Shapes: d = width of the projection's output, m = of its input, n = its components.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steer2edit.audit.matrices import SHOWN_ENTRIES, MatrixPair, Totals
from steer2edit.audit.rank import RankOne, fit_rank_one, spectrum
from steer2edit.models import StoredMatrix

Kind = Literal[
    "rank-1", "low-rank", "full-rank", "vector", "entries", "rounding", "rounded", "same-values", "not-finite", "bits"
]  # fmt: skip
"""rank-1, low-rank and full-rank are of matrices, vector of a row of numbers such as a norm's or a bias; entries: at
most eight; rounding: within one spacing of the dtype; rounded: exactly the base rounded to another dtype (or the base
is the rounded one); same-values: only stored in another dtype; bits: integers and packed formats, not compared."""

_TRY_RANK_ONE = 8
_SIGMAS = 4.0


@dataclass(frozen=True)
class Recovered:
    """A projection's rank-1 change by component."""

    place: StoredMatrix  # the projection
    direction: Float[Tensor, " d"]  # u [d], of unit length; its sign is arbitrary
    row: Float[Tensor, " m"]  # a [m]
    magnitude: Float[Tensor, " n"]  # λ [n], 0 where a component is not found to be edited
    norm: Float[Tensor, " n"]  # ‖a_i‖ [n]
    error: Float[Tensor, " n"]  # standard error of λ [n] from rounding
    sensitivity: Float[Tensor, " m"]  # Wᵀu [m]

    @property
    def edited(self) -> Bool[Tensor, " n"]:
        """Which components carry the change: ‖a_i‖ is more than four standard errors."""
        return self.norm > 0

    @property
    def along(self) -> float | None:
        """Share of ‖a‖² along W_iᵀu: 1 for the paper's rule; `None` for neurons, which have one column only."""
        width = self.row.numel() // self.magnitude.numel()
        if width == 1 or not bool(self.edited.any()):
            return None
        noise = (self.error.square() * width)[self.edited].sum()
        whole = self.norm.square()[self.edited].sum() - noise
        return float(self.magnitude.square()[self.edited].sum() / whole.clamp_min(1e-30))

    @property
    def ablation(self) -> tuple[float, float]:
        """(s, cosine) of the fit a = −s Wᵀu: with cosine 1, directional ablation ΔW = −s u uᵀW; s = 1 removes u."""
        energy = self.sensitivity.square().sum().clamp_min(1e-30)
        product = -(self.row @ self.sensitivity)
        return float(product / energy), float(product / (energy.sqrt() * self.row.norm()).clamp_min(1e-30))


def recover(pair: MatrixPair, fit: RankOne, place: StoredMatrix) -> Recovered:
    """Heads or neurons of a projection's rank-1 change, from the fit of its stored matrix."""
    u, a = (fit.right, fit.left) if place.transposed else (fit.left, fit.right)
    length = u.norm()
    u, a = (u / length).double(), (a * length).double()
    sensitivity, variance = torch.zeros_like(a), torch.zeros_like(a)
    for block in pair:
        before, noise = block.before.double(), block.halfwidth.double().square() / 3
        if place.transposed:
            sensitivity[block.rows], variance[block.rows] = before @ u, noise @ u.square()
        else:
            sensitivity += u[block.rows] @ before
            variance += u[block.rows].square() @ noise
    a_i, s_i, variance_i = (values.view(-1, place.module.component_width) for values in (a, sensitivity, variance))
    k = s_i / s_i.norm(dim=1, keepdim=True).clamp_min(1e-300)
    found = a_i.norm(dim=1) > _SIGMAS * variance_i.sum(1).sqrt()
    return Recovered(
        place=place,
        direction=u,
        row=a,
        magnitude=torch.where(found, (a_i * k).sum(1), 0),
        norm=torch.where(found, a_i.norm(dim=1), 0),
        error=(k.square() * variance_i).sum(1).sqrt(),
        sensitivity=sensitivity,
    )


@dataclass(frozen=True)
class TensorChange:
    """The change of one stored tensor, or of one expert's matrix in it."""

    tensor: str  # its name in the files
    kind: Kind  # what the change is
    shape: tuple[int, ...]  # of the matrix as it is stored
    dtypes: tuple[str, str]  # before and after
    place: StoredMatrix | None = None  # which projection it is, or `None` if it is none
    rank: int | None = None  # numerical rank; `None` where it is full, or was not asked for
    changed: int = 0  # how many entries differ
    entries: tuple[tuple[int, int], ...] = ()  # (row, column) of the first of them, where they are few
    size: float = 0.0  # ‖ΔW‖
    relative_size: float = 0.0  # ‖ΔW‖ / ‖W‖
    singular_values: tuple[float, ...] = ()  # the leading ones
    noise_edge: float | None = None  # the largest singular value that rounding alone would give
    # entries that a rank-1 change does not explain: (row, column, what remains)
    exceptions: tuple[tuple[int, int, float], ...] = ()
    unexplained: int = 0  # how many there are
    rounded_to: str | None = None  # the dtype that one of the two is the other rounded to
    recovered: Recovered | None = None  # heads or neurons of a rank-1 change of a projection

    @property
    def name(self) -> str:
        """The tensor, with the expert's index where several are in it."""
        expert = None if self.place is None else self.place.expert
        return self.tensor if expert is None else f"{self.tensor}[{expert}]"

    @property
    def is_tiny(self) -> bool:
        """Whether nothing but number formats and rounding differs."""
        return self.kind in ("rounding", "rounded", "same-values")

    @property
    def components(self) -> list[dict[str, Any]]:
        """The heads or neurons that carry a rank-1 change, strongest first: their names, λ, its error and ‖a_i‖."""
        if (found := self.recovered) is None:
            return []
        order = found.magnitude.abs().argsort(descending=True, stable=True).tolist()
        values = {"magnitude": found.magnitude, "error": found.error, "norm": found.norm}
        return [
            {"component": str(found.place.component(i)), **{name: float(of[i]) for name, of in values.items()}}
            for i in order
            if bool(found.edited[i])
        ]

    def as_json(self) -> dict[str, Any]:
        """As JSON (docs/audit.md)."""
        same = ("kind", "rank", "shape", "dtypes", "size", "singular_values", "noise_edge", "entries", "rounded_to")
        whole = {
            "tensor": self.name,
            "site": None if self.place is None else str(self.place.site),
            **{name: getattr(self, name) for name in same},
            "changed_entries": self.changed,
            "relative_size": self.relative_size if math.isfinite(self.relative_size) else None,
            "unexplained_entries": self.unexplained,
            "exceptions": [{"row": row, "column": column, "remains": rest} for row, column, rest in self.exceptions],
        }
        if (found := self.recovered) is None:
            return whole
        strength, cosine = found.ablation
        return whole | {
            "norm": float(found.row.norm()),
            "along_sensitivity": found.along,
            "ablation": {"strength": strength, "cosine": cosine},
            "components": self.components,
        }


def describe_change(tensor: str, pair: MatrixPair, place: StoredMatrix | None = None) -> TensorChange | None:
    """Say what changed between the two matrices of a pair, or `None` if every entry is equal and so are the dtypes."""
    totals = Totals.of(pair)
    stored = pair.dtypes[0] if totals.rounded_from else None
    rounded = min(totals.rounded_to, key=lambda dtype: torch.finfo(dtype).eps, default=stored)
    kind = _kind(pair, totals, rounded)
    before, after = (str(dtype).removeprefix("torch.") for dtype in pair.dtypes)
    if kind == "same-values" and before == after:
        return None
    change = TensorChange(
        tensor=tensor,
        kind=kind,
        shape=pair.shape,
        dtypes=(before, after),
        place=place,
        changed=totals.changed,
        entries=tuple(totals.entries) if kind == "entries" else (),
        size=totals.energy**0.5,
        relative_size=(totals.energy / totals.before_energy) ** 0.5 if totals.before_energy else math.inf,
        rounded_to=str(rounded).removeprefix("torch.") if kind == "rounded" else None,
    )
    if kind != "full-rank":
        return change
    values, right, rank, noise_edge = spectrum(pair, totals)
    change = replace(change, singular_values=tuple(values[:SHOWN_ENTRIES].tolist()), noise_edge=noise_edge)
    if rank is None:
        return change
    fit = fit_rank_one(pair, totals, right[:, 0], thorough=rank <= 1) if rank <= _TRY_RANK_ONE else None
    if fit is None:
        return replace(change, kind="low-rank", rank=rank) if rank else replace(change, kind="rounding")
    recovered = None if place is None else recover(pair, fit, place)
    change = replace(change, kind="rank-1", rank=1, recovered=recovered)
    return replace(change, exceptions=fit.exceptions, unexplained=fit.outside)


def _kind(pair: MatrixPair, totals: Totals, rounded: torch.dtype | None) -> Kind:
    """What one look at every entry tells; `full-rank` where the rank is still to be found."""
    if totals.not_finite:
        return "not-finite"
    if not totals.changed:
        return "same-values"
    if rounded is not None:
        return "rounded"
    if totals.changed <= min(SHOWN_ENTRIES, math.prod(pair.shape) // 10):
        return "entries"
    if totals.most_spacings <= 1:
        return "rounding"
    return "vector" if min(pair.shape) == 1 else "full-rank"
