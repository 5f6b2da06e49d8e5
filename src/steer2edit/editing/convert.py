"""From steering vectors to weight edits: the method applied to every site of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steer2edit.core import Site, SiteEdit, SteeringVectors, WeightEdit
from steer2edit.errors import InvalidValueError, MismatchError
from steer2edit.method import PAPER_RULES, Hyperparameters, Rules, SiteFactors, site_factors
from steer2edit.models import LanguageModel
from steer2edit.steering.steered import require_fit


@dataclass(frozen=True)
class Factors:
    """u, k and g of every site, from which any number of configurations follow at almost no cost.

    Args:
        sites: the factors by site, float32, on the CPU.
        metadata: passed on to every edit.
    """

    sites: Mapping[Site, SiteFactors]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def edit(self, hyperparameters: Hyperparameters) -> WeightEdit:
        """The edit of one configuration."""
        return self.edits([hyperparameters])[0]

    def edits(self, configurations: Sequence[Hyperparameters]) -> list[WeightEdit]:
        """The edits of many configurations; each site's are computed in one product.

        Raises:
            MismatchError: a configuration edits no site, because the vectors cover no block that is on.
        """
        per_configuration: list[dict[Site, SiteEdit]] = [{} for _ in configurations]
        for site, factors in self.sites.items():
            settings = [(rho, h.alpha, h.max_shift) for h in configurations if (rho := h.rho(site.block)) is not None]
            if not settings:
                continue
            distinct = list(dict.fromkeys(settings))  # a site does not see the other block's ρ
            rho_values, alphas, max_shifts = (list(column) for column in zip(*distinct, strict=True))
            edits = dict(zip(distinct, factors.edits(rho_values, alphas, max_shifts), strict=True))
            for own, h in zip(per_configuration, configurations, strict=True):
                if (rho := h.rho(site.block)) is not None:
                    own[site] = edits[rho, h.alpha, h.max_shift]
        return [self._assemble(*pair) for pair in zip(configurations, per_configuration, strict=True)]

    def _assemble(self, hyperparameters: Hyperparameters, sites: dict[Site, SiteEdit]) -> WeightEdit:
        if not sites:
            raise MismatchError(f"{hyperparameters}: the vectors have no site of a block that is on; nothing to edit.")
        return WeightEdit(sites, {**self.metadata, "hyperparameters": hyperparameters.to_json()})


def compute_factors(
    model: LanguageModel,
    vectors: SteeringVectors,
    rules: Rules = PAPER_RULES,
    *,
    allow_mismatch: bool = False,
    allow_missing: bool = False,
) -> Factors:
    """Factors of every site the vectors cover.

    Args:
        model: whose weights are read.
        vectors: with input means.
        rules: which k, g and λ.
        allow_mismatch: accept vectors of a model with another fingerprint.
        allow_missing: accept vectors that lack sites; those are not edited.

    Raises:
        MismatchError: vectors of another model or shape, without some sites, or without input means.
        InvalidValueError: a steering vector is zero; the message names the site.
    """
    require_fit(model, vectors, allow_mismatch=allow_mismatch, allow_missing=allow_missing)
    lacking = [str(site) for site, means in vectors.sites.items() if means.input is None]
    if lacking:
        raise MismatchError(
            f"these vectors have no input means for {len(lacking)} sites ({lacking[0]}, ...), which a conversion "
            "needs. Measure them from a contrast set in the same call: --contrast PRESET|FILE "
            "(steer2edit.measure_inputs)."
        )
    sites = {site: _factors_of(model, vectors, site, rules) for site in vectors.sites}
    metadata = {
        "method": "steer2edit",
        "rules": rules.to_json(),
        "model": model.describe(),
        "vectors": {**vectors.metadata, "sha256": vectors.digest()},
    }
    return Factors(sites, metadata)


def _factors_of(model: LanguageModel, vectors: SteeringVectors, site: Site, rules: Rules) -> SiteFactors:
    projection, means = model.sites[site], vectors.sites[site]
    assert means.input is not None
    v = means.steering_vector
    if not bool(v.any()):
        raise InvalidValueError(
            f"{site}: the steering vector is zero, so it has no direction. The positive and negative responses "
            "gave the same mean there: check the contrast set, or leave the site out of the vectors."
        )
    device = projection.device
    factors = site_factors(
        projection.weight, v.to(device), means.input.midpoint.to(device), projection.component_width, rules
    )
    return factors.cpu()


def convert(
    model: LanguageModel,
    vectors: SteeringVectors,
    hyperparameters: Hyperparameters,
    rules: Rules = PAPER_RULES,
    *,
    allow_mismatch: bool = False,
    allow_missing: bool = False,
) -> WeightEdit:
    """The weight edit of one configuration: `compute_factors` and `Factors.edit` in one call."""
    factors = compute_factors(model, vectors, rules, allow_mismatch=allow_mismatch, allow_missing=allow_missing)
    return factors.edit(hyperparameters)
