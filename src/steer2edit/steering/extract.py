"""Extraction: steering vectors and input means from a contrast set, in one pass with running sums only.

Shapes: b = rows of a batch, d, m = width of a site's output and input, e = matrices of a mixture of experts.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steer2edit.core import ClassMeans, Site, SiteMeans, SteeringVectors
from steer2edit.errors import InvalidValueError, did_you_mean
from steer2edit.models import SPAN_RULE, BatchMeans, LanguageModel, encode_responses, mean_output, span_means
from steer2edit.models.batching import DEFAULT_BATCH_TOKENS
from steer2edit.steering.contrast import ContrastSet
from steer2edit.steering.diagnosis import diagnose
from steer2edit.steering.directions import KINDS, Halves, OutputRows, directions
from steer2edit.steering.examples import prompt_digests


class RunningMeans:
    """Sums over the responses of one class, for even and odd responses apart, and their means.

    Each response weighs the same; of an expert, each token that was routed to it. Sums are in float64, and memory does
    not depend on how many responses there are. `half` is 0 for the even ones, 1 for the odd ones, `None` for all.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._rows: set[int] = set()
        self._sums: dict[tuple[object, str], Float[Tensor, "2 _n"]] = {}

    def add(self, batch: BatchMeans) -> None:
        """Add one batch of responses, or what one layer gives for it."""
        member = torch.nn.functional.one_hot(torch.tensor(batch.rows) % 2, 2).T.double()
        self._rows.update(batch.rows)
        for site, means in batch.sites.items():
            inputs = means.input
            if means.tokens is not None and means.output is not None:
                inputs = inputs * self._by_column(site, means.tokens)
                self._add(member, (site, "output"), means.output)
                self._add(member, (site, "tokens"), means.tokens)
            self._add(member, (site, "input"), inputs)
        for layer, output in batch.blocks.items():
            self._add(member, (layer, "block"), output)

    def _add(self, member: Float[Tensor, "2 b"], key: tuple[object, str], values: Float[Tensor, "b _n"]) -> None:
        total = member @ values.cpu().double()
        self._sums[key] = self._sums[key] + total if key in self._sums else total

    def count(self, half: int | None = None) -> int:
        """How many responses were added."""
        return sum(half is None or row % 2 == half for row in self._rows)

    def input(self, site: Site, half: int | None = None) -> Float[Tensor, " m"]:
        """x̄: mean over responses; of an expert, over the tokens routed to it (0 without any)."""
        total = self._sum((site, "input"), half)
        if (site, "tokens") not in self._sums:
            return total / self.count(half)
        return total / self._by_column(site, self._sum((site, "tokens"), half)[None])[0].clamp(min=1)

    def output(self, site: Site, half: int | None = None) -> Float[Tensor, " d"]:
        """ȳ: mean over responses."""
        if (site, "output") in self._sums:
            return self._sum((site, "output"), half) / self.count(half)
        return mean_output(self._model, site, self.input(site, half)).cpu()

    def block_output(self, layer: int) -> Float[Tensor, " d"]:
        """Mean output of a whole layer over responses."""
        return self._sum((layer, "block")) / self.count()

    def tokens(self, site: Site) -> Float[Tensor, " e"] | None:
        """How many tokens each expert of a site was given; `None` for a dense site."""
        return self._sum((site, "tokens")) if (site, "tokens") in self._sums else None

    def reached(self, site: Site) -> Bool[Tensor, " m"]:
        """Which columns of a mixture's input are of an expert that was given any token."""
        return self._by_column(site, self._sum((site, "tokens"))[None])[0] > 0

    def _sum(self, key: tuple[object, str], half: int | None = None) -> Float[Tensor, " _n"]:
        sums = self._sums[key]
        return sums.sum(dim=0) if half is None else sums[half]

    def _by_column(self, site: Site, values: Float[Tensor, "b e"]) -> Float[Tensor, "b m"]:
        """A value of each expert, repeated for each of its neurons."""
        sizes = self._model.sites[site].sizes
        assert sizes is not None
        return values.repeat_interleave(torch.tensor(sizes.widths, device=values.device), dim=1)


ClassSums = tuple[RunningMeans, RunningMeans]


def extract(
    model: LanguageModel,
    contrast: ContrastSet,
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    block_outputs: bool = False,
    direction: str = "mean",
    span: str = "response",
) -> SteeringVectors:
    """Steering vectors `v = ȳ_pos − ȳ_neg` of every site, with input means and a diagnosis.

    Per response, the mean over its span; per class, the mean over responses, each weighing the same. Outputs follow
    from inputs, `ȳ = W x̄ + b`; a mixture of experts has the output of the whole block, and each expert's mean input
    over the tokens routed to it. `direction` is the paper's `mean`, or another one of `directions`, beside which the
    diagnosis has the mean's; `span` what of a response is averaged: it, its `thought`, its `answer`, or its first `16`
    tokens. Source: Eq. 1 and Appendix B; the span is that of the official code.
    """
    if direction not in KINDS:
        raise InvalidValueError(f"unknown direction {direction!r}. {did_you_mean(direction, KINDS)}")
    train = contrast.train
    rows = (OutputRows(model, len(train.positive)), OutputRows(model, len(train.negative)))
    keep = rows if direction != "mean" else ()
    sums = _class_sums(model, contrast, span, batch_tokens, "Extracting", block_outputs=block_outputs, rows=keep)
    sites: dict[Site, SiteMeans] = {}
    half_vectors: Halves = {0: {}, 1: {}}
    for site, module in model.sites.items():
        with module.in_memory():
            sites[site] = _site_means(sums, site)
            for half, vector_of in half_vectors.items():
                enough = all(running.count(half) for running in sums)
                vector_of[site] = sums[0].output(site, half) - sums[1].output(site, half) if enough else None
    layers = range(len(model.layers)) if block_outputs else ()
    blocks = {layer: ClassMeans(*(running.block_output(layer).float() for running in sums)) for layer in layers}
    metadata = {
        "model": model.describe(),
        "contrast": contrast.describe(),
        "prompts": prompt_digests(prompt for prompt, _ in (*train.positive, *train.negative)),
        "span": SPAN_RULE,
        **({} if span == "response" else {"span_part": span}),
        "dtype": str(model.dtype).removeprefix("torch."),
        **({"left_out": list(model.structure.left_out)} if model.structure.left_out else {}),
    }
    vectors = SteeringVectors(sites, metadata, block_outputs=blocks or None)
    diagnosis = diagnose(model, vectors, half_vectors, contrast, batch_tokens)
    if direction == "mean":
        return replace(vectors, diagnosis=diagnosis)
    found, halves = directions(direction, train, *rows)
    own = {s: replace(m, output=ClassMeans.of_direction(found[s], str(s))) for s, m in vectors.sites.items()}
    vectors = replace(vectors, sites=own, metadata={**vectors.metadata, "direction": direction})
    return replace(vectors, diagnosis={**diagnose(model, vectors, halves, contrast, batch_tokens), "mean": diagnosis})


def measure_inputs(model: LanguageModel, vectors: SteeringVectors, contrast: ContrastSet) -> SteeringVectors:
    """Fill in the input means that vectors made elsewhere lack, from a contrast set; those that are known stay."""
    model.require_fit(vectors, allow_mismatch=True)
    span = vectors.metadata.get("span_part", "response")
    sums = _class_sums(model, contrast, span, DEFAULT_BATCH_TOKENS, "Measuring inputs")
    measured = {site: _site_means(sums, site) for site in vectors.sites}
    seen = prompt_digests(prompt for prompt, _ in (*contrast.train.positive, *contrast.train.negative))
    known = {*vectors.metadata.get("prompts", ()), *seen}
    return vectors.with_inputs(measured, input_means_from=contrast.describe(), prompts=sorted(known))


def _class_sums(
    model: LanguageModel,
    contrast: ContrastSet,
    span: str,
    batch_tokens: int,
    doing: str,
    *,
    block_outputs: bool = False,
    rows: Sequence[OutputRows] = (),
) -> ClassSums:
    """Sums over the positive and over the negative training responses; their outputs into `rows`, if there are any."""
    sums = (RunningMeans(model), RunningMeans(model))
    classes = (("positive", contrast.train.positive), ("negative", contrast.train.negative))
    for index, (running, (label, pairs)) in enumerate(zip(sums, classes, strict=True)):
        responses = encode_responses(model, pairs, span)
        for batch in span_means(
            model, responses, batch_tokens=batch_tokens, description=f"{doing} ({label})", block_outputs=block_outputs
        ):
            running.add(batch)
            for own in rows[index : index + 1]:
                own.add(batch)
    return sums


def _site_means(sums: ClassSums, site: Site) -> SiteMeans:
    output = ClassMeans(*(running.output(site).float() for running in sums))
    positive, negative = (running.input(site).float() for running in sums)
    given = [tokens.float() for running in sums if (tokens := running.tokens(site)) is not None]
    if not given:
        return SiteMeans(output, ClassMeans(positive, negative))
    # an expert that one class never reached has the other's mean for both
    in_positive, in_negative = (running.reached(site) for running in sums)
    inputs = ClassMeans(torch.where(in_positive, positive, negative), torch.where(in_negative, negative, positive))
    return SiteMeans(output, inputs, ClassMeans(*given))
