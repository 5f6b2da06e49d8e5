"""Directions beyond the difference of means: found where the mean misses them, and diagnosed beside it."""

import pytest
import torch
from planting import random_contrast

from steer2edit.errors import InvalidValueError
from steer2edit.models import BatchMeans, SpanMeans, encode_responses, mean_output, span_means
from steer2edit.steering.contrast import Contrast
from steer2edit.steering.directions import KINDS, OutputRows, directions
from steer2edit.steering.extract import extract
from tiny_chat import tiny_chat_model

MODEL = tiny_chat_model()
SITE, *OTHERS = MODEL.sites
WIDTH = 64


def rows_of(outputs: torch.Tensor) -> OutputRows:
    """Rows whose outputs are these at every site, given in two batches."""
    rows = OutputRows(MODEL, len(outputs))
    for part in ([*range(0, len(outputs), 2)], [*range(1, len(outputs), 2)]):
        means = {site: SpanMeans(torch.zeros(len(part), 1), outputs[part]) for site in MODEL.sites}
        rows.add(BatchMeans(part, means, {}))
    return rows


def planted() -> tuple[Contrast, torch.Tensor, torch.Tensor]:
    """Outputs that differ by 0.5 along axis 0 in every pair, and by a topic along axis 1, ten times as large.

    Both responses to a request share its topic, so pairs do not differ in it; but half as many negative responses
    again are to requests of other topics, which shift their mean along axis 1 by about 3.
    """
    generator = torch.Generator().manual_seed(0)
    n, topic = 40, 5 * torch.randn(40, generator=generator)
    positive, negative = 0.02 * torch.randn(2, n + n // 2, WIDTH, generator=generator)
    positive = positive[:n]
    positive[:, 0] += 0.25
    negative[:, 0] -= 0.25
    positive[:, 1] += topic
    negative[:n, 1] += topic
    negative[n:, 1] += 9.0
    names = [f"p{i}" for i in range(n + n // 2)]
    contrast = Contrast(tuple((p, "a") for p in names[:n]), tuple((p, "b") for p in names))
    return contrast, positive, negative


def test_the_mean_misses_what_the_others_find() -> None:
    contrast, positive, negative = planted()
    mean = positive.mean(dim=0) - negative.mean(dim=0)
    assert abs(mean[0] / mean.norm()) < 0.3
    for kind in ("pca", "probe", "lda"):
        found, halves = directions(kind, contrast, rows_of(positive), rows_of(negative))
        for v in (found[SITE], halves[0][SITE], halves[1][SITE]):
            assert v is not None
            assert v[0] / v.norm() > 0.95, kind  # and it points from negative to positive
        assert found[SITE].norm() == pytest.approx(mean.norm().item(), rel=1e-5)  # a strength means the same


def test_lda_is_the_whitened_difference() -> None:
    """With the Ledoit-Wolf covariance of the classes, each weighing what it has of the responses."""
    from sklearn.covariance import ledoit_wolf

    contrast, positive, negative = planted()
    size = torch.cat([positive, negative]).square().mean().sqrt()
    own = [side.double() / size for side in (positive, negative)]
    within = sum(
        len(side) * _unscaled(ledoit_wolf, side.numpy()) for side in own
    ) / sum(map(len, own))  # fmt: skip
    expected = torch.linalg.solve(torch.as_tensor(within), own[0].mean(dim=0) - own[1].mean(dim=0))
    found, _ = directions("lda", contrast, rows_of(positive), rows_of(negative))
    assert torch.nn.functional.cosine_similarity(found[SITE].double(), expected, dim=0) == pytest.approx(1, abs=1e-5)


def _unscaled(ledoit_wolf, values):
    """As scikit-learn: shrunk on standardised features, and put back onto their scale."""
    scale = values.std(axis=0)
    shrunk, _ = ledoit_wolf((values - values.mean(axis=0)) / scale)
    return scale[:, None] * shrunk * scale


@pytest.mark.parametrize("kind", KINDS)
def test_extraction_judges_each_with_the_mean_beside(kind: str) -> None:
    contrast = random_contrast(6, 4)
    mean, found = extract(MODEL, contrast), extract(MODEL, contrast, direction=kind)
    assert found.diagnosis is not None
    assert mean.diagnosis is not None
    if kind == "mean":
        assert found.diagnosis == mean.diagnosis
        assert "direction" not in found.metadata
        return
    assert found.metadata["direction"] == kind
    assert found.diagnosis["mean"] == mean.diagnosis
    assert found.diagnosis["sites"].keys() == mean.diagnosis["sites"].keys()
    assert found.diagnosis["sites"] != mean.diagnosis["sites"]
    for site, means in found.sites.items():
        assert means.input is not None
        assert torch.equal(means.input.midpoint, mean.sites[site].input.midpoint)  # type: ignore[union-attr]
        size = mean.sites[site].steering_vector.norm().item()
        assert means.steering_vector.norm().item() == pytest.approx(size, rel=1e-4)
    responses = encode_responses(MODEL, contrast.train.positive)
    rows = OutputRows(MODEL, len(responses))
    for batch in span_means(MODEL, responses, batch_tokens=64):
        rows.add(batch)
    (alone,) = span_means(MODEL, responses[3:4])
    expected = mean_output(MODEL, SITE, alone.sites[SITE].input)[0]
    assert torch.allclose(rows.sites[SITE][3], expected, atol=1e-5)


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(InvalidValueError, match=r"unknown direction 'lad'\. Did you mean 'lda'\? Known: lda, mean"):
        extract(MODEL, random_contrast(6, 4), direction="lad")
    with pytest.raises(InvalidValueError, match=r"pca needs at least two responses of each class, got .*1"):
        extract(MODEL, random_contrast(1, 4), direction="pca")


def test_a_site_that_writes_nothing_has_no_direction() -> None:
    contrast, positive, _ = planted()
    nothing = torch.zeros_like(positive)
    found, _ = directions("lda", contrast, rows_of(nothing), rows_of(nothing))
    assert not found[SITE].any()
