"""Sites, heads and neurons: how they print, parse, sort and refuse."""

import pytest
from hypothesis import given, strategies as st

from steer2edit.core import BLOCKS, SHARES_RHO, TUNED_BLOCKS, Block, Component, Experts, Site
from steer2edit.errors import InvalidValueError, Steer2EditError
from unchecked import unchecked

SITES = st.builds(Site, st.integers(0, 10**6), st.sampled_from(BLOCKS))


def test_names() -> None:
    assert str(Site(12, "attn")) == "L12.attn"
    assert str(Site(0, "mlp")) == "L0.mlp"
    assert str(Component(Site(12, "attn"), 5)) == "L12.H5"
    assert str(Component(Site(12, "mlp"), 801)) == "L12.N801"
    assert str(Site(3, "ssm")) == "L3.ssm"
    assert str(Component(Site(3, "ssm"), 2)) == "L3.S2"
    experts = Experts(8, 24, shared=8)
    assert str(Component(Site(3, "mlp"), 132, experts)) == "L3.E5.N12"
    assert str(Component(Site(3, "mlp"), 196, experts)) == "L3.shared.N4"


@given(SITES)
def test_parsing_is_the_inverse_of_printing(site: Site) -> None:
    assert Site.parse(str(site)) == site


@pytest.mark.parametrize(
    "text",
    ["", "L12", "12.attn", "L.attn", "L-1.attn", "L1.5.attn", "L1.ffn", "l1.attn", "L1.attn ", "L1.attn\n", "L1.H5"],
)
def test_what_is_not_a_site(text: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        Site.parse(text)
    assert str(caught.value) == f"not a site: {text!r}. Write L<layer>.attn or L<layer>.mlp, e.g. L12.attn."


def test_layers_count_from_zero() -> None:
    with pytest.raises(InvalidValueError, match="layer must be >= 0, got -1: layers count from 0"):
        Site(-1, "attn")


def test_there_are_three_blocks_and_two_budgets() -> None:
    assert BLOCKS == ("attn", "ssm", "mlp")
    assert TUNED_BLOCKS == ("attn", "mlp")
    assert SHARES_RHO == {"ssm": "attn"}
    with unchecked(), pytest.raises(InvalidValueError, match="block must be one of attn, ssm, mlp, got 'ffn'"):
        Site(0, "ffn")


def test_sites_sort_by_layer_as_a_number_and_then_attention_first() -> None:
    shuffled = [Site(10, "attn"), Site(2, "ssm"), Site(2, "mlp"), Site(2, "attn"), Site(0, "mlp")]
    assert [str(s) for s in sorted(shuffled)] == ["L0.mlp", "L2.attn", "L2.mlp", "L2.ssm", "L10.attn"]


def test_heads_and_neurons_sort_by_layer_and_index() -> None:
    def ordered(block: Block, *places: tuple[int, int]) -> list[str]:
        return [str(c) for c in sorted(Component(Site(layer, block), index) for layer, index in places)]

    assert ordered("attn", (2, 0), (0, 11), (0, 2)) == ["L0.H2", "L0.H11", "L2.H0"]
    assert ordered("mlp", (1, 10), (1, 9)) == ["L1.N9", "L1.N10"]


def test_a_head_is_not_the_neuron_of_the_same_index() -> None:
    assert Component(Site(1, "attn"), 2) != Component(Site(1, "mlp"), 2)
    assert len({Site(1, "attn"), Site(1, "mlp"), Site(1, "attn")}) == 2


def test_every_error_is_ours_and_a_value_error() -> None:
    assert issubclass(InvalidValueError, Steer2EditError)
    assert issubclass(InvalidValueError, ValueError)
