"""Extraction: steering vectors and input means from a contrast set, in one pass with running sums only.

Shapes: b = rows of a batch, d, m = width of a site's output and input.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import ClassMeans, Site, SiteMeans, SteeringVectors
from steer2edit.errors import InvalidValueError, did_you_mean
from steer2edit.models import (
    SPAN_RULE,
    LanguageModel,
    encode_responses,
    span_means,
)
from steer2edit.models.batching import DEFAULT_BATCH_TOKENS
from steer2edit.steering.contrast import ContrastSet
from steer2edit.steering.diagnosis import diagnose
from steer2edit.steering.directions import KINDS, OutputRows, directions
from steer2edit.steering.moments import RunningMeans
from steer2edit.steering.overlap import prompt_digests

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

    Per response, the mean over its span; per class, the mean over responses, each weighing the same. Class sums are
    kept in float64, for odd and even responses apart, which gives the two halves that the diagnosis compares; memory
    does not depend on the number of responses or tokens. Outputs follow from inputs, `ȳ = W x̄ + b`; a mixture of
    experts has the output of the whole block, and each expert's mean input over the tokens routed to it.

    Args:
        model: the model.
        contrast: train makes the vectors, validation diagnoses them.
        batch_tokens: rows × longest row of a batch stays within this.
        block_outputs: measure the outputs of whole layers too, in the same pass: control vectors of other tools are
            made of those.
        direction: `mean`, the paper's difference of means; or, beyond it, `pca`, `probe` or `lda` (`directions`). The
            input means stay those of the classes, and the diagnosis has the mean's beside.
        span: what of a response is averaged: `response`, its `thought` or `answer`, or its first tokens (`16`).

    Raises:
        DataError: a response is empty, has no such part, or does not fit into the context.
        InvalidValueError: activations are not finite, or there is no such direction.

    Source: Eq. 1 and Appendix B; the span is that of the official code.
    """
    if direction not in KINDS:
        raise InvalidValueError(f"unknown direction {direction!r}. {did_you_mean(direction, KINDS)}")
    train = contrast.train
    rows = (OutputRows(model, len(train.positive)), OutputRows(model, len(train.negative)))
    keep = rows if direction != "mean" else ()
    sums = _class_sums(model, contrast, span, batch_tokens, "Extracting", block_outputs=block_outputs, rows=keep)
    sites: dict[Site, SiteMeans] = {}
    half_vectors: dict[int, dict[Site, Float[Tensor, " d"] | None]] = {0: {}, 1: {}}
    for site, module in model.sites.items():
        with module.in_memory():
            sites[site] = _site_means(sums, site)
            for half, vector_of in half_vectors.items():
                vector_of[site] = _half_vector(sums, site, half)
    blocks = {layer: _block_means(sums, layer) for layer in range(len(model.layers))} if block_outputs else None
    vectors = SteeringVectors(sites, _metadata(model, contrast, span), block_outputs=blocks)
    diagnosis = diagnose(model, vectors, half_vectors, contrast, batch_tokens)
    if direction == "mean":
        return replace(vectors, diagnosis=diagnosis)
    found, halves = directions(direction, train, *rows)
    own = {s: replace(m, output=ClassMeans.of_direction(found[s], str(s))) for s, m in vectors.sites.items()}
    vectors = replace(vectors, sites=own, metadata={**vectors.metadata, "direction": direction})
    return replace(vectors, diagnosis={**diagnose(model, vectors, halves, contrast, batch_tokens), "mean": diagnosis})


def measure_inputs(
    model: LanguageModel,
    vectors: SteeringVectors,
    contrast: ContrastSet,
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
) -> SteeringVectors:
    """Fill in the input means that vectors made elsewhere lack, from a contrast set.

    Returns:
        The same vectors with the missing input means; those that are known stay.

    Raises:
        MismatchError: the vectors have a site or a shape that the model has not.
    """
    model.require_fit(vectors, allow_mismatch=True)
    span = vectors.metadata.get("span_part", "response")
    sums = _class_sums(model, contrast, span, batch_tokens, "Measuring inputs")
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


def _block_means(sums: ClassSums, layer: int) -> ClassMeans:
    return ClassMeans(*(running.block_output(layer).float() for running in sums))


def _site_means(sums: ClassSums, site: Site) -> SiteMeans:
    output = ClassMeans(*(running.output(site).float() for running in sums))
    positive, negative = (running.input(site).float() for running in sums)
    tokens = [running.tokens(site) for running in sums]
    given = [t.float() for t in tokens if t is not None]
    if not given:
        return SiteMeans(output, ClassMeans(positive, negative))
    # an expert that one class never reached has the other's mean for both
    in_positive, in_negative = (running.reached(site) for running in sums)
    inputs = ClassMeans(torch.where(in_positive, positive, negative), torch.where(in_negative, negative, positive))
    return SiteMeans(output, inputs, ClassMeans(*given))


def _half_vector(sums: ClassSums, site: Site, half: int) -> Float[Tensor, " d"] | None:
    """The vector from one half of the responses; `None` if a class has no response in it."""
    if not all(running.count(half) for running in sums):
        return None
    positive, negative = (running.output(site, half) for running in sums)
    return positive - negative


def _metadata(model: LanguageModel, contrast: ContrastSet, span: str) -> dict[str, Any]:
    return {
        "model": model.describe(),
        "contrast": contrast.describe(),
        "prompts": prompt_digests(prompt for prompt, _ in (*contrast.train.positive, *contrast.train.negative)),
        "span": SPAN_RULE,
        **({} if span == "response" else {"span_part": span}),
        "dtype": str(model.dtype).removeprefix("torch."),
        **({"left_out": list(model.left_out)} if model.left_out else {}),
    }
