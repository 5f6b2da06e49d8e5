"""What rounding leaves of changes ΔW to matrices W: the arithmetic of `precision.py`, without a model's behaviour.

Shapes: [d, m] throughout; quantities are pooled over all matrices of an edit.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
from stored_ways import Way, carried
from torch import Tensor

Changes = list[tuple[Tensor, Tensor]]
"""(W, ΔW) of every edited matrix, float32."""
Rounding = Callable[[Tensor], Tensor]
STEPS = 10


@dataclass(frozen=True)
class Loss:
    """How a stored change D differs from the wanted ΔW.

    Args:
        error: ‖D − ΔW‖ / ‖ΔW‖.
        strength: ⟨D, ΔW⟩ / ‖ΔW‖².
    """

    error: float
    strength: float

    def to_json(self) -> dict[str, float]:
        """Both, rounded."""
        return {name: round(value, 5) for name, value in asdict(self).items()}


def loss(pairs: Iterable[tuple[Tensor, Tensor]]) -> Loss:
    """Of pairs (D, ΔW)."""
    wrong = along = size = 0.0
    for found, wanted in pairs:
        wrong += (found - wanted).norm().item() ** 2
        along += (found * wanted).sum().item()
        size += wanted.norm().item() ** 2
    return Loss((wrong / size) ** 0.5, along / size)


def losses(changes: Changes, rounding: Rounding, ways: Iterable[Way]) -> dict[Way, Loss]:
    """Of each way to carry the change, against the base in the same format."""
    found: dict[Way, list[tuple[Tensor, Tensor]]] = {way: [] for way in ways}
    for weight, change in changes:
        stored = rounding(weight)
        for way, pairs in found.items():
            pairs.append((carried(way, rounding, weight, stored, change) - stored, change))
    return {way: loss(pairs) for way, pairs in found.items()}


def repeated_loss(changes: Changes, rounding: Rounding, steps: int) -> Loss:
    """Of adding ΔW in equal steps, rounding after each."""
    pairs = []
    for weight, change in changes:
        now = weight
        for _ in range(steps):
            now = rounding(now + change / steps)
        pairs.append((now - weight, change))
    return loss(pairs)


def unrestored(changes: Changes, rounding: Rounding) -> float:
    """Share of the entries of edited columns that adding ΔW, rounding, subtracting it and rounding does not restore."""
    wrong = total = 0
    for weight, change in changes:
        edited = change.abs().amax(dim=0) > 0
        back = rounding(rounding(weight + change) - change)
        wrong += int((back != weight)[:, edited].sum())
        total += int(edited.sum()) * len(weight)
    return wrong / total


def column_edits(weights: Iterable[Tensor], share: float, seed: int) -> Changes:
    """u aᵀ with a random unit u, and a random sign of a_j, |a_j| = share · ‖W_:j‖, in every column."""
    generator = torch.Generator().manual_seed(seed)
    changes = []
    for weight in weights:
        u = torch.nn.functional.normalize(torch.randn(weight.shape[0], generator=generator), dim=0)
        sign = torch.randint(0, 2, (weight.shape[1],), generator=generator) * 2 - 1
        changes.append((weight, torch.outer(u, share * sign * weight.norm(dim=0))))
    return changes


def gaussian_like(weights: Iterable[Tensor], seed: int) -> list[Tensor]:
    """Normal numbers in bfloat16 with each matrix's shape and standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(w.shape, generator=generator) * w.std()).bfloat16().float() for w in weights]


def verify_arithmetic() -> None:
    """Values by hand, on rounding to whole numbers; ends the program with a wrong one.

    W = (0.5, 3) and ΔW = (1, 0.25). Ties go to even, so Q(W) = (0, 3) and Q(W + ΔW) = (2, 3): D = (2, 0), error 1,
    strength 2 / 1.0625. Requantised, Q(Q(W) + ΔW) = (1, 3): D = (1, 0), error 0.25 / √1.0625, strength 1 / 1.0625.
    In two steps, (0.5, 3) becomes (1, 3) and then (2, 3): D = (1.5, 0). Undone, (2, 3) − ΔW = (1, 2.75) is rounded
    to (1, 3): one entry of two is not what it was.
    """
    changes = [(torch.tensor([[0.5, 3.0]]), torch.tensor([[1.0, 0.25]]))]
    found = losses(changes, torch.round, ("rounded", "requantised", "adapter"))
    steps = repeated_loss(changes, torch.round, 2)
    values = [x for one in (*found.values(), steps) for x in (one.error, one.strength)]
    size = 1.0625
    expected = [1, 2 / size, 0.25 / size**0.5, 1 / size, 0, 1, (0.3125 / size) ** 0.5, 1.5 / size]
    values.append(unrestored(changes, torch.round))
    if not torch.allclose(torch.tensor(values), torch.tensor([*expected, 0.5])):
        raise SystemExit(f"WRONG: losses by hand are {[*expected, 0.5]}, found {values}.")
