"""Whether a checkpoint holds a given edit: at which strength, and up to rounding in every entry.

Shapes: p × q = a matrix as it is stored.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.audit.change import Place, TensorChange
from steer2edit.audit.components import Recovered
from steer2edit.audit.matrix_pair import MatrixPair
from steer2edit.audit.structure import counted
from steer2edit.core import Site, SiteEdit, WeightEdit

_ALLOWED_SHARE = 1e-3
_HALFWIDTHS = 2.0
_ROUND = ((0.05, 0.01), (0.01, 0.002))  # (steps, how near): people choose round strengths
PairOf = Callable[[str, Place], MatrixPair | None]


@dataclass(frozen=True)
class SiteMatch:
    """One site of the given edit.

    Args:
        site: which.
        strength: fitted factor of the edit; `None` where no rank-1 change was found.
        direction_cosine: of u, up to its sign.
        row_cosine: of a, with the sign that u's gives.
        outside: share of the entries that the edit at the common strength does not explain up to rounding, or that
            could not be compared.
        same_bits: share of the entries that adding the edit in float32 gives bit for bit.
    """

    site: Site
    strength: float | None
    direction_cosine: float | None
    row_cosine: float | None
    outside: float
    same_bits: float

    @property
    def matches(self) -> bool:
        """Whether the site holds the edit up to rounding."""
        return self.outside <= _ALLOWED_SHARE


@dataclass(frozen=True)
class EditMatch:
    """A given edit against what was found.

    Args:
        strength: the common factor; `None` where nothing of the edit was found.
        sites: every site that the edit changes.
        elsewhere: names of tensors that changed although the edit leaves them alone.
        besides: in what else the two differ, and what was not looked at, one phrase each.
    """

    strength: float | None
    sites: tuple[SiteMatch, ...]
    elsewhere: tuple[str, ...]
    besides: tuple[str, ...] = ()

    @property
    def matches(self) -> bool:
        """Whether every site holds the edit at one strength."""
        return self.strength is not None and all(site.matches for site in self.sites)

    @property
    def sentence(self) -> str:
        """The outcome in words."""
        differing = [str(site.site) for site in self.sites if not site.matches]
        if self.strength is None:
            also = f" Besides: {'; '.join(self.besides)}." if self.besides else ""
            return f"The given edit is not in what was compared.{also}"
        if differing:
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


def match_edit(
    edit: WeightEdit,
    changes: Sequence[TensorChange],
    places: Mapping[str, Sequence[Place]],
    pair_of: PairOf,
    besides: tuple[str, ...] = (),
) -> EditMatch:
    """Compare what was found with a given edit.

    Args:
        edit: the edit.
        changes: of all tensors that are not identical.
        places: the projections by the tensor that holds them.
        pair_of: a projection before and after; `None` where it cannot be compared.
        besides: what else is to be said of the two.
    """
    found = {c.place.key: c.recovered for c in changes if c.place is not None and c.recovered is not None}
    by_site: dict[Site, list[tuple[str, Place]]] = {}
    for tensor, within in places.items():
        for place in within:
            by_site.setdefault(place.site, []).append((tensor, place))
    edited = {site: e for site, e in edit.sites.items() if bool(e.row.any())}
    fits = {site: _fit(e, by_site.get(site, []), found) for site, e in edited.items()}
    strength = _common_strength(edited, fits)
    sites = []
    for site, site_edit in edited.items():
        strength_here, u_cosine, a_cosine = fits[site] or (None, None, None)
        outside, same = _check(site_edit, strength or 0.0, by_site.get(site, []), pair_of)
        sites.append(SiteMatch(site, strength_here, u_cosine, a_cosine, outside, same))
    elsewhere = [c.name for c in changes if not c.is_tiny and (c.place is None or c.place.site not in edited)]
    unread = [
        str(site) for site in edited
        if not by_site.get(site) or any(pair_of(*where) is None for where in by_site[site])
    ]  # fmt: skip
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
    edit: SiteEdit, places: Sequence[tuple[str, Place]], found: Mapping[str, Recovered]
) -> tuple[float, float, float] | None:
    """(strength, cosine of u, cosine of a) over a site's matrices."""
    u, products, energy, own = edit.output_direction.double(), 0.0, 0.0, 0.0
    cosine, largest = 0.0, 0.0
    for _, place in places:
        change, a = found.get(place.key), edit.row[place.columns].double()
        energy += float(a.square().sum())
        if change is None:
            continue
        agreement = float(change.direction @ u)
        product = float(change.row @ a)
        products += agreement * product
        own += float(change.row.square().sum())
        if float(change.row.norm()) >= largest:
            cosine, largest = abs(agreement), float(change.row.norm())
    if not own or not energy:
        return None
    return products / energy, cosine, products / max(cosine, 1e-30) / (own * energy) ** 0.5


def _check(
    edit: SiteEdit, strength: float, places: Sequence[tuple[str, Place]], pair_of: PairOf
) -> tuple[float, float]:
    """(share of entries that the edit does not explain, share that it gives bit for bit)."""
    outside = same = entries = 0
    for tensor, place in places:
        u, a = edit.output_direction.float(), strength * edit.row[place.columns].float()
        left, right = (a, u) if place.transposed else (u, a)
        pair = pair_of(tensor, place)
        if pair is None:
            outside, entries = outside + u.numel() * a.numel(), entries + u.numel() * a.numel()
            continue
        for block in pair.blocks():
            expected = torch.outer(left[block.rows], right)
            outside += int(_beyond(block.change, expected, block.halfwidth).sum())
            wide = torch.promote_types(pair.dtypes[1], torch.float32)
            merged = (block.before.to(wide) + expected.to(wide)).to(pair.dtypes[1])
            same += int((merged.to(block.after.dtype) == block.after).sum())
            entries += expected.numel()
    return (outside / entries, same / entries) if entries else (1.0, 0.0)


def _beyond(change: Float[Tensor, "r q"], expected: Float[Tensor, "r q"], halfwidth: Float[Tensor, "r q"]) -> Tensor:
    floor = 1e-6 * expected.abs().max()  # factors are kept in float32
    return (change - expected).abs() > _HALFWIDTHS * halfwidth + floor
