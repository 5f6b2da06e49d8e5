"""Is the behaviour carried by the components that the edit names? Parts of the edit, and controls of the same size.

Shapes: m = width of a site's input, n = components of the site, w = m / n their width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steer2edit.core import Editing, Intervention, Site, SiteEdit, WeightEdit
from steer2edit.errors import InvalidValueError
from steer2edit.estimates import PERCENT, Estimate, Value
from steer2edit.evaluation.statistics import mean_of, paired, paired_rate_difference, share_of_gain
from steer2edit.method.rule import unit_rows
from steer2edit.models import LanguageModel
from steer2edit.stress.findings import Finding, Outcome, StressResult
from steer2edit.stress.subject import Subject, ask, by_arm
from steer2edit.stress.verdicts import plain_outcome, signed

MARGIN = 0.1
"""Differences of refusal rates whose whole interval is below this, and below a third of the gain, count as none."""
_CONTROL = {
    "held": "a control as it must be",
    "failed": "no control, for it does what the edit does",
    "open": "not distinguishable from the edit",
}

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


def components(subject: Subject, top: int = 10, quick_draws: int = 2, full_draws: int = 3) -> StressResult:
    """The gain of the top-n components, of all but them, of random ones, and of the same magnitudes shuffled.

    Lines on the whole edit, and on each n and its controls: n is `top`, at most half of the edited components, and in
    the full suite also a quarter and half of them. Of random components there are `quick_draws` or `full_draws`, and
    half as many shuffles, rounded up.
    """
    base, edited, counts = subject.base, subject.edited, counts_of(subject, top)
    parts = [Part("edit", edited, subject.edit)]
    if counts:
        directions = input_directions_of(subject.model, subject.edit)
        parts += parts_of(subject.edit, counts, directions, subject.pick(quick_draws, full_draws), subject.seed)
    arms: dict[str, Intervention] = {part.label: Editing(part.edit, subject.strength) for part in parts}
    replies = ask(subject, subject.sample(subject.harmful), arms={base: subject.arms[0].intervention, **arms})
    refused = replies.refused
    gain = paired(refused[edited], refused[base])
    outcome = plain_outcome(gain, none_below=MARGIN)
    end = _end(outcome, "there is a gain to attribute", "there is no gain to attribute")
    sentence = f"The whole edit refuses {signed(gain)} more harmful requests than the base: {end}."
    findings = [Finding("edit", "refused", {arm: refused[arm] for arm in (base, edited)}, outcome, sentence)]
    for count in counts:
        found = _Pooled(subject, refused, [part for part in parts if part.top in (None, count)]).findings(count)
        findings += found if count == counts[0] else found[:-1]  # shuffles are the same for every n
    return StressResult(findings, by_arm({"harmful": replies}))


def counts_of(subject: Subject, top: int = 10) -> list[int]:
    """The n that are tested, smallest first; none if the edit edits nothing."""
    edited = edited_count(subject.edit)
    wanted = [top, *subject.pick([], [round(share * edited) for share in (0.25, 0.5)])]
    return sorted({max(1, min(n, edited // 2)) for n in wanted}) if edited else []


def _end(outcome: Outcome, claim: str, denial: str) -> str:
    """How a sentence ends."""
    return {"held": claim, "failed": denial}.get(outcome, f"whether {claim} is inconclusive")


@dataclass(frozen=True)
class _Pooled:
    """Refusals under the parts of one n, draws of a kind averaged item by item."""

    subject: Subject  # for the labels of base and edit
    refused: Mapping[str, Sequence[Value]]  # by arm
    parts: Sequence[Part]  # the edit, its shuffles, and the parts of this n

    def findings(self, n: int) -> list[Finding]:
        """The top n, all but them, random components, and last the shuffled magnitudes: what each carries."""
        better = paired_rate_difference(self.values("top"), self.values("random"))
        needed = paired_rate_difference(self.values("edit"), self.values("rest"))
        (top, shown), (_, random), (_, rest) = self.share("top"), self.share("random"), self.share("rest")
        carried, lacking, most = self.verdict(better), self.verdict(needed), ""
        if carried == "held":
            most = ", and most of it" if top.above(0.5) else ", but not most of it" if top.below(0.5) else ""
        more, no_more = (f"the named components carry {much} than others" for much in ("more", "no more"))
        needs, without = "the named components are needed for it", "the others carry it without the named ones"
        first = (
            f"The {n} components of largest |λ| (of {edited_count(self.subject.edit)}) carry {shown} of the gain, "
            f"{n} random ones {random}; top − random: {signed(better)}: {_end(carried, more, no_more)}{most}."
        )
        second = (
            f"All but the {n} carry {rest} of the gain; without the {n} it is lower by {signed(needed)}: "
            f"{_end(lacking, needs, without)}."
        )
        return [
            self.finding(f"top-{n}", ("top", "random"), carried, first),
            self.finding(f"all-but-top-{n}", ("rest",), lacking, second),
            self.control(f"random-{n}", "random", f"{n} random components with the same magnitudes"),
            self.control("shuffled", "shuffled", "The same magnitudes, shuffled,"),
        ]

    def labels(self, kind: Kind) -> list[str]:
        """Labels of the parts of a kind."""
        return [part.label for part in self.parts if part.kind == kind]

    def values(self, kind: Kind | None = None) -> list[Value]:
        """Values of a kind, over its draws; of the base, if of no kind."""
        own = [self.refused[label] for label in (self.labels(kind) if kind else [self.subject.base])]
        return list(own[0]) if len(own) == 1 else mean_of(own)

    def share(self, kind: Kind) -> tuple[Estimate, str]:
        """Share of the edit's gain, and in words: `58 % [48, 67]`."""
        base = self.values()
        found = share_of_gain(self.values(kind), base, self.values("edit"), base)
        return found, "an unknown share" if found.value is None else PERCENT.text(found)

    def verdict(self, difference: Estimate) -> Outcome:
        """held: the difference is above 0; failed: it is below the margin; open: neither, or there is no gain."""
        gain = paired(self.values("edit"), self.values())
        none = min(MARGIN, (gain.value or 0.0) / 3)
        return plain_outcome(difference, none_below=none) if gain.above(0) else "open"

    def finding(self, name: str, kinds: Sequence[Kind], outcome: Outcome, sentence: str) -> Finding:
        """A line with the arms of these kinds."""
        arms = [self.subject.base, self.subject.edited, *(label for kind in kinds for label in self.labels(kind))]
        note = "" if all(part.unedited for part in self.parts) else "Some random ones are edited, for few are not."
        values = {arm: self.refused[arm] for arm in arms}
        return Finding(name, "refused", values, outcome, sentence, note, judged=self.labels(kinds[0]))

    def control(self, name: str, kind: Kind, what: str) -> Finding:
        """A line of a control, which must carry less than the edit."""
        less = paired_rate_difference(self.values("edit"), self.values(kind))
        own, outcome = paired_rate_difference(self.values(kind), self.values()), self.verdict(less)
        sentence = f"{what} gain {signed(own)}, less than the edit by {signed(less)}: {_CONTROL[outcome]}."
        return self.finding(name, [kind], "control" if outcome == "held" else outcome, sentence)
