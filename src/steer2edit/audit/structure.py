"""Whether two checkpoints are of one model: tensors, layers and files that only one has or that differ; settings."""

import filecmp
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from steer2edit.artifacts.atomic import MANIFEST_FILE
from steer2edit.artifacts.checkpoints.files import CheckpointFiles, StoredTensor, find_side_files
from steer2edit.artifacts.manifest import read_json
from steer2edit.core import Site
from steer2edit.errors import ArtifactError, ModelError
from steer2edit.models import LanguageModel, StoredMatrix, read_settings, stored_matrices, stored_parameters
from steer2edit.models.model_path import INDEX_FILE

WITHOUT_EFFECT = frozenset({
    "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "_attn_implementation",
    "_attn_implementation_autoset", "attn_implementation", "initializer_range", "gradient_checkpointing",
    "output_attentions", "output_hidden_states", "return_dict", "torchscript", "id2label", "label2id", "problem_type",
    "attention_dropout", "hidden_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "embd_pdrop",
    "resid_pdrop", "attn_pdrop", "classifier_dropout", "router_aux_loss_coef", "pretraining_tp",
})  # fmt: skip
"""Settings of config.json that change nothing of what the model computes: provenance, storage, training."""
_TOKENS = frozenset({"bos_token_id", "eos_token_id", "pad_token_id"})  # they change no number that is computed
_PROVENANCE = {"README.md", "LICENSE", "LICENSE.txt", ".gitattributes", MANIFEST_FILE}

_TYING = "tie_word_embeddings"
_LAYER = re.compile(r"(?P<layer>.*?\.\d+)\.(?P<part>.+)")
_MOST_NAMES = 3

Views = Mapping[str, StoredTensor]
"""The tensors of a checkpoint by name."""
Differences = dict[str, tuple[Any, Any]]
"""(before, after) by key."""


@dataclass(frozen=True)
class Places:
    """A model's parameters by where they are stored: nothing where the architecture is not known."""

    model: LanguageModel | None = None  # the structure, without weights
    by_key: Mapping[str, StoredMatrix] = field(default_factory=dict)  # by the projection's key
    tensors: Mapping[str, str] = field(default_factory=dict)  # tensors of the files by the parameter that they are

    @classmethod
    def of(cls, model: LanguageModel, tensors: Mapping[str, Sequence[int]]) -> "Places":
        """Of the shapes of a checkpoint's tensors by name; a ModelError where a projection is in none."""
        return cls(model, stored_matrices(model, tensors), stored_parameters(model, tensors))

    @cached_property
    def by_tensor(self) -> dict[str, list[StoredMatrix]]:
        """The projections that a tensor holds: one, or several experts."""
        places = sorted(self.by_key.values(), key=lambda place: place.tensor)
        return {tensor: list(own) for tensor, own in groupby(places, key=lambda place: place.tensor)}

    @cached_property
    def by_site(self) -> dict[Site, list[StoredMatrix]]:
        """The projections of a site."""
        places = sorted(self.by_key.values(), key=lambda place: place.site)
        return {site: list(own) for site, own in groupby(places, key=lambda place: place.site)}

    @property
    def embedding(self) -> str | None:
        """The input embedding's tensor."""
        return self._weight("get_input_embeddings")

    @property
    def head(self) -> str | None:
        """The tensor of the output head, whether it is in the files or tied to the embedding."""
        return self._weight("get_output_embeddings")

    @property
    def ties_head(self) -> bool:
        """Whether the output head is the input embedding."""
        if self.model is None or self.head is None or self.embedding is None:
            return False
        return self.model.network.get_output_embeddings().weight is self.model.network.get_input_embeddings().weight  # type: ignore[operator]

    def _weight(self, getter: str) -> str | None:
        wanted = None if self.model is None else getattr(self.model.network, getter)()
        if self.model is None or wanted is None:
            return None
        name = next(f"{name}.weight" for name, module in self.model.network.named_modules() if module is wanted)
        return self.tensors.get(name, name)


@dataclass(frozen=True)
class Structure:
    """What differs between two models besides the values of tensors that both have."""

    added: Mapping[str, str | None]  # tensors that only the edited one has, with the tensor they are a copy of, if any
    missing: Mapping[str, str | None]  # tensors that only the base has, in the same way
    other_shape: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]  # (shape before, shape after) by tensor
    settings: Differences  # of config.json that change what is computed
    code: tuple[str, ...]  # Python files that differ
    added_layers: Mapping[str, str | None]  # layers that only the edited one has, with the base's they are a copy of
    missing_layers: tuple[str, ...]  # layers that only the base has
    moved_layers: Mapping[str, str]  # layers of both, with the base's other layer that the edited one has there

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
    number = f"1 {noun} {what}" if len(names) == 1 else f"{len(names)} {noun}s {several or what}"
    return [f"{number} ({shown})"]


def compare_structure(before: Views, after: Views, settings: Differences, code: tuple[str, ...]) -> Structure:
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


def _layers(views: Views) -> dict[str, dict[str, StoredTensor]]:
    found: dict[str, dict[str, StoredTensor]] = {}
    for name, view in views.items():
        if match := _LAYER.fullmatch(name):
            found.setdefault(match["layer"], {})[match["part"]] = view
    return found


def _layer_of(tensor: str) -> str | None:
    return match["layer"] if (match := _LAYER.fullmatch(tensor)) else None


def _copied(layer: Views, ours: Mapping[str, Views]) -> str | None:
    return next((name for name, other in ours.items() if _same(layer, other)), None)


def _same(one: Views, other: Views) -> bool:
    return one.keys() == other.keys() and all(view.equals(other[part]) for part, view in one.items())


def tie_heads(
    before: dict[str, StoredTensor], after: dict[str, StoredTensor], places: Places, settings: Differences
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


@dataclass(frozen=True)
class FileChange:
    """One file that is not the same in both directories."""

    name: str  # path within the directories
    what: str  # `added`, `missing` or `differs`
    settings: Differences  # of a JSON file that differs: (before, after) by key, of keys at the top

    @property
    def matters(self) -> bool:
        """Whether it is read when the model runs, and says something else: not a licence, a card or a version."""
        return self.name not in _PROVENANCE and not (self.settings and self.settings.keys() <= WITHOUT_EFFECT)


def changed_files(base: CheckpointFiles, other: CheckpointFiles) -> list[FileChange]:
    """Files besides the weights that were added, are missing or differ, by `find_side_files`."""
    sides = [[{str(path) for path in paths} for paths in find_side_files(files)] for files in (base, other)]
    # the rest is weights in other formats and hidden entries: `apply` leaves them out, so only what is more or other
    # counts
    (ours, our_rest), (theirs, their_rest) = sides
    found = [FileChange(name, "added", {}) for name in sorted((theirs - ours) | (their_rest - our_rest))]
    found += [FileChange(name, "missing", {}) for name in sorted(ours - theirs)]
    for name in (*sorted(our_rest & their_rest), *sorted(ours & theirs)):
        one, two = base.directory / name, other.directory / name
        if one.is_file() and two.is_file() and not filecmp.cmp(one, two, shallow=False):
            settings = _json_differences(one, two) if name in ours else None
            if settings != {}:
                found.append(FileChange(name, "differs", settings or {}))
    # which shard holds which tensor is no difference: the tensors themselves are compared
    return [change for change in found if change.name != INDEX_FILE]


def _json_differences(one: Path, two: Path) -> Differences | None:
    """What differs between two JSON objects, nothing where only their layout does; `None` for other files."""
    if one.suffix != ".json":
        return None
    try:
        return _differences(read_json(one), read_json(two))
    except ArtifactError:
        return None  # that the files differ is said; what a damaged one holds cannot be


def differing_settings(base: Path, other: Path) -> Differences:
    """(before, after) of each setting in config.json that changes what is computed, as the architecture reads it."""
    try:
        one, two = (read_settings(path) for path in (base, other))
    except ModelError:  # an unknown architecture: as they are written
        one, two = (read_json(p) if p.is_file() else {} for p in (base / "config.json", other / "config.json"))
    return _differences(_computing(one), _computing(two))


def _differences(one: Mapping[str, Any], two: Mapping[str, Any]) -> Differences:
    return {k: (one.get(k), two.get(k)) for k in sorted({*one, *two}) if one.get(k) != two.get(k)}


def _computing(settings: Any) -> Any:
    """Settings without those that change nothing; those of a part, such as text_config, as well."""
    if not isinstance(settings, dict):
        return settings
    found = {k: _computing(v) for k, v in settings.items() if k not in WITHOUT_EFFECT | _TOKENS}
    if isinstance(found.get("architectures"), list):
        found["architectures"] = sorted(found["architectures"], key=str)
    return found
