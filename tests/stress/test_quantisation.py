import pytest
import torch
from tiny_stress import random_vectors, tiny_edit
from torch import Tensor

from families import tiny_model
from steer2edit.core import SiteEdit, WeightEdit
from steer2edit.editing import convert, merged
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import LanguageModel
from steer2edit.stress.quantisation import (
    FORMATS,
    linear_weights,
    quantised,
)

INT4 = FORMATS["int4"]


def row(*values: float, width: int = 128) -> Tensor:
    """One row that begins with these values and goes on with zeros."""
    made = torch.zeros(1, width)
    made[0, : len(values)] = torch.tensor(values)
    return made


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        # 8 significant bits: between 1 and 2 the step is 2⁻⁷, and ties go to even
        ("bf16", row(1 + 2**-7, 1 + 2**-8, 1 + 3 * 2**-8), row(1 + 2**-7, 1, 1 + 2 * 2**-7)),
        # 11 significant bits: 2⁻¹⁰
        ("fp16", row(1 + 2**-10, 1 + 2**-11), row(1 + 2**-10, 1)),
        # −128 … 127 over ±127.5 steps of 0.1: 127.5 is cut to 127, 0.26 is nearest to 0.3, 0.04 to 0
        ("int8", row(12.75, 0.26, -0.26, 0.04, -12.75), row(12.7, 0.3, -0.3, 0.0, -12.8)),
        # largest 448, so the scale is 1: between 16 and 32 the step is 2, below 2⁻⁶ it is 2⁻⁹
        ("fp8", row(448, 17.1, -18.9, 0.003), row(448, 18, -18, 2 * 2**-9)),
        # from −7 to 8 in 15 steps of 1
        ("int4", row(8, -7, 2.4, 2.6, -0.6), row(8, -7, 2, 3, -1)),
        # largest 10; the point below 1 is 0.7230, the least positive one 0.0796, and the first negative one −0.0911
        ("nf4", row(10, 7.0, 0.3, 0.5, -0.5), row(10, 7.2296, 0.0, 0.7958, -0.9105)),
        # ±{0, ½, 1, 1½, 2, 3, 4, 6} · 2^(⌊log₂ 6⌋ − 2) = 1; of the ties, 2½ goes to 2 and 5 to 4
        ("mxfp4", row(6, 4.9, -2.6, 0.3, 0.2, 2.5, 5), row(6, 4, -3, 0.5, 0, 2, 4)),
        # the scale goes by the power of two below the largest: 7.9 is cut to 6
        ("mxfp4", row(7.9, 1.3), row(6, 1.5)),
    ],
)
def test_rows_by_hand(name: str, given: Tensor, expected: Tensor) -> None:
    tolerance = 1e-4 if name == "nf4" else 1e-6
    torch.testing.assert_close(FORMATS[name].rounded(given), expected, rtol=1e-6, atol=tolerance)


@pytest.mark.parametrize(("name", "size"), [("int4", 128), ("nf4", 64), ("mxfp4", 32)])
def test_a_last_block_that_is_shorter_has_its_own_scale(name: str, size: int) -> None:
    # beside 3000 they would be 0
    ends = {"int4": (3.0, 0.6), "nf4": (3.0, 0.0), "mxfp4": (3.0, 0.5)}[name]
    given = torch.zeros(1, size + 2)
    given[0, 0] = 3000
    given[0, size:] = torch.tensor(ends)
    expected = {"int4": 3000.0, "nf4": 3000.0, "mxfp4": 3072.0}[name]
    found = FORMATS[name].rounded(given)
    torch.testing.assert_close(found[0, [0, size, size + 1]], torch.tensor([expected, *ends]))


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_zeros_stay_zeros(name: str) -> None:
    given = torch.zeros(2, 128)
    given[1, 5] = 0.25
    found = FORMATS[name].rounded(given)
    assert not found[0].any()
    assert found.isfinite().all()


@pytest.mark.parametrize("name", FORMATS)
def test_an_error_is_at_most_a_step(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 256, generator=generator)
    largest = weight.abs().amax(dim=1, keepdim=True)
    share = {"bf16": 2**-8, "fp16": 2**-11, "int8": 1 / 127.5, "fp8": 1 / 16, "int4": 2 / 15, "nf4": 0.16, "mxfp4": 0.5}
    error = (FORMATS[name].rounded(weight) - weight).abs()
    assert (error <= share[name] * largest).all()
    assert error.max() > 0


def state(model: LanguageModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def expert_edit(model: LanguageModel) -> WeightEdit:
    """A row of ones at every site."""
    edits = {}
    for site, module in model.sites.items():
        (d, m), n = module.shape, module.component_count
        edits[site] = SiteEdit(torch.ones(d) / d**0.5, torch.ones(m), torch.ones(n), torch.ones(n), module.sizes)
    return WeightEdit(edits)


def edit_of(model: LanguageModel) -> WeightEdit:
    return tiny_edit(model, random_vectors(model))


def test_every_edited_matrix_holds_what_is_left_of_the_sum_and_is_restored() -> None:
    model = tiny_model("llama")
    edit, before = edit_of(model), state(model)
    originals = {site: module.weight.clone() for site, module in model.sites.items()}
    with merged(model, edit), quantised(model, INT4):
        for site, weight in originals.items():
            wanted = INT4.rounded(weight + edit.sites[site].dense())
            assert model.sites[site].weight.equal(wanted), site
    assert same(state(model), before)


def test_it_is_restored_after_an_exception() -> None:
    model = tiny_model("llama")
    before = state(model)
    with pytest.raises(RuntimeError, match="inside"), merged(model, edit_of(model)), quantised(model, INT4):
        raise RuntimeError("inside")
    assert same(state(model), before)


def test_linear_layers_are_stored_and_nothing_else() -> None:
    model = tiny_model("llama")
    before = state(model)
    with quantised(model, INT4):
        after = state(model)
    for name, weight in before.items():
        linear = "_proj" in name
        assert after[name].equal(INT4.rounded(weight) if linear else weight), name


def test_transposed_layers_are_stored_along_their_inputs() -> None:
    model = tiny_model("gpt2")
    before = state(model)
    with quantised(model, INT4):
        after = state(model)
    for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        name = f"transformer.h.1.{layer}.weight"
        assert after[name].equal(INT4.rounded(before[name].T).T), name
    assert after["transformer.wte.weight"].equal(before["transformer.wte.weight"])


@pytest.mark.parametrize(("family", "flipped"), [("qwen3_moe", False), ("gpt_oss", True)])
def test_experts_are_stored_one_by_one(family: str, flipped: bool) -> None:
    model = tiny_model(family)
    before = state(model)
    with quantised(model, INT4):
        after = state(model)
    assert same(before, state(model))
    for name in ("gate_up_proj", "down_proj"):
        full = f"model.layers.1.mlp.experts.{name}"
        for old, new in zip(before[full], after[full], strict=True):
            wanted = INT4.rounded(old.T).T if flipped else INT4.rounded(old)
            assert new.equal(wanted), name


def test_an_edit_of_experts_reaches_them() -> None:
    model = tiny_model("qwen3_moe")
    site = next(s for s, module in model.sites.items() if module.sizes)
    projection = model.sites[site].projections[2]
    edit = expert_edit(model)
    weight = projection.weight.clone()
    with merged(model, edit, allow_mismatch=True), quantised(model, INT4):
        wanted = INT4.rounded(weight + edit.sites[site].part(projection.columns).dense())
        assert projection.weight.equal(wanted)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe", "gpt_oss", "deepseek_v3", "granitemoehybrid"])
def test_every_matrix_that_can_be_edited_is_stored_once(family: str) -> None:
    model = tiny_model(family)
    places = [view.data_ptr() for view in linear_weights(model)]
    assert len(places) == len(set(places))
    assert all(p.weight.data_ptr() in places for site in model.sites.values() for p in site.projections)


def test_a_block_that_is_not_edited_is_only_stored() -> None:
    model = tiny_model("llama")
    edit = convert(model, random_vectors(model), Hyperparameters(0.3, None, 0.3))
    before = state(model)
    with merged(model, edit, allow_mismatch=True), quantised(model, INT4):
        after = state(model)
    changed = [n for n in before if "down_proj" in n and not after[n].equal(INT4.rounded(before[n]))]
    assert changed == []
