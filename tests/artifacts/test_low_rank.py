"""Several edits as one factorisation: exact, and of the smallest rank."""

import math

import pytest
import torch
from hypothesis import given, strategies as st

from steer2edit.artifacts.edits.low_rank import LowRank, combined_factors, factorise, measure_interference
from steer2edit.core import Site, SiteEdit, WeightEdit

SITE = Site(0, "mlp")


def site_edit(u: list[float], a: list[float]) -> SiteEdit:
    """Neurons: λ is a's entry itself."""
    row = torch.tensor(a, dtype=torch.float32)
    return SiteEdit(torch.tensor(u), row, row.clone(), torch.ones(len(a)))


def weight_edit(u: list[float], a: list[float], site: Site = SITE) -> WeightEdit:
    return WeightEdit({site: site_edit(u, a)}, {"model": {"name": "m", "fingerprint": "0" * 64}})


X, Y = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]


def test_two_directions_are_kept_as_they_are() -> None:
    factors = factorise([(site_edit(X, [1, 2, 0, 0]), 1.0), (site_edit(Y, [0, 3, 4, 0]), 0.5)])
    assert factors.b.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert factors.a.tolist() == [[1, 2, 0, 0], [0, 1.5, 2, 0]]


def test_one_direction_adds_up() -> None:
    opposite = [-1.0, 0.0, 0.0]
    terms = [
        (site_edit(X, [1, 2, 0, 0]), 1.0),
        (site_edit(X, [0, 2, 4, 0]), 0.5),
        (site_edit(opposite, [0, 0, 1, 1]), 2.0),
    ]
    factors = factorise(terms)
    assert factors.b.tolist() == [[1], [0], [0]]
    assert factors.a.tolist() == [[1, 3, 0, -2]]


def test_one_row_needs_one_pair() -> None:
    """a_2 = 2 a_1: u_1 a_1ᵀ + u_2 a_2ᵀ = (u_1 + 2 u_2) a_1ᵀ."""
    factors = factorise([(site_edit(X, [1, 2, 0, 0]), 1.0), (site_edit(Y, [2, 4, 0, 0]), 1.0)])
    assert factors.rank == 1
    assert torch.allclose(
        (factors.b @ factors.a), torch.tensor([[1.0, 2, 0, 0], [2, 4, 0, 0], [0, 0, 0, 0]]), atol=1e-6
    )
    assert factors.b[0] > 0  # along the first edit


def test_three_edits_in_a_plane() -> None:
    diagonal = [math.sqrt(0.5), math.sqrt(0.5), 0.0]
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).tolist()
    terms = [(site_edit(u, a), w) for u, a, w in zip((X, Y, diagonal), rows, (1.0, -2.0, 0.3), strict=True)]
    factors = factorise(terms)
    expected = sum(w * e.dense() for e, w in terms)
    assert factors.rank == 2
    assert ((factors.b @ factors.a) - expected).abs().max() < 1e-6


def test_edits_that_cancel_change_nothing() -> None:
    edit = weight_edit(X, [1, 2, 0, 0])
    assert factorise([(edit.sites[SITE], 1.0), (edit.sites[SITE], -1.0)]).rank == 0
    both = combined_factors([(edit, 1.0), (edit, -1.0)])
    assert both[SITE].rank == 1  # an adapter needs some module
    assert not (both[SITE].b @ both[SITE].a).any()
    other = weight_edit(Y, [0, 0, 1, 0], Site(1, "mlp"))
    assert list(combined_factors([(edit, 1.0), (edit, -1.0), (other, 1.0)])) == [Site(1, "mlp")]


def test_zero_pairs_change_nothing() -> None:
    factors = LowRank(torch.tensor([[1.0, 2]]), torch.tensor([[3.0], [4]])).padded(3)
    assert factors.a.tolist() == [[1, 2], [0, 0], [0, 0]]
    assert factors.b.tolist() == [[3, 0, 0], [4, 0, 0]]


@given(seed=st.integers(0, 10_000), n=st.integers(1, 4), shared=st.booleans(), scale=st.sampled_from([1e-6, 1.0, 1e5]))
def test_the_sum_is_exact(seed: int, n: int, shared: bool, scale: float) -> None:
    """Whatever the rank, B A is the sum up to float32 rounding of its largest part."""
    generator = torch.Generator().manual_seed(seed)
    terms = []
    for i in range(n):
        u = (
            terms[0][0].output_direction
            if shared and i
            else torch.nn.functional.normalize(torch.randn(6, generator=generator), dim=0)
        )
        row = torch.randn(8, generator=generator) * scale
        terms.append((SiteEdit(u, row, row, row), float(torch.randn((), generator=generator))))
    factors = factorise(terms)
    expected = sum(w * e.dense().double() for e, w in terms)
    size = max(float((w * e.dense()).abs().max()) for e, w in terms)
    assert factors.rank == (1 if shared else n)
    assert ((factors.b @ factors.a).double() - expected).abs().max() <= 1e-6 * size


def test_interference_by_hand() -> None:
    """cos u = 0.6, a_1 = (3, 4, 0), a_2 = (4, 0, 3): cos a = 12/25; ‖Σ‖² = 25 + 25 + 2 · 0.6 · 12."""
    one = weight_edit(X, [3, 4, 0])
    two = weight_edit([0.6, 0.8, 0.0], [4, 0, 3])
    measured = measure_interference([(one, 1.0), (two, 1.0)])
    assert measured.sites == {"L0.mlp": pytest.approx(14.4 / 50)}
    assert measured.interference == pytest.approx(14.4 / 50)


def test_weights_count() -> None:
    one, two = weight_edit(X, [3, 4, 0]), weight_edit([0.6, 0.8, 0.0], [4, 0, 3])
    measured = measure_interference([(one, 1.0), (two, -0.5)])
    assert measured.sites == {"L0.mlp": pytest.approx(-7.2 / (25 + 6.25))}
    assert measured.interference == pytest.approx(-7.2 / (25 + 6.25))


def test_equal_edits_add_up_and_opposite_ones_cancel() -> None:
    edit = weight_edit(X, [3, 4, 0])
    assert measure_interference([(edit, 1.0), (edit, 1.0)]).interference == pytest.approx(1)
    assert measure_interference([(edit, 1.0), (edit, -1.0)]).interference == pytest.approx(-1)


def test_edits_of_different_sites_do_not_meet() -> None:
    measured = measure_interference([(weight_edit(X, [3, 4]), 1.0), (weight_edit(X, [3, 4], Site(1, "attn")), 1.0)])
    assert measured.interference == 0
    assert measured.sites == {}


def test_an_edit_of_nothing() -> None:
    measured = measure_interference([(weight_edit(X, [0.0, 0]), 1.0), (weight_edit(Y, [0.0, 0]), 1.0)])
    assert measured.sites == {"L0.mlp": 0}
    assert measured.interference == 0
