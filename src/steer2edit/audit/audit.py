"""The audit of a checkpoint, or of an adapter, against its base: streamed, tensor by tensor."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steer2edit.artifacts.checkpoints.safetensors_files import CheckpointFiles, open_checkpoint
from steer2edit.audit.adapter_views import adapter_views, is_adapter
from steer2edit.audit.change import Place, TensorChange, describe_change
from steer2edit.audit.classify import Classification, classify
from steer2edit.audit.match import EditMatch, match_edit
from steer2edit.audit.matrix_pair import MatrixPair
from steer2edit.audit.other_files import FileChange, changed_files
from steer2edit.audit.places import Places, find_places
from steer2edit.audit.structure import Structure, compare_structure, counted, differing_settings, tie_heads
from steer2edit.audit.views import TensorView, checkpoint_views, pair_of_views, same_content
from steer2edit.core import WeightEdit
from steer2edit.errors import MismatchError, ModelError
from steer2edit.models import checkpoint_directory, load_skeleton
from steer2edit.models.layout import Layout
from steer2edit.progress import step


@dataclass(frozen=True)
class Audit:
    """What differs between a base and another checkpoint.

    Args:
        base: as it was given.
        edited: the same.
        is_adapter: whether `edited` is an adapter.
        compared: tensors that both have, in the same shape.
        identical: how many of them are the same bit for bit.
        changes: the others.
        structure: what differs besides: tensors that only one has, other shapes, settings.
        unread: tensors of an adapter that were not looked at, and why.
        files: other files that differ.
        classification: the whole in words.
        match: against the edit that was given, if one was.
        notes: what else could not be told, and why.
    """

    base: str
    edited: str
    is_adapter: bool
    compared: int
    identical: int
    changes: tuple[TensorChange, ...]
    structure: Structure
    unread: Mapping[str, str]
    files: tuple[FileChange, ...]
    classification: Classification
    match: EditMatch | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Sides:
    before: Mapping[str, TensorView]
    after: Mapping[str, TensorView]
    places: Places
    files: tuple[FileChange, ...]
    notes: tuple[str, ...]
    settings: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    is_adapter: bool = False

    @property
    def common(self) -> list[str]:
        return [n for n in self.before if n in self.after and self.before[n].shape == self.after[n].shape]

    def pair_of(self, tensor: str, place: Place) -> MatrixPair | None:
        """A projection before and after, or `None` where the two cannot be subtracted."""
        before, after = self.before[tensor], self.after.get(tensor)
        if after is None or after.shape != before.shape or before.dtype is None or after.dtype is None:
            return None
        return pair_of_views(before, after, place.expert)


def audit(
    base: str,
    edited: Path | str,
    edit: WeightEdit | None = None,
    *,
    layout: Path | Layout | None = None,
    trust_remote_code: bool = False,
) -> Audit:
    """Compare a checkpoint or an adapter with its base: what changed, how, and by which heads and neurons.

    Neither is loaded as a model; a few rows of one tensor are in memory at a time.

    Args:
        base: a Hub id (its local snapshot), a directory, or `smollm2`.
        edited: the same of the other checkpoint, or the directory of a PEFT LoRA adapter.
        edit: an edit to compare with what is found.
        layout: a layout, or a file of one, for an architecture that is not known.
        trust_remote_code: run the Python code that the base brings, to know its structure.

    Raises:
        ModelError: one of the models is not there.
        ArtifactError: files are damaged, no checkpoint in safetensors files and no LoRA adapter, or an adapter with
            settings that are not understood.
        MismatchError: the two are of different models.
    """
    sides = _open(base, edited, layout, trust_remote_code)
    changes, identical = _compare(sides)
    differing = [f.name for f in sides.files if f.matters and not (f.name == "config.json" and sides.settings)]
    code = tuple(name for name in differing if name.endswith(".py"))
    structure = compare_structure(sides.before, sides.after, sides.settings, code)
    unread = counted(sides.unread, "tensor", "of the adapter not looked at")
    besides = counted([n for n in differing if n not in code], "other file", "that differs", "that differ")
    match = None
    if edit is not None:
        if not sides.places.sites:
            raise ModelError(f"{edited} cannot be compared with an edit: {'; '.join(sides.notes)}")
        remarks = (*structure.phrases, *unread, *besides)
        match = match_edit(edit, changes, sides.places.by_tensor, sides.pair_of, remarks)
    own = [change for change in changes if not structure.is_moved(change.tensor)]
    compared = len(sides.common)
    return Audit(
        base=base,
        edited=str(edited),
        is_adapter=sides.is_adapter,
        compared=compared,
        identical=identical,
        changes=tuple(changes),
        structure=structure,
        unread=sides.unread,
        files=sides.files,
        classification=classify(own, compared, structure.phrases, unread, besides),
        match=match,
        notes=sides.notes,
    )


def _open(base: str, edited: Path | str, layout: Path | Layout | None, trust_remote_code: bool) -> _Sides:
    where, other = checkpoint_directory(base), checkpoint_directory(str(edited), weights_alone=True)
    ours = open_checkpoint(where)
    before = checkpoint_views(ours)
    places, notes = _places(base, ours, layout, trust_remote_code)
    if is_adapter(other):
        return _open_adapter(other, ours, before, places, notes)
    theirs = open_checkpoint(other)
    after = checkpoint_views(theirs)
    _require_related(base, str(edited), before, after)
    settings = differing_settings(where, other)
    tie_heads(before, after, places, settings)
    return _Sides(before, after, places, tuple(changed_files(ours, theirs)), tuple(notes), settings)


def _open_adapter(
    directory: Path, ours: CheckpointFiles, before: dict[str, TensorView], places: Places, notes: list[str]
) -> _Sides:
    tied = {places.head: before[places.embedding]} if places.ties_head and places.embedding in before else {}
    after, unread = adapter_views(directory, {**tied, **before}, places)  # type: ignore[dict-item]
    for name, view in tied.items():
        if name not in before and after[str(name)] is view:
            del after[str(name)]
        else:
            before.setdefault(str(name), view)
    files = [f for f in changed_files(ours, CheckpointFiles(directory, (), {})) if f.what == "differs" and f.matters]
    return _Sides(before, after, places, tuple(files), tuple(notes), unread=unread, is_adapter=True)


def _places(
    base: str, files: CheckpointFiles, layout: Path | Layout | None, trust_remote_code: bool
) -> tuple[Places, list[str]]:
    try:
        model = load_skeleton(base, layout=layout, trust_remote_code=trust_remote_code)
        return find_places(model, {name: tensor.shape for name, tensor in files.tensors.items()}), []
    except ModelError as error:
        if layout is not None:
            raise
        return Places(), [f"heads and neurons cannot be named: {error}"]


def _require_related(base: str, edited: str, before: Mapping[str, TensorView], after: Mapping[str, TensorView]) -> None:
    shared = [name for name in before if name in after]
    fitting = [name for name in shared if before[name].shape == after[name].shape]
    if len(shared) * 2 < len(before):
        missing = sorted(before.keys() - after.keys())
        raise MismatchError(
            f"{edited} has only {len(shared)} of the {len(before)} tensors of {base} (it lacks {missing[0]}, ...): it "
            "is another model, or its tensors are named or packed otherwise. Give the base that it was made from."
        )
    if len(fitting) * 2 < len(shared):
        name = next(name for name in shared if name not in fitting)
        raise MismatchError(
            f"{edited} is no edit of {base}: {len(shared) - len(fitting)} of {len(shared)} tensors have other shapes, "
            f"such as {name}, {list(before[name].shape)} in the base and {list(after[name].shape)} in the other. Give "
            "the base that it was made from."
        )


def _compare(sides: _Sides) -> tuple[list[TensorChange], int]:
    changes: list[TensorChange] = []
    identical = 0
    with step("Comparing tensors", len(sides.common)) as advance:
        for name in sides.common:
            before, after = sides.before[name], sides.after[name]
            found = [] if same_content(before, after) else list(_changes(sides, name))
            identical += not found
            changes += found
            advance(1)
    return changes, identical


def _changes(sides: _Sides, name: str) -> Iterator[TensorChange]:
    before, after = sides.before[name], sides.after[name]
    if before.dtype is None or after.dtype is None:
        yield TensorChange(name, "bits", before.shape, (before.dtype_name, after.dtype_name))
        return
    places = sides.places.by_tensor.get(name, ())
    covered = {place.expert for place in places}
    if not places or (None not in covered and len(covered) != before.shape[0]):
        places = (None,)  # type: ignore[assignment]
    for place in places:
        pair = pair_of_views(before, after, None if place is None else place.expert)
        change = describe_change(name, pair, place)
        if change is not None:
            yield change
