"""Random sites for property tests: shapes, scales and the awkward components that real weights have."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor


@dataclass(frozen=True)
class RandomSite:
    """W [d, m], v [d], μ [m] and the width of a component."""

    weight: Tensor
    vector: Tensor
    input_mean: Tensor
    width: int

    @property
    def count(self) -> int:
        return self.weight.shape[1] // self.width


def random_site(
    d: int = 12, n: int = 5, width: int = 4, seed: int = 0, *, scales: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> RandomSite:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((d, n * width), (d,), (n * width,))
    W, v, mu = (torch.randn(s, generator=generator) * c for s, c in zip(shapes, scales, strict=True))
    return RandomSite(W, v, mu, width)


_SCALES = st.sampled_from([1e-6, 1e-2, 1.0, 30.0])


@st.composite
def sites(draw: st.DrawFn, min_width: int = 1, min_d: int = 1) -> RandomSite:
    """Sites of many shapes; some have a component without input, and one without weight."""
    n = draw(st.integers(1, 9))
    site = random_site(
        d=draw(st.integers(min_d, 24)),
        n=n,
        width=draw(st.sampled_from([w for w in (1, 2, 3, 8, 16) if w >= min_width])),
        seed=draw(st.integers(0, 2**31)),
        scales=(draw(_SCALES), draw(_SCALES), draw(_SCALES)),
    )
    for tensor, axes in ((site.input_mean, -1), (site.weight, -1)):
        if draw(st.booleans()):
            dead = draw(st.integers(0, n - 1))
            tensor.unflatten(axes, (n, site.width))[..., dead, :] = 0
    return site


rhos = st.floats(0.01, 2.0)
alphas = st.one_of(st.just(0.0), st.floats(0.0, 0.95))
