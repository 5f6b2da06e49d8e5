"""Edits at run time: the right output, the weights untouched, and no hook left behind."""

import pytest
import torch
from edit_models import IDS, hook_count, logits, random_vectors, relative, weight_bytes

from families import tiny_model, tiny_network
from steer2edit.core import Editing, Site, Steering, WeightEdit
from steer2edit.editing import convert, edited, intervened, merged
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import LanguageModel
from steered import steered


@pytest.fixture
def model() -> LanguageModel:
    return tiny_model("llama")


@pytest.fixture
def edit(model: LanguageModel) -> WeightEdit:
    return convert(model, random_vectors(model), Hyperparameters(0.2, 0.2, 0.2))


def test_leaving_restores_outputs_and_hooks(model: LanguageModel, edit: WeightEdit) -> None:
    base, before = logits(model), weight_bytes(model.network)
    with edited(model, edit):
        assert hook_count(model.network) == len(edit.sites) == 6
        assert relative(logits(model), base) > 0.01
        assert weight_bytes(model.network) == before
    assert hook_count(model.network) == 0
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_hook_is_left_after_an_exception(model: LanguageModel, edit: WeightEdit, error: type[BaseException]) -> None:
    base = logits(model)
    with pytest.raises(error), edited(model, edit):
        raise error
    assert hook_count(model.network) == 0
    assert torch.equal(logits(model), base)


def test_no_hook_is_left_after_a_failing_forward_pass(model: LanguageModel, edit: WeightEdit) -> None:
    vectors = random_vectors(model)
    for context in (edited(model, edit), steered(model, vectors, 0.1), intervened(model, [Steering(vectors, 0.1)])):
        with pytest.raises(IndexError), context:
            logits(model, torch.full((1, 4), 10**6))
        assert hook_count(model.network) == 0


def test_no_hook_is_left_when_entering_fails(model: LanguageModel, edit: WeightEdit) -> None:
    """The site of the last layer is gone, so hooking fails after the others are in place."""
    model.sites.pop(Site(2, "mlp"))
    with pytest.raises(KeyError), intervened(model, [Editing(edit)]):
        raise AssertionError("not reached")
    assert hook_count(model.network) == 0


def test_hooks_of_others_stay(model: LanguageModel, edit: WeightEdit) -> None:
    calls = []
    module = model.sites[Site(0, "attn")].module
    handle = module.register_forward_hook(lambda *_: calls.append(1))
    with edited(model, edit):
        logits(model)
    logits(model)
    assert len(calls) == 2
    handle.remove()


def test_contexts_nest_and_add_up(model: LanguageModel, edit: WeightEdit) -> None:
    base = logits(model)
    with edited(model, edit, 0.25):
        once = logits(model)
        with edited(model, edit, 0.5):
            thrice = logits(model)
        assert torch.equal(logits(model), once)
    with merged(model, edit, 0.75):
        assert relative(thrice, logits(model)) < 1e-4
    with edited(model, edit, -0.25), edited(model, edit, 0.25):
        assert relative(logits(model), base) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_half_precision_outputs_are_rounded_once(family: str, dtype: torch.dtype) -> None:
    """y + (x·a) u, formed here in float64 from the x and y that the module saw."""
    model = LanguageModel(tiny_network(family).to(dtype), name="half")
    edit = convert(model, random_vectors(model), Hyperparameters(0.2, 0.2, 0.2))
    site = Site(0, "attn")  # the first to be edited: it sees the same input with and without
    seen = []
    module = model.sites[site].module
    handle = module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    base = logits(model)
    handle.remove()
    with edited(model, edit):
        handle = module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
        assert relative(logits(model), base) > 0.01
    handle.remove()
    (x, y), (same_x, ours) = seen
    assert torch.equal(x, same_x)
    a, u = edit.sites[site].row.double(), edit.sites[site].output_direction.double()
    change = (x.double() @ a)[..., None] * u
    exact = y.double() + change
    assert ours.dtype == dtype
    assert relative(ours.double(), y.double()) > 0.05
    unit = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    assert bool(((ours.double() - exact).abs() <= 1.01 * unit * exact.abs() + 1e-5).all())


def test_the_factors_of_an_edit_are_not_changed_by_using_it(model: LanguageModel, edit: WeightEdit) -> None:
    before = {site: (e.row.clone(), e.output_direction.clone()) for site, e in edit.sites.items()}
    with edited(model, edit, 3.0), merged(model, edit, -2.0):
        logits(model, IDS)
    for site, (row, u) in before.items():
        assert torch.equal(edit.sites[site].row, row)
        assert torch.equal(edit.sites[site].output_direction, u)
