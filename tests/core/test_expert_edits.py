"""The neurons of a mixture of experts: how they are numbered, and what an edit does to each expert."""

import pytest
import torch

from steer2edit.core import Component, Experts, Site, SiteEdit, WeightEdit
from steer2edit.core.edit import expert_edits, top_experts
from steer2edit.errors import InvalidValueError

SIZES = Experts(routed=2, width=3, shared=2)
U = torch.tensor([1.0, 0.0])


def site_edit(magnitude: list[float], experts: Experts | None = None) -> SiteEdit:
    lam = torch.tensor(magnitude)
    return SiteEdit(U, lam, lam, lam / 10, experts)


@pytest.fixture
def edit() -> WeightEdit:
    """Layer 0 is dense; E0 of layer 4 has λ = (1, −0.5, 0), E1 none, the shared expert (−2, 0.25)."""
    return WeightEdit(
        {
            Site(0, "mlp"): site_edit([5.0, 0.0]),
            Site(4, "mlp"): site_edit([1.0, -0.5, 0.0, 0.0, 0.0, 0.0, -2.0, 0.25], SIZES),
        }
    )


def test_experts_by_layer_in_order_of_the_columns(edit: WeightEdit) -> None:
    found = expert_edits(edit)
    assert [str(e) for e in found] == ["L4.E0", "L4.E1", "L4.shared"]
    assert [(e.neurons, e.strengthened, e.weakened, e.raised, e.lowered) for e in found] == [
        (3, 1, 1, 1.0, -0.5),
        (3, 0, 0, 0.0, 0.0),
        (2, 1, 1, 0.25, -2.0),
    ]
    assert [(e.edited, e.mass, e.signed_mass) for e in found] == [(2, 1.5, 1.5), (0, 0.0, 0.0), (2, 2.25, -2.25)]


def test_the_strongest_experts_and_no_untouched_one(edit: WeightEdit) -> None:
    assert [str(e) for e in top_experts(edit, 10)] == ["L4.shared", "L4.E0"]
    assert [str(e) for e in top_experts(edit, 1)] == ["L4.shared"]


def test_a_dense_edit_has_no_experts() -> None:
    assert expert_edits(WeightEdit({Site(0, "mlp"): site_edit([1.0])})) == []


def test_components_of_a_mixture_carry_their_expert(edit: WeightEdit) -> None:
    assert [str(c) for c, _, _ in edit.components()] == [
        "L0.N0",
        "L4.E0.N0",
        "L4.E0.N1",
        "L4.shared.N0",
        "L4.shared.N1",
    ]
    assert edit.top_components(2)[1][0] == Component(Site(4, "mlp"), 6)
    assert edit.top_components(2)[1][0].site == Site(4, "mlp")


def test_every_index_is_one_neuron_of_one_expert() -> None:
    assert [str(Component(Site(1, "mlp"), index, SIZES)) for index in range(SIZES.neurons)] == [
        "L1.E0.N0", "L1.E0.N1", "L1.E0.N2", "L1.E1.N0", "L1.E1.N1", "L1.E1.N2", "L1.shared.N0", "L1.shared.N1",
    ]  # fmt: skip


def test_an_edit_that_is_not_as_wide_as_its_experts() -> None:
    with pytest.raises(InvalidValueError, match="are 8 neurons, but the edit has 7 of 7 columns"):
        site_edit([1.0] * 7, SIZES)


@pytest.mark.parametrize("sizes", [(0, 3, 0), (2, 0, 0), (2, 3, -1)])
def test_impossible_mixtures(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidValueError, match="at least one expert with one neuron"):
        Experts(*sizes)
