"""Batches: every item once, similar lengths together, padding on the side that the task needs."""

import pytest
import torch
from hypothesis import given, strategies as st

from steer2edit.errors import ModelError
from steer2edit.models import TokenBudget, length_batches, run_batches
from steer2edit.models.batching import pad

CPU = torch.device("cpu")


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200))
def test_every_item_once_within_the_limit(lengths: list[int], limit: int) -> None:
    batches = list(length_batches(lengths, limit))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) * longest <= limit
    ordered = [lengths[i] for batch in batches for i in batch]
    assert ordered == sorted(lengths, reverse=True)


def test_batches_by_hand() -> None:
    # longest first: 9 alone exceeds 8; 4 + 3 fill 2 rows x 4; 2, 1 fill 2 x 2
    assert list(length_batches([1, 4, 9, 3, 2], 8)) == [[2], [1, 3], [4, 0]]


def test_right_padding() -> None:
    ids, mask = pad([[5, 6, 7], [8]], pad_id=9, device=CPU)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_left_padding() -> None:
    ids, mask = pad([[5, 6, 7], [8]], pad_id=9, device=CPU, left=True)
    assert ids.tolist() == [[5, 6, 7], [9, 9, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_results_come_in_the_order_of_the_items() -> None:
    batches = []

    def run(batch: list[int]) -> list[str]:
        batches.append(batch)
        return [f"item {i}" for i in batch]

    assert run_batches([1, 4, 9, 3, 2], TokenBudget(8), run) == [f"item {i}" for i in range(5)]
    assert batches == [[2], [1, 3], [4, 0]]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_batches_shrink_when_memory_runs_out_and_stay_so(error: Exception) -> None:
    """Room for 8 tokens where the budget says 40."""
    sizes = []

    def run(batch: list[int]) -> list[int]:
        sizes.append(len(batch))
        if 4 * len(batch) > 8:
            raise error
        return batch

    budget = TokenBudget(40)
    assert run_batches([4] * 10, budget, run) == list(range(10))
    assert sizes == [10, 5, 2, 2, 2, 2, 2]  # two attempts fail, and no third one
    assert budget.tokens == 8


def test_a_real_allocation_that_no_machine_can_serve() -> None:
    def run(batch: list[int]) -> list[int]:
        if len(batch) > 1:
            torch.empty(1 << 60, dtype=torch.uint8)
        return batch

    assert run_batches([1, 1, 1], TokenBudget(3), run) == [0, 1, 2]


def test_memory_for_not_even_one() -> None:
    def run(batch: list[int]) -> list[int]:
        raise MemoryError

    with pytest.raises(ModelError, match="single sequence of 7 tokens"):
        run_batches([7, 5], TokenBudget(100), run)


def test_other_errors_are_not_swallowed() -> None:
    def run(batch: list[int]) -> list[int]:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run_batches([1], TokenBudget(1), run)
