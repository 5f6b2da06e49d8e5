"""What all changes of a checkpoint are together, in plain words, and whether they are a given edit."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from steer2edit.audit.change import Recovered, TensorChange
from steer2edit.audit.matrices import MatrixPair
from steer2edit.audit.rank import ALLOWED_SHARE, OUTSIDE
from steer2edit.audit.structure import Structure, counted
from steer2edit.core import Site, SiteEdit, WeightEdit
from steer2edit.models import StoredMatrix
from steer2edit.steering.diagnosis import listed

Label = Literal[
    "identical", "rounded-copy", "steer2edit-like", "directional-ablation", "rank-1", "low-rank", "full-rank", "other",
    "partly-read",
]  # fmt: skip

ALONG = 0.9
"""Share of a rank-1 change's energy along W_iᵀu above which it follows the rule λ_i k_i; chance gives 1 / head_dim."""
_ABLATION_COSINE = 0.99
_MOST_NAMES = 6
_MATRIX_CHANGES = {"edit": "a rank-1 change", "low-rank": "a low-rank change", "full-rank": "a full-rank change"}
_OTHER_CHANGES = {
    "vector": "a change of a norm or bias",
    "entries": "single entries changed",
    "not-finite": "NaN or infinite entries",
    "bits": "other contents (integers or a packed format)",
}
_ROUND = ((0.05, 0.01), (0.01, 0.002))  # (steps, how near): people choose round strengths


@dataclass(frozen=True)
class Classification:
    """What all changes together amount to."""

    label: Label  # for programs
    sentence: str  # for people


def classify(changes: Sequence[TensorChange], structure: Structure) -> Classification:
    """Name the kind of edit that a checkpoint's changes amount to.

    The kind is that of most of the changed matrices; what does not belong to it is named after it. What was not read
    comes first, since nothing is known of it.
    """
    compared, groups = len(structure.common), dict[str, list[TensorChange]]()
    for change in changes:
        if not change.is_tiny:
            group = "low-rank" if change.recovered is None else "edit"
            groups.setdefault(group if change.kind == "rank-1" else change.kind, []).append(change)
    matrices = [name for name in groups if name in _MATRIX_CHANGES]
    main = max(matrices, key=lambda name: len(groups[name]), default="")
    label, text = _main(main, groups[main], compared) if main else _without_matrices(changes, compared)
    rest = []
    for kind, own in groups.items():
        if kind != main:
            names = [change.name for change in own]
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            rest.append(f"{(_MATRIX_CHANGES | _OTHER_CHANGES)[kind]} in {', '.join(names[:4])}{more}")
    rest += [
        f"{change.unexplained} entries of {change.name} that no rank-1 change explains"
        for change in groups.get(main, ())
        if change.unexplained
    ]
    if label not in ("identical", "rounded-copy"):
        rest += structure.of_the_model
    elif structure.of_the_model:
        label, others = "other", "; ".join(structure.of_the_model)
        text = f"Not the same model: {others}. The tensors that both have: {text[0].lower()}{text[1:]}"
    rest += structure.besides_it
    if unread := structure.not_looked_at:
        label, text = "partly-read", f"Read in part: {unread[0]}. The rest: {text[0].lower()}{text[1:]}"
    return Classification(label, f"{text}. Besides: {'; '.join(rest)}." if rest else f"{text}.")


def _main(name: str, group: Sequence[TensorChange], compared: int) -> tuple[Label, str]:
    tensors = len({change.tensor for change in group})
    ends = Counter(change.tensor.removesuffix(".weight").rsplit(".", 1)[-1] for change in group)
    modules = listed([end for end, _ in ends.most_common()], _MOST_NAMES)
    if name == "full-rank":
        text = f"A full fine-tune or another dense change: full-rank change in {tensors} of {compared} tensors"
        return "full-rank", text
    if name == "low-rank":
        ranks = {change.rank or 0 for change in group}
        most = f"rank {max(ranks)}" if len(ranks) == 1 else f"ranks up to {max(ranks)}"
        return "low-rank", f"A merged LoRA, or another low-rank change, of {most} in {modules}"
    recovered = [change.recovered for change in group if change.recovered is not None]
    where = f"in {tensors} output projection{'s' * (tensors != 1)} ({modules})"
    ablations = [r.ablation for r in recovered]
    if all(cosine > _ABLATION_COSINE for _, cosine in ablations):
        energies = [float(r.row.square().sum()) for r in recovered]
        strength = sum(s * e for (s, _), e in zip(ablations, energies, strict=True)) / sum(energies)
        return "directional-ablation", f"Directional ablation, ΔW = −s u uᵀW with s = {strength:.2f}, {where}"
    along = mean_along(group)
    components = sum(int(r.edited.sum()) for r in recovered)
    if along is None:
        told = f"{components} neurons (with no heads edited, only its rank and place tell)"
        return "steer2edit-like", f"A Steer2Edit-like edit: rank 1 {where}, {told}"
    if along >= ALONG:
        return "steer2edit-like", f"A Steer2Edit-like edit: rank 1 along W_iᵀu {where}, {components} heads and neurons"
    return "rank-1", f"Rank-1 edits that do not follow W_iᵀu ({along:.0%} of them along it) {where}"


def mean_along(group: Sequence[TensorChange]) -> float | None:
    """Share of the heads' change along W_iᵀu, over all sites with heads."""
    parts = [
        (along, float(r.norm.square().sum()))
        for change in group
        if (r := change.recovered) is not None and (along := r.along) is not None
    ]
    total = sum(weight for _, weight in parts)
    return sum(along * weight for along, weight in parts) / total if total else None


def _without_matrices(changes: Sequence[TensorChange], compared: int) -> tuple[Label, str]:
    real = [change for change in changes if not change.is_tiny]
    if real:
        return "other", f"No matrix was edited as a whole: {len(real)} of {compared} tensors differ otherwise"
    if not changes:
        return "identical", f"Identical: all {compared} tensors are the same bit for bit"
    if any(change.kind == "rounding" for change in changes):
        return "rounded-copy", f"The same model up to rounding: {len(changes)} of {compared} tensors differ by no more"
    formats = sorted({change.rounded_to or change.dtypes[1] for change in changes})
    return "rounded-copy", f"The same model in another number format ({', '.join(formats)})"


@dataclass(frozen=True)
class SiteMatch:
    """One site of the given edit."""

    site: Site  # which
    strength: float | None  # fitted factor of the edit; `None` where no rank-1 change was found
    # share of the entries that the edit at the common strength does not explain up to rounding, or that could not be
    # compared
    outside: float

    @property
    def matches(self) -> bool:
        """Whether the site holds the edit up to rounding."""
        return self.outside <= ALLOWED_SHARE


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
                f"{len(self.sites)} sites differ by more than rounding ({listed(differing, _MOST_NAMES)})."
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


def match_edit(edit: WeightEdit, changes: Sequence[TensorChange], structure: Structure) -> EditMatch:
    """Compare the changes of all tensors that are not identical with a given edit."""
    found = [change.recovered for change in changes if change.recovered is not None]
    edited = {site: own for site, own in edit.sites.items() if bool(own.row.any())}
    fits = {site: _fit(own, [one for one in found if one.place.site == site]) for site, own in edited.items()}
    strength = _common_strength([(fit, _energy(edited[site])) for site, fit in fits.items() if fit is not None])
    sites, unread = [], []
    for site, own in edited.items():
        places = [place for place in structure.places.matrices if place.site == site]
        pairs = [(place, structure.pair(place.tensor, place.expert)) for place in places]
        if not pairs or any(pair is None for _, pair in pairs):
            unread.append(str(site))
        sites.append(SiteMatch(site, fits[site], _outside(own, strength or 0.0, pairs)))
    elsewhere = [c.name for c in changes if not c.is_tiny and (c.place is None or c.place.site not in edited)]
    besides = [*counted(unread, "site", "of it that could not be compared"), *structure.of_the_model]
    return EditMatch(
        strength, tuple(sites), tuple(elsewhere), (*besides, *structure.not_looked_at, *structure.besides_it)
    )


def _energy(edit: SiteEdit) -> float:
    """‖a‖²."""
    return float(edit.row.double().square().sum())


def _fit(edit: SiteEdit, found: Sequence[Recovered]) -> float | None:
    """The strength s of the least-squares fit s u aᵀ of what was found in a site's matrices."""
    if not any(bool(change.row.any()) for change in found):
        return None
    u, a = edit.output_direction.double(), edit.row.double()
    return sum(float((c.direction @ u) * (c.row @ a[c.place.projection.columns])) for c in found) / _energy(edit)


def _common_strength(fits: Sequence[tuple[float, float]]) -> float | None:
    """Median of strengths with weights, or the round number that it is within noise of."""
    half, below = sum(weight for _, weight in fits) / 2, 0.0
    for strength, weight in sorted(fits):
        below += weight
        if below >= half:
            rounds = ((round(round(strength / step) * step, 6), near) for step, near in _ROUND)
            return next((value for value, near in rounds if value and abs(strength - value) < near), strength)
    return None


def _outside(edit: SiteEdit, strength: float, pairs: Sequence[tuple[StoredMatrix, MatrixPair | None]]) -> float:
    """Share of a site's entries that the edit does not explain."""
    outside = entries = 0
    for place, pair in pairs:
        u, a = edit.output_direction.float(), strength * edit.row[place.projection.columns].float()
        entries += u.numel() * a.numel()
        if pair is None:
            outside += u.numel() * a.numel()
            continue
        left, right = (a, u) if place.transposed else (u, a)
        for block in pair:
            expected = torch.outer(left[block.rows], right)
            floor = 1e-6 * expected.abs().max()  # factors are kept in float32
            outside += int(((block.change - expected).abs() > OUTSIDE * block.halfwidth + floor).sum())
    return outside / entries if entries else 1.0
