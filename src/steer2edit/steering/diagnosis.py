"""Is a steering vector a signal or noise? Split-half agreement and held-out separability, per site."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import BaseModel, BeforeValidator, ConfigDict, FiniteFloat
from scipy import optimize, stats
from torch import Tensor

from steer2edit.core import TUNED_BLOCKS, Site, SteeringVectors
from steer2edit.errors import NoiseError
from steer2edit.models import LanguageModel, encode_responses, span_means
from steer2edit.steering.contrast import ContrastSet, Pair

MINIMAL_COSINE = 0.5
_Z = float(stats.norm.ppf(0.975))


@dataclass(frozen=True)
class SiteDiagnosis:
    """How far one site's vector can be trusted."""

    norm: FiniteFloat  # ‖v‖
    # of the vectors from the two halves of the training responses; `None` with fewer than two responses in a class
    split_half_cosine: FiniteFloat | None
    # how often a positive held-out response projects further along v than a negative one; `None` without any
    auroc: FiniteFloat | None
    auroc_low: FiniteFloat | None  # of its 95 % interval
    auroc_high: FiniteFloat | None

    @property
    def noise(self) -> bool:
        """Whether the halves disagree (cosine < 0.5), or the interval of the AUROC reaches down to 0.5."""
        disagree = self.split_half_cosine is not None and self.split_half_cosine < MINIMAL_COSINE
        return disagree or (self.auroc_low is not None and self.auroc_low <= 0.5)

    def to_json(self) -> dict[str, Any]:
        """All fields and the verdict."""
        return {**asdict(self), "noise": self.noise}


SiteName = Annotated[Site, BeforeValidator(lambda name: Site.parse(name) if isinstance(name, str) else name)]


class Diagnosis(BaseModel):
    """The diagnosis of the steering vectors by site, as `diagnose` gives it; beside another direction's, the mean's."""

    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True)

    summary: str = ""
    counts: dict[str, dict[str, int]] = {}
    sites: dict[SiteName, SiteDiagnosis] = {}
    mean: "Diagnosis | None" = None


def diagnose(
    model: LanguageModel,
    vectors: SteeringVectors,
    half_vectors: Mapping[int, Mapping[Site, Float[Tensor, " d"] | None]],
    contrast: ContrastSet,
    batch_tokens: int,
) -> dict[str, Any]:
    """Diagnosis of every site: `{"summary": sentence, "counts": ..., "sites": {"L0.attn": {...}}}`.

    `half_vectors` are from each half of the training responses; held-out responses are the contrast's validation part.
    """
    held_out = contrast.validation
    positive, negative = _projections(model, vectors, (held_out.positive, held_out.negative), batch_tokens)
    sites = {}
    for site, means in vectors.sites.items():
        one, other = half_vectors[0][site], half_vectors[1][site]
        cosine = None
        if one is not None and other is not None:
            cosine = torch.nn.functional.cosine_similarity(one, other, dim=0).item()
        separability = auroc(positive[site], negative[site])
        sites[str(site)] = SiteDiagnosis(means.steering_vector.norm().item(), cosine, *separability)
    return {
        "summary": _summary(sites),
        "counts": {"train": contrast.train.counts(), "held_out": held_out.counts()},
        "sites": {name: site.to_json() for name, site in sites.items()},
    }


def noisy_sites(vectors: SteeringVectors) -> frozenset[Site]:
    """The sites whose vectors the diagnosis calls noise; none without a diagnosis."""
    judged = (vectors.diagnosis or {}).get("sites", {})
    return frozenset(site for site in vectors.sites if judged.get(str(site), {}).get("noise"))


def require_signal(noisy: Collection[Site], sites: Iterable[Site]) -> None:
    """A NoiseError where a block (`attn` with `ssm`, `mlp`) is to be edited and all its vectors are noise."""
    wanted = list(sites)
    for block in TUNED_BLOCKS:
        members = [site for site in wanted if site.tuned_block == block]
        if members and set(members) <= set(noisy):
            raise NoiseError(
                f"noise: held-out responses confirm the steering vector of none of the {len(members)} {block} sites "
                f"({listed(members)}). Make vectors from more responses, or from a contrast that differs in the "
                f"behaviour alone; leave {block} out; or edit with them all the same: --force (force=True)."
            )


def listed(names: Collection[object], most: int = 8) -> str:
    """The first names, with commas between."""
    return ", ".join(map(str, list(names)[:most])) + (", ..." if len(names) > most else "")


def _projections(
    model: LanguageModel, vectors: SteeringVectors, classes: Sequence[Sequence[Pair]], batch_tokens: int
) -> list[dict[Site, list[float]]]:
    """By class, each response's mean output along v, up to a constant: `v · ȳ = (Wᵀ v) · x̄ + v · b`."""
    directions = {s: m.steering_vector.to(model.sites[s].device) for s, m in vectors.sites.items()}
    rows = {s: model.sites[s].weight.float().T @ v for s, v in directions.items() if not model.sites[s].experts}
    found = []
    for pairs in classes:
        projections: dict[Site, list[float]] = {site: [] for site in vectors.sites}
        encoded = encode_responses(model, pairs, vectors.metadata.get("span_part", "response"))
        for batch in span_means(model, encoded, batch_tokens=batch_tokens, description="Diagnosing"):
            for site in batch.sites.keys() & directions.keys():
                means = batch.sites[site]
                along = means.input @ rows[site] if means.output is None else means.output @ directions[site]
                projections[site] += along.tolist()
        found.append(projections)
    return found


def auroc(positive: Sequence[float], negative: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Area under the ROC curve with a 95 % interval: (value, low, high), all `None` if a class is empty or a
    value is not finite.

    The interval inverts a score test: its ends are the θ with |A − θ| = z √V(θ), where
    V(θ) = θ(1−θ) [1 + N (1−θ)/(2−θ) + N θ/(1+θ)] / (n₁ n₂) and N = (n₁+n₂)/2 − 1, so it stays inside [0, 1] and
    has a width even where every positive is above every negative.

    Source: Newcombe (2006), Statistics in Medicine 25:559-573, method 5.
    """
    n1, n2 = len(positive), len(negative)
    if not n1 or not n2 or not all(map(math.isfinite, (*positive, *negative))):
        return None, None, None
    area = float(stats.mannwhitneyu(positive, negative).statistic) / (n1 * n2)

    def distance(theta: float) -> float:
        spread = 1 + ((n1 + n2) / 2 - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return abs(area - theta) - _Z * math.sqrt(theta * (1 - theta) * spread / (n1 * n2))

    # at 0 and at 1 both ends of a bracket would be roots
    low = optimize.brentq(distance, 0, min(area, 1 - 1e-12)) if area > 0 else 0.0
    high = optimize.brentq(distance, max(area, 1e-12), 1) if area < 1 else 1.0
    return area, float(low), float(high)


def _summary(sites: Mapping[str, SiteDiagnosis]) -> str:
    noisy = [name for name, site in sites.items() if site.noise]
    unjudged = [n for n, s in sites.items() if s.split_half_cosine is None and s.auroc is None]
    if len(unjudged) == len(sites):
        return "The vectors could not be judged: there are too few responses to split, and none held out."
    if not noisy:
        return f"All {len(sites)} sites carry a signal."
    if len(noisy) == len(sites):
        return (
            f"NOISE: none of the {len(sites)} sites carries a signal that held-out responses confirm. Do not edit with "
            "these vectors: use more responses, or a contrast that differs in the behaviour alone."
        )
    return f"{len(sites) - len(noisy)} of {len(sites)} sites carry a signal; noise ({len(noisy)}): {listed(noisy)}."
