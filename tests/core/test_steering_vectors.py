"""Steering vectors: what they hold, where they may come from, and which they are."""

import hashlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from steer2edit.core import ClassMeans, Site, SiteMeans, SteeringVectors
from steer2edit.errors import InvalidValueError

ATTN, MLP = Site(0, "attn"), Site(0, "mlp")


def vectors(change: Callable[[dict[str, Tensor]], object] | None = None) -> SteeringVectors:
    """Two sites, d = 2, m = 3 and 4, the second without input means; `change` may alter any tensor first."""
    t = {
        "attn output positive": torch.tensor([1.0, 5.0]),
        "attn output negative": torch.tensor([-1.0, 2.0]),
        "attn input positive": torch.tensor([1.0, 2.0, 3.0]),
        "attn input negative": torch.tensor([3.0, 2.0, 0.0]),
        "mlp output positive": torch.tensor([0.5, 0.25]),
        "mlp output negative": torch.tensor([0.0, 0.0]),
    }
    if change:
        change(t)
    attn = SiteMeans(
        ClassMeans(t["attn output positive"], t["attn output negative"]),
        ClassMeans(t["attn input positive"], t["attn input negative"]),
    )
    mlp = SiteMeans(ClassMeans(t["mlp output positive"], t["mlp output negative"]))
    return SteeringVectors({MLP: mlp, ATTN: attn}, {"origin": "by hand"})


NAMES = (
    "attn output positive", "attn output negative", "attn input positive", "attn input negative",
    "mlp output positive", "mlp output negative",
)  # fmt: skip


def test_the_steering_vector_is_the_difference_and_the_input_mean_the_midpoint() -> None:
    means = vectors().sites[ATTN]
    assert means.steering_vector.tolist() == [2, 3]
    assert means.input.midpoint.tolist() == [2, 2, 1.5]
    assert means.input.difference.tolist() == [-2, 0, 3]


def test_sites_are_sorted_and_cannot_be_changed() -> None:
    ours = vectors()
    assert list(ours.sites) == [ATTN, MLP]
    with pytest.raises(TypeError):
        ours.sites[ATTN] = ours.sites[MLP]


def test_no_site_at_all() -> None:
    with pytest.raises(InvalidValueError, match="need at least one site, got none"):
        SteeringVectors({})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", NAMES)
def test_non_finite_means_are_refused(name: str, bad: float) -> None:
    block, quantity, sign = name.split()
    with pytest.raises(InvalidValueError) as caught:
        vectors(lambda t: t[name].__setitem__(1, bad))
    message = str(caught.value)
    size = 3 if quantity == "input" else 2
    assert message.startswith(f"L0.{block}: the {sign} {quantity} mean has 1 non-finite entries of {size}.")
    assert "--dtype bfloat16 or float32" in message


class TestDigest:
    def test_is_a_sha256_over_names_shapes_and_float32_bytes(self) -> None:
        only = SteeringVectors.from_mapping({"L3.mlp": torch.tensor([1.0, -2.0])})
        one, minus_two, zero = b"\x00\x00\x80\x3f", b"\x00\x00\x00\xc0", b"\x00" * 4
        expected = hashlib.sha256(b"L3.mlp [2]" + one + minus_two + b"L3.mlp [2]" + zero + zero).hexdigest()
        assert only.digest() == expected

    def test_does_not_depend_on_how_the_vectors_came_about(self) -> None:
        ours, same = vectors(), vectors()
        assert ours.digest() == same.digest()
        renamed = SteeringVectors(dict(reversed(ours.sites.items())), {"other": 1}, {"diagnosis": 2})
        assert renamed.digest() == ours.digest()

    @pytest.mark.parametrize("name", NAMES)
    def test_changes_with_every_entry(self, name: str) -> None:
        seen = {vectors().digest()}
        for index in range(2):
            changed = vectors(lambda t, i=index: t[name].__setitem__(i, torch.nextafter(t[name][i], torch.tensor(9.0))))
            seen.add(changed.digest())
        assert len(seen) == 3

    def test_changes_with_the_site_and_with_missing_inputs(self) -> None:
        ours = vectors()
        moved = SteeringVectors({ATTN: ours.sites[ATTN], Site(1, "mlp"): ours.sites[MLP]})
        fewer = SteeringVectors({ATTN: ours.sites[ATTN]})
        without = SteeringVectors({ATTN: SiteMeans(ours.sites[ATTN].output), MLP: ours.sites[MLP]})
        assert len({v.digest() for v in (ours, moved, fewer, without)}) == 4


class TestFromMapping:
    def test_takes_sites_and_names(self) -> None:
        ours = SteeringVectors.from_mapping({Site(3, "mlp"): torch.ones(2), "L1.attn": torch.zeros(4)}, source="mine")
        assert list(ours.sites) == [Site(1, "attn"), Site(3, "mlp")]
        assert ours.sites[Site(3, "mlp")].steering_vector.tolist() == [1, 1]
        assert ours.metadata == {"origin": "imported", "source": "mine"}
        assert not ours.has_input_means

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_is_float32_whatever_the_vector_is(self, dtype: torch.dtype) -> None:
        vector = torch.tensor([1, -3], dtype=dtype)
        (means,) = SteeringVectors.from_mapping({"L0.mlp": vector}).sites.values()
        assert means.steering_vector.dtype == torch.float32
        assert means.steering_vector.tolist() == [1, -3]

    def test_lets_go_of_gradients(self) -> None:
        (means,) = SteeringVectors.from_mapping({"L0.mlp": torch.ones(2, requires_grad=True)}).sites.values()
        assert not means.steering_vector.requires_grad

    @pytest.mark.parametrize("shape", [(), (1, 4), (2, 2, 2)])
    def test_a_vector_has_one_axis(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(InvalidValueError) as caught:
            SteeringVectors.from_mapping({"L2.mlp": torch.ones(shape)})
        message = "L2.mlp: a direction is a vector of floating-point numbers, got float32 of shape"
        assert str(caught.value) == f"{message} {list(shape)}."

    def test_a_name_that_is_no_site(self) -> None:
        with pytest.raises(InvalidValueError, match="not a site: 'layer3'"):
            SteeringVectors.from_mapping({"layer3": torch.ones(2)})

    def test_a_vector_that_float32_cannot_hold(self) -> None:
        with pytest.raises(InvalidValueError, match=r"L0\.mlp: the positive output mean has 1 non-finite"):
            SteeringVectors.from_mapping({"L0.mlp": torch.tensor([1e300, 1.0], dtype=torch.float64)})

    def test_nothing(self) -> None:
        with pytest.raises(InvalidValueError, match="at least one site"):
            SteeringVectors.from_mapping({})

    def test_is_a_copy(self) -> None:
        vector = torch.ones(2)
        ours = SteeringVectors.from_mapping({"L0.mlp": vector})
        vector[0] = 7
        assert ours.sites[MLP].steering_vector.tolist() == [1, 1]

    def test_two_names_of_one_site(self) -> None:
        with pytest.raises(InvalidValueError, match=r"L1\.mlp"):
            SteeringVectors.from_mapping({"L1.mlp": torch.ones(2), "L01.mlp": torch.zeros(2)})


def test_missing_inputs_are_filled_in_and_present_ones_kept() -> None:
    ours = vectors()
    fresh, tokens = (
        ClassMeans(torch.ones(4), torch.zeros(4)),
        ClassMeans(torch.ones(2), torch.ones(2)),
    )
    other = ClassMeans(torch.full((2,), 9.0), torch.full((2,), 9.0))
    measured = {MLP: SiteMeans(other, fresh, tokens), ATTN: SiteMeans(other, ClassMeans(torch.ones(3), torch.ones(3)))}
    filled = ours.with_inputs(measured, measured_on="mine")
    assert filled.has_input_means
    assert not ours.has_input_means
    assert filled.sites[MLP].input is fresh
    assert filled.sites[MLP].tokens is tokens
    assert all(filled.sites[site].output is ours.sites[site].output for site in ours.sites)
    assert filled.sites[ATTN].input is ours.sites[ATTN].input
    assert filled.metadata == {"origin": "by hand", "measured_on": "mine"}
