"""What an edit holds, lists, scales and refuses."""

import pytest
import torch

from steer2edit.core import Component, Site, SiteEdit, WeightEdit
from steer2edit.errors import InvalidValueError
from unchecked import unchecked

# u = (0.6, 0.8); two heads of width 2 with λ = (0, −2), k_1 = (0, 1); three neurons with λ = (0.5, 0, 3), k = 1, 1, −1
U = torch.tensor([0.6, 0.8])
HEADS = SiteEdit(U, torch.tensor([0.0, 0.0, 0.0, -2.0]), torch.tensor([0.0, -2.0]), torch.tensor([0.1, -0.9]))
NEURONS = SiteEdit(U, torch.tensor([0.5, 0.0, -3.0]), torch.tensor([0.5, 0.0, 3.0]), torch.tensor([0.3, 0.0, 0.7]))


def head(layer: int, index: int) -> Component:
    return Component(Site(layer, "attn"), index)


def neuron(layer: int, index: int) -> Component:
    return Component(Site(layer, "mlp"), index)


@pytest.fixture
def edit() -> WeightEdit:
    return WeightEdit({Site(2, "mlp"): NEURONS, Site(0, "attn"): HEADS}, {"origin": "by hand"})


def test_components_are_those_with_a_magnitude_in_order(edit: WeightEdit) -> None:
    found = [(component, lam, round(g, 6)) for component, lam, g in edit.components()]
    assert found == [
        (head(0, 1), -2.0, -0.9),
        (neuron(2, 0), 0.5, 0.3),
        (neuron(2, 2), 3.0, 0.7),
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
def test_top_components_by_size_of_the_magnitude(edit: WeightEdit, count: int) -> None:
    strongest_first = [neuron(2, 2), head(0, 1), neuron(2, 0)]
    assert [component for component, _, _ in edit.top_components(count)] == strongest_first[:count]


def test_top_components_of_equal_size_come_in_order() -> None:
    site = SiteEdit(U, torch.ones(64), torch.ones(64), torch.ones(64))
    edit = WeightEdit({Site(1, "mlp"): site, Site(0, "mlp"): site})
    assert [c for c, _, _ in edit.top_components(65)][64] == neuron(1, 0)
    assert [c for c, _, _ in edit.top_components(64)] == [neuron(0, i) for i in range(64)]


def test_the_first_of_equal_magnitudes_are_taken() -> None:
    edit = WeightEdit({Site(0, "mlp"): SiteEdit(U, torch.ones(64), torch.ones(64), torch.ones(64))})
    assert [c for c, _, _ in edit.top_components(3)] == [
        neuron(0, 0),
        neuron(0, 1),
        neuron(0, 2),
    ]


def test_an_edit_without_magnitudes_has_no_components() -> None:
    edit = WeightEdit({Site(0, "mlp"): NEURONS.scaled(0.0)})
    assert list(edit.components()) == []
    assert edit.top_components(5) == []


def test_without_components_sites_and_layers(edit: WeightEdit) -> None:
    measured = WeightEdit(edit.sites, {"method": "m", "drift": {"kl": 0.03}})
    less = measured.without("L2.N2")
    assert less.sites[Site(2, "mlp")].row.tolist() == [0.5, 0.0, 0.0]  # λ k of neuron 2 was −3
    assert less.sites[Site(2, "mlp")].magnitude.tolist() == [0.5, 0.0, 0.0]
    assert less.sites[Site(0, "attn")].row.equal(HEADS.row)
    assert less.metadata == {"method": "m", "without": ["L2.N2"]}  # its drift was the whole edit's
    for name in ("L2.mlp", "L2"):
        assert [str(site) for site, own in measured.without(name).sites.items() if own.row.any()] == ["L0.attn"]
    assert less.without("L0.H1").is_empty is False
    assert less.without("L0.H1", "L2").metadata["without"] == ["L0.H1", "L2", "L2.N2"]
    assert less.without("L0.H1", "L2").is_empty
    assert measured.without() is measured
    for name in ("L1", "L2.attn", "L0.H0", "L0.N1", "<b>"):  # H0 is not edited
        with pytest.raises(InvalidValueError, match="the edit has nothing of that name"):
            measured.without("L0", name)


def test_dense_is_the_outer_product() -> None:
    assert torch.equal(HEADS.dense(), torch.tensor([[0, 0, 0, -1.2], [0, 0, 0, -1.6]]))
    assert HEADS.component_width == 2
    assert NEURONS.component_width == 1


@pytest.mark.parametrize("strength", [2.0, 0.5, -1.0, 0.0])
def test_scaling_multiplies_the_update(edit: WeightEdit, strength: float) -> None:
    scaled = edit.scaled(strength)
    assert scaled.metadata == edit.metadata
    assert list(scaled.sites) == list(edit.sites)
    for site, original in edit.sites.items():
        assert torch.equal(scaled.sites[site].dense(), strength * original.dense())
        assert torch.equal(scaled.sites[site].magnitude, strength * original.magnitude)
        assert torch.equal(scaled.sites[site].importance, original.importance)
        assert scaled.sites[site].output_direction is original.output_direction
    assert torch.equal(edit.sites[Site(0, "attn")].row, torch.tensor([0.0, 0.0, 0.0, -2.0]))


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_scaling_by_what_is_no_number(edit: WeightEdit, strength: float) -> None:
    with pytest.raises(InvalidValueError, match="non-finite"):
        edit.scaled(strength)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["output_direction", "row", "magnitude", "importance"])
def test_non_finite_entries_are_refused(name: str, bad: float) -> None:
    tensors = {
        "output_direction": U.clone(),
        "row": torch.ones(4),
        "magnitude": torch.ones(2),
        "importance": torch.ones(2),
    }
    tensors[name][1] = bad
    with pytest.raises(InvalidValueError, match=f"the edit's {name} has non-finite entries: it cannot be applied"):
        SiteEdit(**tensors)


@pytest.mark.parametrize(("m", "n", "importances"), [(5, 2, 2), (4, 2, 3), (4, 0, 0), (2, 4, 4)])
def test_components_are_equal_groups_of_columns(m: int, n: int, importances: int) -> None:
    message = f"a row of {m} columns cannot hold {n} components with {importances} importances"
    with unchecked(), pytest.raises(InvalidValueError, match=message):
        SiteEdit(U, torch.ones(m), torch.ones(n), torch.ones(importances))


def test_no_site_at_all() -> None:
    with pytest.raises(InvalidValueError, match="needs at least one site, got none"):
        WeightEdit({})


def test_sites_are_sorted_and_cannot_be_changed(edit: WeightEdit) -> None:
    assert list(edit.sites) == [Site(0, "attn"), Site(2, "mlp")]
    with pytest.raises(TypeError):
        edit.sites[Site(1, "mlp")] = NEURONS
    mapping = {Site(0, "attn"): HEADS}
    copied = WeightEdit(mapping)
    mapping[Site(1, "attn")] = HEADS
    assert list(copied.sites) == [Site(0, "attn")]
