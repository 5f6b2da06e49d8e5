"""Other directions than the difference of class means, from each response's mean output at a site.

    pca    the axis along which the two responses to a request differ most
    probe  the normal of a logistic regression that tells the classes apart
    lda    the difference of means, whitened by the spread within the classes (Ledoit-Wolf): S⁻¹ (ȳ_pos − ȳ_neg)

Each points from negative to positive and is as long as the difference of means, so that a strength means the same.
Tokens are never stored; responses are, by their means: 4 bytes per response and output row, which is less than a matrix
of second moments as long as there are fewer responses than output rows.

Shapes: n, k = positive and negative responses, d = width of a site's output.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Site
from steer2edit.errors import InvalidValueError
from steer2edit.models import BatchMeans, LanguageModel, mean_output
from steer2edit.steering.contrast import Contrast

KINDS = ("mean", "pca", "probe", "lda")
"""What `extract` can take as v."""
Pairs = Sequence[tuple[int, int]]
Halves = dict[int, dict[Site, Float[Tensor, " d"] | None]]


class OutputRows:
    """The mean output of each of `count` responses of a class, by site."""

    def __init__(self, model: LanguageModel, count: int) -> None:
        self._model, self._count = model, count
        self.sites: dict[Site, Float[Tensor, "n d"]] = {}

    def add(self, batch: BatchMeans) -> None:
        """Add one batch of responses."""
        for site, means in batch.sites.items():
            output = mean_output(self._model, site, means.input) if means.output is None else means.output
            rows = self.sites.setdefault(site, torch.zeros(self._count, output.shape[1]))
            rows[batch.rows] = output.float().cpu()


def directions(
    kind: str, train: Contrast, positive: OutputRows, negative: OutputRows
) -> tuple[dict[Site, Float[Tensor, " d"]], Halves]:
    """The direction of every site, and those of the two halves of the responses; `None` where a half lacks a class."""
    if min(train.counts().values()) < 2:
        raise InvalidValueError(f"{kind} needs at least two responses of each class, got {train.counts()}.")
    pairs, halves, found = train.pairs(), Halves({0: {}, 1: {}}), {}
    for site, more in positive.sites.items():
        less = negative.sites[site]
        found[site] = _direction(kind, more, less, pairs)
        for half, own in halves.items():
            enough = min(len(more), len(less)) >= 4
            # the pairs within the half, as rows of it; in order, where none are
            within = [(i // 2, j // 2) for i, j in pairs if i % 2 == j % 2 == half] or [(0, 0)]
            own[site] = _direction(kind, more[half::2], less[half::2], within) if enough else None
    return found, halves


def _direction(
    kind: str, positive: Float[Tensor, "n d"], negative: Float[Tensor, "k d"], pairs: Pairs
) -> Float[Tensor, " d"]:
    mean, both = positive.mean(dim=0) - negative.mean(dim=0), torch.cat([positive, negative])
    size = both.square().mean().sqrt()
    if mean.norm() == 0 or not torch.isfinite(size):
        return mean  # a site that writes nothing, or one that overflows: the means are refused then
    if kind == "pca":
        first, second = map(list, zip(*pairs, strict=True))
        axis: Tensor = torch.linalg.svd((positive[first] - negative[second]) / size, full_matrices=False).Vh[0]
    else:
        classifier = _classifier(kind).fit((both / size).double().numpy(), np.arange(len(both)) < len(positive))
        axis = torch.from_numpy(classifier.coef_[0]).float()
    if not axis.norm() > 0:
        return torch.zeros_like(mean)
    sign = -1.0 if axis @ mean < 0 else 1.0
    found: Tensor = sign * mean.norm() * axis / axis.norm()
    return found


def _classifier(kind: str) -> Any:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegression

    if kind == "probe":
        return LogisticRegression(max_iter=1000)
    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
