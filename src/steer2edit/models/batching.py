"""Batches of similar length, padded on the side that the task needs."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

DEFAULT_BATCH_TOKENS = 4096


def length_batches(lengths: Sequence[int], max_tokens: int = DEFAULT_BATCH_TOKENS) -> Iterator[list[int]]:
    """Indices grouped by length, longest first, so that rows × longest stays within `max_tokens`.

    A single item longer than `max_tokens` still gets a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    begin = 0
    while begin < len(order):
        rows = max(1, max_tokens // max(1, lengths[order[begin]]))
        yield order[begin : begin + rows]
        begin += rows


def pad(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device, *, left: bool = False
) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
    """(token ids, attention mask), padded on the right, or on the left for generation."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), None) if left else slice(0, len(row))
        ids[i, where] = torch.tensor(row)
        mask[i, where] = 1
    return ids.to(device), mask.to(device)
