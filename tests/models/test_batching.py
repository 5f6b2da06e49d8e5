"""Batches: every item once, similar lengths together, padding on the side that the task needs."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steer2edit.models import length_batches
from steer2edit.models.batching import pad

CPU = torch.device("cpu")


@settings(deadline=None)
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
