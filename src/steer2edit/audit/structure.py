"""Whether two checkpoints are of one model: tensors and layers that only one has, other shapes, and other settings."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from steer2edit.audit.matrices import TensorView, Views
from steer2edit.audit.other_files import Differences
from steer2edit.audit.places import Places

_TYING = "tie_word_embeddings"
_LAYER = re.compile(r"(?P<layer>.*?\.\d+)\.(?P<part>.+)")
_MOST_NAMES = 3


@dataclass(frozen=True)
class Structure:
    """What differs between two models besides the values of tensors that both have."""

    # tensors that only the edited one has, with the tensor they are a copy of, if any
    added: Mapping[str, str | None] = field(default_factory=dict)
    missing: Mapping[str, str | None] = field(default_factory=dict)  # tensors that only the base has, in the same way
    # (shape before, shape after) by tensor
    other_shape: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    # (before, after) by the name of a setting that changes what is computed
    settings: Differences = field(default_factory=dict)
    code: tuple[str, ...] = ()  # Python files that differ
    # layers that only the edited one has, with the base's layer they are a copy of, if any
    added_layers: Mapping[str, str | None] = field(default_factory=dict)
    missing_layers: tuple[str, ...] = ()  # layers that only the base has
    # layers of both, with the base's other layer that the edited one has there
    moved_layers: Mapping[str, str] = field(default_factory=dict)

    @property
    def phrases(self) -> list[str]:
        """One phrase for each kind of difference."""
        whole = (*self.added_layers, *self.missing_layers)
        rest = [[name for name in names if _layer_of(name) not in whole] for names in (self.added, self.missing)]
        copies = [f"{n}, a copy of {c}" if c else n for n, c in self.added_layers.items()]
        moved = [f"{n} is the base's {other}" for n, other in self.moved_layers.items()]
        return [
            *counted(copies, "layer", "added"),
            *counted(self.missing_layers, "layer", "missing"),
            *counted(moved, "layer", "moved"),
            *counted(rest[0], "tensor", "added"),
            *counted(rest[1], "tensor", "missing"),
            *counted(self.other_shape, "tensor", "of another shape"),
            *counted(self.settings, "setting", "of config.json that differs", "of config.json that differ"),
            *counted(self.code, "file", "of code that differs", "of code that differ"),
        ]

    def is_moved(self, tensor: str) -> bool:
        """Whether a tensor is of a layer that the base has elsewhere."""
        return _layer_of(tensor) in self.moved_layers


def counted(names: Collection[str], noun: str, what: str, several: str | None = None) -> list[str]:
    """`2 tensors added (a; b)`, or nothing where there are none."""
    if not names:
        return []
    shown = "; ".join(list(names)[:_MOST_NAMES]) + ("; ..." if len(names) > _MOST_NAMES else "")
    is_one = len(names) == 1
    return [f"{len(names)} {noun}{'' if is_one else 's'} {what if is_one else several or what} ({shown})"]


def compare_structure(before: Views, after: Views, settings: Differences, code: tuple[str, ...] = ()) -> Structure:
    """Compare two models' tensors by name and shape, and their layers by content where their number differs."""
    ours, theirs = _layers(before), _layers(after)
    stacks = {layer.rpartition(".")[0] for layer in ours}
    added = [layer for layer in theirs if layer not in ours and layer.rpartition(".")[0] in stacks]
    missing = tuple(layer for layer in ours if layer not in theirs)
    moved: dict[str, str] = {}
    if added or missing:
        changed = [layer for layer in theirs if layer in ours and not _same(theirs[layer], ours[layer])]
        moved = {layer: other for layer in changed if (other := _copied(theirs[layer], ours)) is not None}
    return Structure(
        added={name: _copy_of(name, after) for name in after if name not in before},
        missing={name: _copy_of(name, before) for name in before if name not in after},
        other_shape={
            n: (v.shape, after[n].shape) for n, v in before.items() if n in after and after[n].shape != v.shape
        },
        settings=settings,
        code=code,
        added_layers={layer: _copied(theirs[layer], ours) for layer in added},
        missing_layers=missing,
        moved_layers=moved,
    )


def _copy_of(name: str, views: Views) -> str | None:
    """Another tensor of the same checkpoint with the same content, such as the embedding that lm_head is tied to."""
    own = views[name]
    return next((n for n, v in views.items() if n != name and v.shape == own.shape and v.equals(own)), None)


def _layers(views: Views) -> dict[str, dict[str, TensorView]]:
    found: dict[str, dict[str, TensorView]] = {}
    for name, view in views.items():
        if match := _LAYER.fullmatch(name):
            found.setdefault(match["layer"], {})[match["part"]] = view
    return found


def _layer_of(tensor: str) -> str | None:
    match = _LAYER.fullmatch(tensor)
    return match["layer"] if match else None


def _copied(layer: Views, ours: Mapping[str, Views]) -> str | None:
    return next((name for name, other in ours.items() if _same(layer, other)), None)


def _same(one: Views, other: Views) -> bool:
    return one.keys() == other.keys() and all(view.equals(other[part]) for part, view in one.items())


def tie_heads(
    before: dict[str, TensorView], after: dict[str, TensorView], places: Places, settings: Differences
) -> None:
    """Give a side whose output head is tied to its embedding that head, where the other has it as a tensor of its own.

    Where both have a head, whether it is tied is no difference of its own.
    """
    head, embedding = places.head, places.embedding
    if head is None or embedding is None:
        return
    ties = settings.get(_TYING, (places.ties_head, places.ties_head))
    for views, other, tied in ((before, after, ties[0]), (after, before, ties[1])):
        if tied and head not in views and head in other and embedding in views:
            views[head] = views[embedding]
    if head in before and head in after:
        settings.pop(_TYING, None)
