"""Whether a checkpoint holds a given edit: at which strength, and up to rounding in every entry.

Shapes: p × q = a matrix as it is stored.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from steer2edit.audit.change import Recovered, TensorChange
from steer2edit.audit.matrices import MatrixPair
from steer2edit.audit.structure import counted
from steer2edit.core import Site, SiteEdit, WeightEdit
from steer2edit.models import StoredMatrix

_ALLOWED_SHARE = 1e-3
_HALFWIDTHS = 2.0
_ROUND = ((0.05, 0.01), (0.01, 0.002))  # (steps, how near): people choose round strengths
PairOf = Callable[[StoredMatrix], MatrixPair | None]


@dataclass(frozen=True)
class SiteMatch:
    """One site of the given edit."""

    site: Site  # which
    strength: float | None  # fitted factor of the edit; `None` where no rank-1 change was found
    direction_cosine: float | None  # of u, up to its sign
    row_cosine: float | None  # of a, with the sign that u's gives
    # share of the entries that the edit at the common strength does not explain up to rounding, or that could not be
    # compared
    outside: float
    same_bits: float  # share of the entries that adding the edit in float32 gives bit for bit

    @property
    def matches(self) -> bool:
        """Whether the site holds the edit up to rounding."""
        return self.outside <= _ALLOWED_SHARE


@dataclass(frozen=True)
class EditMatch:
    """A given edit against what was found."""

    strength: float | None  # the common factor; `None` where nothing of the edit was found
    sites: tuple[SiteMatch, ...]  # every site that the edit changes
    elsewhere: tuple[str, ...]  # names of tensors that changed although the edit leaves them alone
    besides: tuple[str, ...] = ()  # in what else the two differ, and what was not looked at, one phrase each

    @property
    def matches(self) -> bool:
        """Whether every site holds the edit at one strength."""
        return self.strength is not None and all(site.matches for site in self.sites)

    @property
    def sentence(self) -> str:
        """The outcome in words."""
        if self.strength is None:
            also = f" Besides: {'; '.join(self.besides)}." if self.besides else ""
            return f"The given edit is not in what was compared.{also}"
        if differing := [str(site.site) for site in self.sites if not site.matches]:
            return (
                f"Does not match the given edit: at the best common strength, {self.strength:g}, {len(differing)} of "
                f"{len(self.sites)} sites differ by more than rounding ({', '.join(differing[:6])}"
                f"{', ...' if len(differing) > 6 else ''})."
            )
        exceptions = [str(site.site) for site in self.sites if site.outside]
        rest = [
            *counted(exceptions, "site", "with single entries that it does not explain"),
            *counted(self.elsewhere, "other tensor", "changed"),
            *self.besides,
        ]
        also = f"Besides: {'; '.join(rest)}." if rest else "Nothing else changed."
        return f"Matches the given edit at strength {self.strength:g}, in all {len(self.sites)} sites. {also}"

    def as_json(self) -> dict[str, Any]:
        """As JSON (docs/audit.md)."""
        sites = [{**vars(site), "site": str(site.site), "matches": site.matches} for site in self.sites]
        return {**vars(self), "matches": self.matches, "sentence": self.sentence, "sites": sites}


def match_edit(
    edit: WeightEdit,
    changes: Sequence[TensorChange],
    places: Mapping[Site, Sequence[StoredMatrix]],
    pair_of: PairOf,
    besides: Sequence[str] = (),
) -> EditMatch:
    """Compare the changes of all tensors that are not identical with a given edit.

    `places` are the projections of each site, `pair_of` gives one before and after, or `None` where it cannot be
    compared; `besides` is what else is to be said of the two.
    """
    found = {c.recovered.place.projection.key: c.recovered for c in changes if c.recovered is not None}
    edited = {site: e for site, e in edit.sites.items() if bool(e.row.any())}
    fits = {site: _fit(e, places.get(site, ()), found) for site, e in edited.items()}
    strength = _common_strength(edited, fits)
    sites, unread = [], []
    for site, site_edit in edited.items():
        pairs = [(place, pair_of(place)) for place in places.get(site, ())]
        if not pairs or any(pair is None for _, pair in pairs):
            unread.append(str(site))
        strength_here, u_cosine, a_cosine = fits[site] or (None, None, None)
        outside, same = _check(site_edit, strength or 0.0, pairs)
        sites.append(SiteMatch(site, strength_here, u_cosine, a_cosine, outside, same))
    elsewhere = [c.name for c in changes if not c.is_tiny and (c.place is None or c.place.site not in edited)]
    besides = (*counted(unread, "site", "of it that could not be compared"), *besides)
    return EditMatch(strength, tuple(sites), tuple(elsewhere), besides)


def _common_strength(
    edited: Mapping[Site, SiteEdit], fits: Mapping[Site, tuple[float, float, float] | None]
) -> float | None:
    """Weighted median of the sites' strengths, by ‖a‖², or the round number that it is within noise of."""
    parts = sorted(
        (fit[0], float(edited[site].row.double().square().sum())) for site, fit in fits.items() if fit is not None
    )
    if not parts:
        return None
    half = sum(weight for _, weight in parts) / 2
    totals = accumulate(weight for _, weight in parts)
    strength = next(s for (s, _), below in zip(parts, totals, strict=True) if below >= half)
    for step, near in _ROUND:
        nearest = round(round(strength / step) * step, 6)
        if nearest and abs(strength - nearest) < near:
            return nearest
    return strength


def _fit(
    edit: SiteEdit, places: Sequence[StoredMatrix], found: Mapping[str, Recovered]
) -> tuple[float, float, float] | None:
    """(strength, cosine of u, cosine of a) over a site's matrices."""
    u = edit.output_direction.double()
    energy = sum(float(edit.row[place.projection.columns].double().square().sum()) for place in places)
    changes = [change for place in places if (change := found.get(place.projection.key)) is not None]
    own = sum(float(change.row.square().sum()) for change in changes)
    if not own or not energy:
        return None
    agreement = [float(change.direction @ u) for change in changes]
    rows = [float(c.row @ edit.row[c.place.projection.columns].double()) for c in changes]
    product = sum(one * other for one, other in zip(agreement, rows, strict=True))
    _, cosine = max((float(change.row.norm()), abs(cosine)) for change, cosine in zip(changes, agreement, strict=True))
    return product / energy, cosine, product / max(cosine, 1e-30) / (own * energy) ** 0.5


def _check(
    edit: SiteEdit, strength: float, pairs: Sequence[tuple[StoredMatrix, MatrixPair | None]]
) -> tuple[float, float]:
    """(share of entries that the edit does not explain, share that it gives bit for bit)."""
    outside = same = entries = 0
    for place, pair in pairs:
        u, a = edit.output_direction.float(), strength * edit.row[place.projection.columns].float()
        entries += u.numel() * a.numel()
        if pair is None:
            outside += u.numel() * a.numel()
            continue
        left, right = (a, u) if place.transposed else (u, a)
        for block in pair.blocks():
            expected = torch.outer(left[block.rows], right)
            floor = 1e-6 * expected.abs().max()  # factors are kept in float32
            outside += int(((block.change - expected).abs() > _HALFWIDTHS * block.halfwidth + floor).sum())
            wide = torch.promote_types(pair.dtypes[1], torch.float32)
            merged = (block.before.to(wide) + expected.to(wide)).to(pair.dtypes[1])
            same += int((merged.to(block.after.dtype) == block.after).sum())
    return (outside / entries, same / entries) if entries else (1.0, 0.0)
