"""What became of one tensor: nothing, a few entries, a rank-1 or low-rank change, rounding, or everything."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from steer2edit.audit.matrices import MatrixPair
from steer2edit.audit.rank_one import fit_rank_one
from steer2edit.audit.recovered import Recovered, recover
from steer2edit.audit.spectrum import spectrum
from steer2edit.audit.totals import SHOWN_ENTRIES, Totals, total
from steer2edit.models import StoredMatrix

Kind = Literal[
    "rank-1", "low-rank", "full-rank", "vector", "entries", "rounding", "rounded", "same-values", "not-finite", "bits"
]  # fmt: skip
"""rank-1, low-rank and full-rank are of matrices, vector of a row of numbers such as a norm's or a bias; entries: at
most eight; rounding: within one spacing of the dtype; rounded: exactly the base rounded to another dtype (or the base
is the rounded one); same-values: only stored in another dtype; bits: integers and packed formats, not compared."""

_TRY_RANK_ONE = 8


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
        return [] if self.recovered is None else self.recovered.components

    def as_json(self) -> dict[str, Any]:
        """As JSON (docs/audit.md)."""
        return {
            "tensor": self.name,
            "site": None if self.place is None else str(self.place.site),
            "kind": self.kind,
            "rank": self.rank,
            "shape": self.shape,
            "dtypes": self.dtypes,
            "changed_entries": self.changed,
            "size": self.size,
            "relative_size": self.relative_size if math.isfinite(self.relative_size) else None,
            "singular_values": self.singular_values,
            "noise_edge": self.noise_edge,
            "entries": self.entries,
            "unexplained_entries": self.unexplained,
            "exceptions": [{"row": row, "column": column, "remains": rest} for row, column, rest in self.exceptions],
            "rounded_to": self.rounded_to,
            **(self.recovered.as_json() if self.recovered is not None else {}),
        }


def describe_change(tensor: str, pair: MatrixPair, place: StoredMatrix | None = None) -> TensorChange | None:
    """Say what changed between the two matrices of a pair, or `None` if every entry is equal and so are the dtypes."""
    totals = total(pair)
    kind = _simple_kind(pair, totals)
    if kind is None and not totals.changed:
        return None
    change = TensorChange(
        tensor=tensor,
        kind=kind or "full-rank",
        shape=pair.shape,
        dtypes=(_name(pair.dtypes[0]), _name(pair.dtypes[1])),
        place=place,
        changed=totals.changed,
        entries=tuple(totals.entries) if kind == "entries" else (),
        size=totals.energy**0.5,
        relative_size=(totals.energy / totals.before_energy) ** 0.5 if totals.before_energy else math.inf,
        rounded_to=_rounded_to(pair, totals) if kind == "rounded" else None,
    )
    return change if kind is not None else _matrix_change(change, pair, totals)


def _simple_kind(pair: MatrixPair, totals: Totals) -> Kind | None:
    if totals.not_finite:
        return "not-finite"
    if not totals.changed:
        return "same-values" if pair.dtypes[0] != pair.dtypes[1] else None
    if _rounded_to(pair, totals) is not None:
        return "rounded"
    if totals.changed <= min(SHOWN_ENTRIES, math.prod(pair.shape) // 10):
        return "entries"
    if totals.most_spacings <= 1:
        return "rounding"
    return "vector" if min(pair.shape) == 1 else None


def _rounded_to(pair: MatrixPair, totals: Totals) -> str | None:
    if totals.rounded_to:
        return _name(min(totals.rounded_to, key=lambda dtype: torch.finfo(dtype).eps))
    return _name(pair.dtypes[0]) if totals.rounded_from else None


def _matrix_change(change: TensorChange, pair: MatrixPair, totals: Totals) -> TensorChange:
    found = spectrum(pair, totals)
    leading = tuple(float(value) for value in found.values[:SHOWN_ENTRIES])
    change = replace(change, singular_values=leading, noise_edge=found.noise_edge)
    if found.rank is None:
        return change
    if found.rank <= _TRY_RANK_ONE:
        fit = fit_rank_one(pair, totals, found.right[:, 0], thorough=found.rank <= 1)
        if fit.accepted:
            recovered = None if change.place is None else recover(pair, fit, change.place)
            fitted = {"exceptions": fit.exceptions, "unexplained": fit.outside, "recovered": recovered}
            return replace(change, kind="rank-1", rank=1, **fitted)  # type: ignore[arg-type]
    return replace(change, kind="low-rank", rank=found.rank) if found.rank else replace(change, kind="rounding")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
