"""From steering vectors to weight edits: the method applied to every site of a model."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from steer2edit.core import TUNED_BLOCKS, Block, Site, SiteEdit, SiteMeans, SteeringVectors, WeightEdit
from steer2edit.errors import InvalidValueError, MismatchError, NoiseError
from steer2edit.method.effect import EffectFactors, largest_effect
from steer2edit.method.hyperparameters import PAPER_RULES, Hyperparameters, Rules
from steer2edit.method.rule import SiteFactors, joined, site_factors
from steer2edit.models import LanguageModel, recorded_chat
from steer2edit.steering.diagnosis import noisy_sites, require_signal
from steer2edit.steering.effects import NATURAL

MIN_TOKENS = 32
"""Tokens that an expert must have been given, over both classes, to be edited."""
PREVIEW_ROWS = "preview"
"""Where vectors' metadata keep rows to look at an edit with. An edit's have them not: it may be published."""
REPRODUCED = 0.1
"""Median cosine over sites of the effects of two halves of the responses, below which they are noise."""
_NOTHING_LEFT = (
    "no component is left that has an input direction and is not left out. Leave out --min-expert-tokens, or edit the "
    "other block too"
)


@dataclass(frozen=True)
class Factors:
    """u, k and g of every site, or u and effects, from which any number of configurations follow at almost no cost."""

    sites: Mapping[Site, SiteFactors | EffectFactors]  # the factors by site, float32, on the CPU
    metadata: Mapping[str, Any] = field(default_factory=dict)  # passed on to every edit
    # sites whose vectors are noise; an edit's metadata name those that it has (`noisy_sites`)
    noisy: frozenset[Site] = frozenset()
    force: bool = False  # edit blocks whose vectors are all noise

    def edit(self, hyperparameters: Hyperparameters) -> WeightEdit:
        """The edit of one configuration, as `edits`; an InvalidValueError that says what would edit something."""
        edit = self.edits([hyperparameters])[0]
        if edit.is_empty:
            raise InvalidValueError(f"{hyperparameters} changes nothing: {self._why_empty(hyperparameters)}")
        return edit

    def edits(self, configurations: Sequence[Hyperparameters]) -> list[WeightEdit]:
        """The edits of many configurations, which may be empty; each site's are computed in one product.

        Raises:
            MismatchError: a configuration edits no site, because the vectors cover no block that is on.
            NoiseError: the vectors of a block that is on are all noise.
        """
        per_configuration: list[dict[Site, SiteEdit]] = [{} for _ in configurations]
        for site, factors in self.sites.items():
            settings = [(h.rho(site.tuned_block), h.alpha) for h in configurations]
            distinct = [s for s in dict.fromkeys(settings) if s[0] is not None]  # the other block's ρ is not seen
            if not distinct:
                continue
            edits = dict(zip(distinct, factors.edits(*map(list, zip(*distinct, strict=True))), strict=True))
            for own, setting in zip(per_configuration, settings, strict=True):
                if setting in edits:
                    own[site] = edits[setting]
        found = []
        for h, sites in zip(configurations, per_configuration, strict=True):
            if not sites:
                raise MismatchError(f"{h}: the vectors have no site of a block that is on; nothing to edit.")
            self.require_signal(sites)
            noisy = [str(site) for site in sites if site in self.noisy]
            named = {"noisy_sites": noisy} if noisy else {}
            found.append(WeightEdit(sites, {**self.metadata, **named, "hyperparameters": h.to_json()}))
        return found

    def require_signal(self, sites: Iterable[Site]) -> None:
        """Refuse blocks whose vectors are all noise with a NoiseError, unless that was waived."""
        if not self.force:
            require_signal(self.noisy, sites)

    def _why_empty(self, h: Hyperparameters) -> str:
        reasons = []
        for block in TUNED_BLOCKS:
            rho, alpha = h.rho(block), h.alpha
            found = (f.largest_importance for site, f in self.sites.items() if site.tuned_block == block)
            largest = max(found, default=0.0)
            if rho is not None and 0 < largest <= rho * alpha:
                scale = 10.0 ** (2 - math.floor(math.log10(largest / alpha)))  # to three digits, rounded down
                reasons.append(
                    f"|g| of {block} is at most {largest:.3g}, and only components above ρα = {rho * alpha:.3g} are "
                    f"edited. Give rho_{block} (--rho-{block}) below {math.floor(largest / alpha * scale) / scale:.3g}"
                    " at this α"
                )
        return "; ".join(reasons or [_NOTHING_LEFT]) + "."


def natural_strength(edit: WeightEdit) -> float | None:
    """The strength at which an edit of effects adds 16 nats to the decision, to first order; `None` of others.

    Its λ are what its components add. On SmolLM2 that is about KL .002, where a search for a drift may begin.
    """
    if edit.metadata.get("rules", {}).get("importance") != "effect":
        return None
    gained = sum(own.magnitude.double().sum().item() for own in edit.sites.values())
    return NATURAL / gained if gained > 0 else None


def compute_factors(
    model: LanguageModel,
    vectors: SteeringVectors,
    rules: Rules = PAPER_RULES,
    *,
    min_tokens: int = MIN_TOKENS,
    allow_mismatch: bool = False,
    allow_missing: bool = False,
    force: bool = False,
) -> Factors:
    """Factors of every site the vectors cover; a site that they lack is not edited (`allow_missing`).

    An expert of a mixture that was given fewer than `min_tokens` is left out: its mean input is not known well enough.
    Which were, the edits' metadata say (`experts_left_out`). A NoiseError where the diagnosis calls all vectors noise
    (unless `force`), a MismatchError where they are of another model or lack what the rules need.
    """
    model.require_fit(vectors, allow_mismatch=allow_mismatch, allow_missing=allow_missing)
    noisy = noisy_sites(vectors)
    if not force and noisy == vectors.sites.keys():
        require_signal(noisy, vectors.sites)
    lacking = [str(site) for site, means in vectors.sites.items() if means.input is None]
    if lacking:
        raise MismatchError(
            f"these vectors have no input means for {len(lacking)} sites ({lacking[0]}, ...), which a conversion "
            "needs. Measure them from a contrast set in the same call: --contrast BEHAVIOUR|FOLDER|FILE "
            "(contrast=...)."
        )
    by_effect = rules.importance == "effect"
    if by_effect and (lacking := [str(site) for site, means in vectors.sites.items() if means.effects is None]):
        raise MismatchError(
            f"these vectors have no measured effects for {len(lacking)} sites ({lacking[0]}, ...), which the rule "
            "effect is made of. Extract them with --effects (effects=True)."
        )
    left_out = {site: _left_out(model, site, means, min_tokens) for site, means in vectors.sites.items()}
    sites = _by_effect(model, vectors, rules, left_out, force) if by_effect else {
        site: _by_rule(model, vectors, site, rules, left_out[site]) for site in vectors.sites
    }  # fmt: skip
    named = {
        str(site): {sizes.names[expert]: tokens for expert, tokens in own.items()}
        for site, own in left_out.items()
        if own and (sizes := model.sites[site].sizes) is not None
    }
    made_with = recorded_chat(vectors.metadata)
    metadata = {
        "method": "steer2edit",
        "rules": rules.to_json(),
        "model": {**model.describe(), **({"chat": dict(made_with)} if made_with else {})},
        "vectors": {**{k: v for k, v in vectors.metadata.items() if k != PREVIEW_ROWS}, "sha256": vectors.digest()},
        **({"experts_left_out": {"min_tokens": min_tokens, "sites": named}} if named else {}),
        **({"left_out": list(model.structure.left_out)} if model.structure.left_out else {}),
    }
    return Factors(sites, metadata, noisy, force)


def _by_effect(
    model: LanguageModel, vectors: SteeringVectors, rules: Rules, left_out: Mapping[Site, Iterable[int]], force: bool
) -> dict[Site, EffectFactors]:
    """Factors from the measured effects of the columns, in units of the largest effect within each block."""
    gated = rules.input_direction == "gated"
    if not force:
        _require_reproducible(vectors, gated)
    found: dict[Site, EffectFactors] = {}
    largest: dict[Block, float] = {}
    for site, means in vectors.sites.items():
        assert means.effects is not None
        wanted = (means.effects.gated if gated else means.effects.attribute).clone()
        module = model.sites[site]
        for expert in left_out[site]:
            wanted[module.projections[expert].columns] = 0
        components = wanted.numel() // module.component_width
        largest[site.tuned_block] = max(largest.get(site.tuned_block, 0.0), largest_effect(wanted, components))
        found[site] = EffectFactors(
            means.effects.direction, wanted, means.effects.attribute, means.effects.drift, components, 0.0,
            None if means.tokens is None else module.sizes,
        )  # fmt: skip
    return {site: replace(own, largest=largest[site.tuned_block]) for site, own in found.items()}


def _require_reproducible(vectors: SteeringVectors, gated: bool) -> None:
    """Refuse effects and gates that say nothing of other data."""
    gate = vectors.metadata.get("effects", {}).get("gate", {})
    if gated and (low := gate.get("auroc_low")) is not None and low <= 0.5:
        raise NoiseError(
            "the gate tells requests apart that it was not made from no better than chance (AUROC "
            f"{gate['auroc']:.2f}, 95 % from {low:.2f}). Give more, or edit all the same: --force (force=True)."
        )
    agreement = statistics.median(means.effects.agreement for means in vectors.sites.values() if means.effects)
    if agreement < REPRODUCED:
        raise NoiseError(
            f"the effects that two halves of the responses show do not agree (median cosine {agreement:.2f}, at least "
            f"{REPRODUCED} is needed). Give more responses, or edit all the same: --force (force=True)."
        )


def _left_out(model: LanguageModel, site: Site, means: SiteMeans, min_tokens: int) -> dict[int, int]:
    """Which of a site's experts were given too few tokens, and how many those were."""
    if model.sites[site].experts is None:
        return {}
    if means.seen is None:
        raise MismatchError(
            f"{site} is a mixture of experts, and these vectors do not say how many tokens each expert was given. "
            "Measure it from a contrast set: extract again, or --contrast BEHAVIOUR|FOLDER|FILE (contrast=...)."
        )
    return {expert: seen for expert, seen in enumerate(means.seen) if seen < min_tokens}


def _by_rule(
    model: LanguageModel, vectors: SteeringVectors, site: Site, rules: Rules, left_out: Iterable[int]
) -> SiteFactors:
    """Factors from the weights of a site."""
    module, means = model.sites[site], vectors.sites[site]
    assert means.input is not None
    if not bool(means.steering_vector.any()):
        raise InvalidValueError(
            f"{site}: the steering vector is zero, so it has no direction. The positive and negative responses "
            "gave the same mean there: check the contrast set, or leave the site out of the vectors."
        )
    parts = []
    with module.in_memory():
        for projection in module.projections:
            columns, device = projection.columns, projection.device
            v, mean = means.steering_vector.to(device), means.input.midpoint[columns].to(device)
            parts.append(site_factors(projection.weight, v, mean, module.component_width, rules))
    if module.sizes is None or means.tokens is None:
        return parts[0]
    factors = joined(parts, module.sizes)
    for expert in left_out:
        factors.input_directions[module.projections[expert].columns] = 0
    return factors


def convert(
    model: LanguageModel,
    vectors: SteeringVectors,
    hyperparameters: Hyperparameters,
    rules: Rules = PAPER_RULES,
    **options: Any,
) -> WeightEdit:
    """The weight edit of one configuration: `compute_factors`, with its options, and `Factors.edit` in one call."""
    return compute_factors(model, vectors, rules, **options).edit(hyperparameters)
