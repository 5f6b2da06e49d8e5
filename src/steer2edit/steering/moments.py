"""Running means over responses: float64 sums, so memory does not depend on how many responses there are.

Shapes: b = rows of a batch, d, m = width of a site's output and input, e = matrices of a mixture of experts.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steer2edit.core import Site
from steer2edit.models import BatchMeans, LanguageModel, SpanMeans, mean_output

Half = int | None
"""0: even responses, 1: odd ones, `None`: all."""


class RunningMeans:
    """Sums over the responses of one class, for even and odd responses apart, and their means.

    Each response weighs the same; of an expert, each token that was routed to it.

    Args:
        model: whose responses are summed.
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
            self._add_site(member, site, means)
        for layer, output in batch.blocks.items():
            self._add(member, (layer, "block"), output)

    def _add_site(self, member: Float[Tensor, "2 b"], site: Site, means: SpanMeans) -> None:
        if means.tokens is None or means.output is None:
            self._add(member, (site, "input"), means.input)
            return
        self._add(member, (site, "input"), means.input * _by_column(self._model, site, means.tokens))
        self._add(member, (site, "output"), means.output)
        self._add(member, (site, "tokens"), means.tokens)

    def _add(self, member: Float[Tensor, "2 b"], key: tuple[object, str], values: Float[Tensor, "b _n"]) -> None:
        total = member @ values.cpu().double()
        self._sums[key] = self._sums[key] + total if key in self._sums else total

    def count(self, half: Half = None) -> int:
        """How many responses were added."""
        return sum(half is None or row % 2 == half for row in self._rows)

    def input(self, site: Site, half: Half = None) -> Float[Tensor, " m"]:
        """x̄: mean over responses; of an expert, over the tokens routed to it (0 without any)."""
        total = self._sum((site, "input"), half)
        if (site, "tokens") not in self._sums:
            return total / self.count(half)
        tokens = _by_column(self._model, site, self._sum((site, "tokens"), half)[None])[0]
        return total / tokens.clamp(min=1)

    def output(self, site: Site, half: Half = None) -> Float[Tensor, " d"]:
        """ȳ: mean over responses."""
        if (site, "output") in self._sums:
            return self._sum((site, "output"), half) / self.count(half)
        return mean_output(self._model, site, self.input(site, half)).cpu()

    def block_output(self, layer: int) -> Float[Tensor, " d"]:
        """Mean output of a whole layer over responses."""
        return self._sum((layer, "block"), None) / self.count()

    def tokens(self, site: Site) -> Float[Tensor, " e"] | None:
        """How many tokens each expert of a site was given; `None` for a dense site."""
        return self._sum((site, "tokens"), None) if (site, "tokens") in self._sums else None

    def reached(self, site: Site) -> Bool[Tensor, " m"]:
        """Which columns of a mixture's input are of an expert that was given any token."""
        return _by_column(self._model, site, self._sum((site, "tokens"), None)[None])[0] > 0

    def _sum(self, key: tuple[object, str], half: Half) -> Float[Tensor, " _n"]:
        sums = self._sums[key]
        return sums.sum(dim=0) if half is None else sums[half]


def _by_column(model: LanguageModel, site: Site, values: Float[Tensor, "b e"]) -> Float[Tensor, "b m"]:
    """A value of each expert, repeated for each of its neurons."""
    sizes = model.sites[site].sizes
    assert sizes is not None
    return values.repeat_interleave(torch.tensor(sizes.widths, device=values.device), dim=1)
