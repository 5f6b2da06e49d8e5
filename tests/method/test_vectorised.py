"""No Python loop over heads or neurons: the number of tensor operations does not depend on how many there are."""

import pytest
import torch
from random_sites import random_site
from torch.profiler import ProfilerActivity, profile

from steer2edit.method.hyperparameters import Rules
from steer2edit.method.rule import site_factors


def operations(n: int, width: int, rules: Rules, configurations: int = 1) -> int:
    site = random_site(n=n, width=width)
    with profile(activities=[ProfilerActivity.CPU]) as record:
        factors = site_factors(site.weight, site.vector, site.input_mean, width, rules)
        factors.edits([0.3] * configurations, [0.5] * configurations)
    return sum(event.name.startswith("aten::") for event in record.events())


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("rules", [Rules(), Rules("mean", "dot", "top-k"), Rules("svd", "cosine", "ridge")], ids=str)
def test_operations_do_not_depend_on_the_number_of_components(rules: Rules, width: int) -> None:
    few, many = operations(8, width, rules), operations(64, width, rules)
    assert few > 10
    assert many == few


def test_the_directions_are_computed_once_for_all_configurations() -> None:
    """What a further configuration costs is its check and its slices, not another pass over W."""
    one, ten = operations(8, 4, Rules()), operations(8, 4, Rules(), configurations=10)
    per_configuration = (ten - one) / 9
    assert per_configuration < one / 2
    site = random_site(d=12, n=8, width=4)
    factors = site_factors(site.weight, site.vector, site.input_mean, 4)
    with profile(activities=[ProfilerActivity.CPU]) as record:
        factors.edits([0.3] * 10, [0.5] * 10)
    products = {"aten::mm", "aten::mv", "aten::matmul", "aten::bmm", "aten::einsum", "aten::addmv"}
    assert not products & {event.name for event in record.events()}
    assert torch.equal(factors.edits([0.3], [0.5])[0].row, factors.edits([0.3, 0.9], [0.5, 0.9])[0].row)
