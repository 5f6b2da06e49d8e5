"""Edits as rank-1 LoRA adapters for an engine that loads adapters from disk and has room for a few at a time."""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from steer2edit.artifacts.edits.lora import lora_targets, write_lora
from steer2edit.artifacts.edits.low_rank import LowRank
from steer2edit.core import Combined, Editing, Intervention, Steering
from steer2edit.errors import InvalidValueError
from steer2edit.models import LanguageModel


@dataclass(frozen=True)
class Adapter:
    """An edit written as a PEFT adapter."""

    number: int  # from 1; never given twice, because engines recognise adapters and their cached prefixes by it
    directory: Path  # of the adapter's files
    editing: Editing  # the edit with the strength that is folded in. Kept, so that its identity stays its own


class AdapterCache:
    """Adapters of the edits that were used last. An edit is recognised by its identity and strength."""

    def __init__(self, model: LanguageModel, capacity: int, drop: Callable[[int], object]) -> None:
        # `drop` is called with the number of an adapter that gives way, before its files are deleted
        if capacity < 1:
            raise InvalidValueError(f"max_edits must be >= 1, got {capacity}.")
        self._model = model
        self._capacity = capacity
        self._drop = drop
        self._adapters: dict[tuple[int, float], Adapter] = {}  # least recently used first
        self._written = 0
        self._root = Path(tempfile.mkdtemp(prefix="steer2edit-adapters-"))
        self.close = weakref.finalize(self, shutil.rmtree, self._root, ignore_errors=True)

    def hold(self, edits: Sequence[Editing]) -> dict[tuple[int, float], Adapter]:
        """The adapters of these edits, by `edit_key`; the least recently used others give way.

        Raises:
            MismatchError: an edit has sites or shapes that the model has not.
        """
        wanted = {edit_key(editing): editing for editing in edits}
        assert len(wanted) <= self._capacity
        for key in wanted.keys() & self._adapters.keys():
            self._adapters[key] = self._adapters.pop(key)  # most recently used now
        missing = wanted.keys() - self._adapters.keys()
        while len(self._adapters) + len(missing) > self._capacity:
            dropped = self._adapters.pop(next(iter(self._adapters)))
            self._drop(dropped.number)
            shutil.rmtree(dropped.directory)
        for key, editing in wanted.items():
            if key in missing:
                self._adapters[key] = self._write(editing)
        return {key: self._adapters[key] for key in wanted}

    def _write(self, editing: Editing) -> Adapter:
        self._model.require_shapes(editing.edit.shapes, "edits")
        self._written += 1
        directory = self._root / str(self._written)
        directory.mkdir()
        write_adapter(self._model, editing, directory)
        return Adapter(self._written, directory, editing)


def write_adapter(model: LanguageModel, editing: Editing, directory: Path) -> None:
    """Write the adapter's two files: per site `lora_A = strength · aᵀ`, `lora_B = u`, in float32."""
    edits = editing.edit.scaled(editing.strength).sites
    factors = {site: LowRank.of(edit) for site, edit in edits.items() if bool(edit.row.any())}
    write_lora(model, lora_targets(model, factors), directory)


def as_edit(intervention: Intervention) -> Editing | None:
    """The edit of an intervention, `None` where it leaves the base as it is.

    Raises:
        InvalidValueError: it is activation steering, or several interventions at once.
    """
    if isinstance(intervention, Combined):
        raise InvalidValueError(
            "several interventions at once cannot run on this engine, which takes one adapter per request. Use the "
            "transformers engine."
        )
    if isinstance(intervention, Steering):
        raise InvalidValueError(
            f"activation steering (strength {intervention.strength:g}) cannot run on this engine: it adds a constant "
            "to a site's output, and a LoRA adapter can only add a multiple of the input. Use the transformers engine."
        )
    return None if intervention is None or intervention.strength == 0 or intervention.edit.is_empty else intervention


def edit_key(editing: Editing) -> tuple[int, float]:
    """What an edit is recognised by while it is alive."""
    return id(editing.edit), editing.strength


def edit_groups(edits: Sequence[Editing | None], capacity: int) -> list[list[int]]:
    """Positions in groups of at most `capacity` different edits; the base's are in the first group."""
    order = {edit_key(editing): None for editing in edits if editing is not None}
    group_of = {key: rank // capacity for rank, key in enumerate(order)}
    groups: dict[int, list[int]] = {}
    for index, editing in enumerate(edits):
        groups.setdefault(0 if editing is None else group_of[edit_key(editing)], []).append(index)
    return list(groups.values())
