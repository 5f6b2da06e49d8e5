"""The audit of a checkpoint, or of an adapter, against its base: streamed, tensor by tensor."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from steer2edit.artifacts.checkpoints.safetensors_files import CheckpointFiles, has_safetensors, open_checkpoint
from steer2edit.audit.adapter_views import adapter_views, is_adapter
from steer2edit.audit.change import Place, TensorChange, describe_change
from steer2edit.audit.classify import Classification, classify
from steer2edit.audit.match import EditMatch, match_edit
from steer2edit.audit.matrix_pair import MatrixPair
from steer2edit.audit.other_files import FileChange, changed_files
from steer2edit.audit.places import Places, find_places
from steer2edit.audit.views import TensorView, checkpoint_views, copies_of, pair_of_views, same_content
from steer2edit.core import WeightEdit
from steer2edit.errors import ArtifactError, MismatchError, ModelError
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
        added: tensors that only `edited` has, with the tensor they are a copy of, if any.
        missing: tensors that only the base has, in the same way.
        other_shape: (shape before, shape after) by tensor.
        files: other files that differ.
        classification: the whole in words.
        match: against the edit that was given, if one was.
        notes: what could not be looked at, and why.
    """

    base: str
    edited: str
    is_adapter: bool
    compared: int
    identical: int
    changes: tuple[TensorChange, ...]
    added: Mapping[str, str | None]
    missing: Mapping[str, str | None]
    other_shape: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
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
    is_adapter: bool

    @property
    def common(self) -> list[str]:
        return [n for n in self.before if n in self.after and self.before[n].shape == self.after[n].shape]

    def pair_of(self, tensor: str, place: Place) -> MatrixPair:
        return pair_of_views(self.before[tensor], self.after[tensor], place.expert)


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
        ArtifactError: files are damaged, or no checkpoint or LoRA adapter in safetensors files.
        MismatchError: the two are of different models.
    """
    sides = _open(base, edited, layout, trust_remote_code)
    changes, identical = _compare(sides)
    shapes = {
        name: (view.shape, sides.after[name].shape)
        for name, view in sides.before.items()
        if name in sides.after and sides.after[name].shape != view.shape
    }
    added = {name: copies_of(name, sides.after) for name in sides.after if name not in sides.before}
    missing = {name: copies_of(name, sides.before) for name in sides.before if name not in sides.after}
    match = None if edit is None else match_edit(edit, changes, sides.places.by_tensor, sides.pair_of)
    compared = len(sides.common)
    return Audit(
        base=base,
        edited=str(edited),
        is_adapter=sides.is_adapter,
        compared=compared,
        identical=identical,
        changes=tuple(changes),
        added=added,
        missing=missing,
        other_shape=shapes,
        files=sides.files,
        classification=classify(changes, compared, _remarks(added, missing, shapes, sides.files)),
        match=match,
        notes=sides.notes,
    )


def _open(base: str, edited: Path | str, layout: Path | Layout | None, trust_remote_code: bool) -> _Sides:
    ours = open_checkpoint(checkpoint_directory(base))
    before = checkpoint_views(ours)
    places, notes = _places(base, ours, layout, trust_remote_code)
    other = checkpoint_directory(str(edited))
    if is_adapter(other):
        if has_safetensors(other):
            raise ArtifactError(
                f"{edited} holds both a model's weights and an adapter, and transformers loads the one on top of the "
                "other. Audit them one by one: move adapter_config.json and adapter_model.safetensors to a folder of "
                "their own."
            )
        after, unread = adapter_views(other, before, places)
        notes += [f"the adapter's {name} could not be placed in the base and was not looked at" for name in unread]
        return _Sides(before, after, places, (), tuple(notes), True)
    theirs = open_checkpoint(other)
    after = checkpoint_views(theirs)
    _require_related(base, str(edited), before, after)
    return _Sides(before, after, places, tuple(changed_files(ours, theirs)), tuple(notes), False)


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


def _remarks(
    added: Mapping[str, str | None],
    missing: Mapping[str, str | None],
    shapes: Mapping[str, object],
    files: tuple[FileChange, ...],
) -> list[str]:
    news = [name for name, copy in added.items() if copy is None]
    lost = [name for name, copy in missing.items() if copy is None]
    differing = [change.name for change in files if change.matters]
    parts = [
        (news, "tensors added"), (lost, "tensors missing"), (list(shapes), "tensors of another shape"),
        (differing, "other files that differ"),
    ]  # fmt: skip
    return [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for names, what in parts
        if names
    ]
