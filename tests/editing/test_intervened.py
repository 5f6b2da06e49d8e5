"""A different intervention per row of a batch: every row is as if it were alone."""

from contextlib import AbstractContextManager, ExitStack, nullcontext

import pytest
import torch
from edit_models import IDS, hook_count, logits, only, random_vectors, relative
from torch import Tensor

from families import ALL_FAMILIES, tiny_model
from steer2edit.core import Combined, Editing, Intervention, Site, Steering
from steer2edit.editing import compute_factors, convert, intervened, merged
from steer2edit.errors import InvalidValueError
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import LanguageModel
from steered import steered


def every_kind(model: LanguageModel) -> list[Intervention]:
    """None, edits of shared factors, of other vectors, of one block, of one site, scaled, and steering mixed."""
    vectors, others = random_vectors(model), random_vectors(model, seed=7)
    shared = compute_factors(model, vectors).edits(
        [Hyperparameters(0.2, 0.2, 0.2), Hyperparameters(0.4, 0.1, 0.1), Hyperparameters(0.3, None, 0.3)]
    )
    few = only(vectors, Site(1, "mlp"))
    mixer = next(site for site in model.sites if site.layer == 2)  # attention, or what takes its place there
    return [
        Editing(shared[0]),
        None,
        Editing(shared[1]),
        Steering(vectors, 0.2),
        Editing(convert(model, others, Hyperparameters(None, 0.2, 0.2))),
        Editing(shared[2], -0.5),
        Steering(only(others, mixer, Site(0, "mlp")), -0.3),
        Editing(convert(model, few, Hyperparameters(None, 0.1, 0.2), allow_missing=True), 2.0),
        Editing(shared[0], 0.0),
    ]


def alone(model: LanguageModel, row: Intervention) -> AbstractContextManager[None]:
    """The same intervention by other means: edited weights, or the steering of the library."""
    if row is None:
        return nullcontext()
    if isinstance(row, Steering):
        return steered(model, row.vectors, row.strength)
    return merged(model, row.edit, row.strength)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_row_is_as_if_it_were_alone(family: str) -> None:
    model = tiny_model(family)
    rows = every_kind(model)
    if family not in ("llama", "gpt2", "qwen3_moe", "granitemoehybrid"):
        rows = [rows[k] for k in (0, 1, 3, 5)]  # two edits, the base and steering
    ids = torch.randint(3, 96, (len(rows), 9), generator=torch.Generator().manual_seed(0))
    base = logits(model, ids)
    with intervened(model, rows):
        together = logits(model, ids)
    assert hook_count(model.network) == 0
    assert together.shape == base.shape
    for i, row in enumerate(rows):
        with alone(model, row):
            expected = logits(model, ids[i : i + 1])[0]
        assert relative(together[i], expected) < 1e-4, row
        inert = row is None or (isinstance(row, Editing) and row.strength == 0)
        assert (relative(together[i], base[i]) < 1e-6) == inert


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_several_at_once_add_up_beside_rows_of_one(family: str) -> None:
    """An edit in the weights, another on top, and a shift: ΔW₁ + ΔW₂ and c, in a row of its own."""
    model = tiny_model(family)
    first, second, steering = (every_kind(model)[k] for k in (0, 4, 3))
    assert isinstance(first, Editing)
    assert isinstance(second, Editing)
    assert isinstance(steering, Steering)
    rows = [Combined((first, second, steering)), None, second]
    ids = torch.randint(3, 96, (3, 9), generator=torch.Generator().manual_seed(0))
    with intervened(model, rows):
        found = logits(model, ids)
    with ExitStack() as stack:
        for one in (first, second, steering):
            stack.enter_context(alone(model, one))
        expected = logits(model, ids[:1])[0]
    assert relative(found[0], expected) < 1e-4
    assert relative(found[0], logits(model, ids[:1])[0]) > 1e-3
    assert relative(found[1], logits(model, ids[1:2])[0]) < 1e-6
    with alone(model, second):
        assert relative(found[2], logits(model, ids[2:])[0]) < 1e-4


def test_one_intervention_is_for_every_row() -> None:
    model = tiny_model("llama")
    for row in every_kind(model):
        with intervened(model, [row]):
            one_for_all = logits(model)
        with intervened(model, [row] * len(IDS)):
            one_per_row = logits(model)
        assert relative(one_for_all, one_per_row) < 1e-6


def test_rows_of_one_kind_each() -> None:
    """No edit, no steering, or nothing at all in the batch."""
    model = tiny_model("llama")
    kinds = every_kind(model)
    steering = [row for row in kinds if isinstance(row, Steering)]
    editing = [row for row in kinds if isinstance(row, Editing)]
    for rows in (steering, editing[:2], editing[1:3], [None, None]):
        with intervened(model, rows):
            together = logits(model, IDS)
        for i, row in enumerate(rows[:2]):
            with alone(model, row):
                assert relative(together[i], logits(model, IDS)[i]) < 1e-4


def test_nothing_to_do_is_nothing_done() -> None:
    model = tiny_model("llama")
    base = logits(model)
    with intervened(model, [None]):
        assert hook_count(model.network) == 0
        assert torch.equal(logits(model), base)


def test_generation_with_a_cache_keeps_the_rows_apart() -> None:
    model = tiny_model("llama")
    rows = every_kind(model)
    ids = torch.randint(3, 96, (1, 5), generator=torch.Generator().manual_seed(3)).expand(len(rows), 5)

    def greedy(prompt: Tensor) -> list[list[int]]:
        out = model.network.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return out.tolist()

    with intervened(model, rows):
        together = greedy(ids)
    for i, row in enumerate(rows):
        with alone(model, row):
            assert together[i] == greedy(ids[:1])[0], row
    assert len({tuple(reply) for reply in together}) >= 5  # otherwise the comparison would show nothing


def test_padding_on_the_left_changes_nothing() -> None:
    model = tiny_model("llama")
    rows = every_kind(model)[:4]
    ids = torch.randint(3, 96, (4, 8), generator=torch.Generator().manual_seed(1))
    padded = torch.cat([torch.zeros(4, 3, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(11) >= 3).long().expand(4, 11)
    with intervened(model, rows), torch.inference_mode():
        plain = model.network(input_ids=ids).logits
        positions = (torch.arange(11) - 3).clamp(min=0).expand(4, 11)
        behind = model.network(input_ids=padded, attention_mask=mask, position_ids=positions).logits[:, 3:]
    assert relative(behind, plain) < 1e-4


def test_more_rows_than_the_batch_has() -> None:
    model = tiny_model("llama")
    vectors = random_vectors(model)
    with pytest.raises(InvalidValueError), intervened(model, [Steering(vectors, s) for s in (0.1, 0.2, 0.3)]):
        logits(model, IDS[:1])


def test_fewer_rows_than_the_batch_has() -> None:
    model = tiny_model("llama")
    edit = convert(model, random_vectors(model), Hyperparameters(0.2, 0.2, 0.2))
    with pytest.raises(InvalidValueError), intervened(model, [Editing(edit), None]):
        logits(model, torch.cat([IDS, IDS]))
