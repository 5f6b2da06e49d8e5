"""Batches of similar length, padded on the side that the task needs, of a size that memory allows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from steer2edit.errors import ModelError

DEFAULT_BATCH_TOKENS = 4096

Result = TypeVar("Result")


@dataclass
class TokenBudget:
    """How many tokens a batch may hold, rows × longest row. It shrinks when memory runs out, and stays shrunk."""

    tokens: int = DEFAULT_BATCH_TOKENS  # the budget to begin with


def length_batches(lengths: Sequence[int], max_tokens: int = DEFAULT_BATCH_TOKENS) -> Iterator[list[int]]:
    """Indices grouped by length, longest first, so that rows × longest stays within `max_tokens`.

    A single item longer than `max_tokens` still gets a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    done = 0
    while done < len(order):
        rows = max(1, max_tokens // max(1, lengths[order[done]]))
        yield order[done : done + rows]
        done += rows


def run_batches(
    lengths: Sequence[int], budget: TokenBudget, run: Callable[[list[int]], Sequence[Result]]
) -> list[Result]:
    """Results of all items in their order, batch by batch, longest first.

    `run` makes of the indices of a batch its results, in that order. A batch that runs out of memory is run again in
    halves, and the budget stays at what was found to fit; a ModelError where a single item does not.
    """
    results: dict[int, Result] = {}
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while (done := len(results)) < len(order):
        longest = lengths[order[done]]
        batch = order[done : done + max(1, budget.tokens // max(1, longest))]
        try:
            results.update(zip(batch, run(batch), strict=True))
            continue
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        if torch.cuda.is_available():  # what the failed attempt held is free again by now
            torch.cuda.empty_cache()
        if len(batch) == 1:
            raise ModelError(
                f"memory does not suffice for a single sequence of {longest} tokens. Use shorter prompts or replies, "
                "a smaller dtype (--dtype bfloat16), or a device with more memory."
            )
        budget.tokens = (len(batch) // 2) * longest
    return [results[i] for i in range(len(lengths))]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; on a CPU torch says so with a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    signs = ("can't allocate memory", "Cannot allocate memory", "not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def pad(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device, *, left: bool = False
) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
    """(token ids, attention mask), padded on the right, or on the left for generation."""
    side = "left" if left else "right"
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=pad_id, padding_side=side)
    mask = pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True, padding_side=side)
    return ids.to(device), mask.to(device)
