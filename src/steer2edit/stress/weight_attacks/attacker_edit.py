"""What an attacker who knows the method, but not the vectors, would take the edit for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from steer2edit.core import SteeringVectors, WeightEdit
from steer2edit.editing import compute_factors
from steer2edit.errors import DataError
from steer2edit.method import Hyperparameters, Rules
from steer2edit.models import LanguageModel, Sampling
from steer2edit.steering import benign_means, extract, find_behaviour, find_labeller, prompt_digests
from steer2edit.steering.contrast import build_contrast
from steer2edit.steering.examples import Example

MINIMUM = 8
"""Prompts of a class that an estimate is made from, at least."""


@dataclass(frozen=True)
class Estimated:
    """An edit made from other data.

    Args:
        edit: with the tested edit's hyper-parameters.
        facts: JSON-able: the preset, how many prompts, how many the tested edit's vectors had seen.
    """

    edit: WeightEdit
    facts: Mapping[str, Any]


def estimate_edit(
    model: LanguageModel,
    edit: WeightEdit,
    preset: str,
    *,
    limit: int,
    kept_out: Sequence[str] = (),
    sampling: Sampling = Sampling(max_new_tokens=24),
) -> Estimated:
    """Extract vectors from a preset's prompts that the edit's own vectors were not made from, and convert them.

    Args:
        model: the base.
        edit: whose hyper-parameters and rules are used.
        preset: of contrast data.
        limit: prompts of each class, at most.
        kept_out: digests of prompts that are not used, such as those that the attack is measured on.
        sampling: of responses that the preset does not bring.

    Raises:
        DataError: the edit does not say how it was made, or too few prompts are left.
    """
    hyperparameters, rules = settings_of(edit)
    behaviour = find_behaviour(preset)
    rows, labeller = behaviour.examples(), behaviour.labeller
    seen = set(edit.metadata.get("vectors", {}).get("prompts", ()))
    left = [row for row in rows if not _digests([row]) & {*seen, *kept_out}]
    chosen = [replace(row, split="train") for label in ("positive", "negative") for row in _of(left, label)[:limit]]
    counts = {label: len(_of(chosen, label)) for label in ("positive", "negative")}
    if min(counts.values()) < MINIMUM:
        raise DataError(
            f"only {min(counts.values())} prompts of the preset {preset!r} are left for an estimate of the edit that "
            f"is independent of it; {MINIMUM} are needed. The edit was made from the others."
        )
    contrast = build_contrast(
        preset,
        chosen,
        model,
        labeller=find_labeller(labeller) if labeller else None,
        splits=("train",),
        sampling=sampling,
    )
    vectors = extract(model, contrast)
    own = _converted(model, vectors, hyperparameters, rules)
    return Estimated(own, {"preset": preset, "responses": contrast.train.counts(), "known_prompts": len(seen)})


def settings_of(edit: WeightEdit) -> tuple[Hyperparameters, Rules]:
    """How an edit was made, from its metadata.

    Raises:
        DataError: it does not say.
    """
    try:
        return Hyperparameters(**edit.metadata["hyperparameters"]), Rules(**edit.metadata.get("rules", {}))
    except (KeyError, TypeError) as error:
        raise DataError(
            f"the edit does not say with which hyper-parameters it was made ({error}), so an attacker's estimate of it "
            "cannot be made in the same way. Convert it with this package, or leave this test out."
        ) from error


def _converted(
    model: LanguageModel, vectors: SteeringVectors, hyperparameters: Hyperparameters, rules: Rules
) -> WeightEdit:
    benign = benign_means(model) if hyperparameters.spare is not None else None
    # an attacker takes what there is, noise as well
    factors = compute_factors(model, vectors, rules, benign=benign, allow_mismatch=True, force=True)
    return factors.edits([hyperparameters])[0]


def likeness(one: WeightEdit, other: WeightEdit) -> dict[str, float]:
    """How much of an edit another one is.

    Returns:
        `cosine` of the two ΔW over all sites; `direction_cosine`, the mean of |u · û| over common sites, each weighing
        as its ‖a‖²; `left`: ‖ΔW − ΔŴ‖² / ‖ΔW‖², what remains of the one after the other is subtracted.
    """
    common = [(e, other.sites[site]) for site, e in one.sites.items() if site in other.sites]
    product = sum(float(a.output_direction @ b.output_direction) * float(a.row @ b.row) for a, b in common)
    own, theirs = (sum(float(e.row.square().sum()) for e in edit.sites.values()) for edit in (one, other))
    weight = sum(float(a.row.square().sum()) for a, _ in common)
    along = sum(abs(float(a.output_direction @ b.output_direction)) * float(a.row.square().sum()) for a, b in common)
    return {
        "cosine": product / (own * theirs) ** 0.5 if own and theirs else 0.0,
        "direction_cosine": along / weight if weight else 0.0,
        "left": (own + theirs - 2 * product) / own if own else 0.0,
    }


def _digests(rows: Sequence[Example]) -> set[str]:
    return set(prompt_digests(row.prompt for row in rows))


def _of(rows: Sequence[Example], label: str) -> list[Example]:
    return [row for row in rows if row.label == label]
