"""Whether two checkpoints are of one model: tensors, layers and files that only one has or that differ; settings."""

import filecmp
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from steer2edit.artifacts.atomic import MANIFEST_FILE
from steer2edit.artifacts.checkpoints.checkpoint import find_side_files
from steer2edit.artifacts.checkpoints.files import CheckpointFiles, StoredTensor
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
PROVENANCE = {"README.md", "LICENSE", "LICENSE.txt", ".gitattributes", MANIFEST_FILE}
"""Files that are not read when the model runs."""
_TYING = "tie_word_embeddings"
_LAYER = re.compile(r"(.*?\.\d+)\..+")
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
    embedding: str | None = None  # the input embedding's tensor
    head: str | None = None  # that of the output head, whether it is in the files or tied to the embedding
    ties_head: bool = False  # whether the output head is the input embedding

    @classmethod
    def of(cls, model: LanguageModel, tensors: Mapping[str, Sequence[int]]) -> "Places":
        """Of the shapes of a checkpoint's tensors by name; a ModelError where a projection is in none."""
        stored = stored_parameters(model, tensors)
        names = {id(module): f"{name}.weight" for name, module in model.network.named_modules()}
        ends = (model.network.get_input_embeddings(), model.network.get_output_embeddings())  # type: ignore[operator]
        found = [None if end is None else stored.get(names[id(end)], names[id(end)]) for end in ends]
        ties_head = None not in ends and ends[0].weight is ends[1].weight
        return cls(model, stored_matrices(model, tensors), stored, found[0], found[1], ties_head)

    @cached_property
    def by_tensor(self) -> Mapping[str, list[StoredMatrix]]:
        """The projections that a tensor holds: one, several experts, or none."""
        found = defaultdict[str, list[StoredMatrix]](list)
        for place in self.by_key.values():
            found[place.tensor].append(place)
        return found

    @cached_property
    def by_site(self) -> Mapping[Site, list[StoredMatrix]]:
        """The projections of a site."""
        found = defaultdict[Site, list[StoredMatrix]](list)
        for place in self.by_key.values():
            found[place.site].append(place)
        return found


@dataclass(frozen=True)
class Structure:
    """What differs between two models besides the values of tensors that both have."""

    added: Sequence[str]  # tensors that only the edited one has
    missing: Sequence[str]  # tensors that only the base has
    other_shape: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]  # (shape before, shape after) by tensor
    settings: Differences  # of config.json that change what is computed
    code: tuple[str, ...]  # Python files that differ
    added_layers: Sequence[str]  # layers that only the edited one has
    missing_layers: Sequence[str]  # layers that only the base has

    @property
    def phrases(self) -> list[str]:
        """One phrase for each kind of difference."""
        layers = (*self.added_layers, *self.missing_layers)
        rest = [[name for name in names if _layer_of(name) not in layers] for names in (self.added, self.missing)]
        return [
            *counted(self.added_layers, "layer", "added"),
            *counted(self.missing_layers, "layer", "missing"),
            *counted(rest[0], "tensor", "added"),
            *counted(rest[1], "tensor", "missing"),
            *counted(self.other_shape, "tensor", "of another shape"),
            *counted(self.settings, "setting", "of config.json that differs", "of config.json that differ"),
            *counted(self.code, "file", "of code that differs", "of code that differ"),
        ]


def counted(names: Collection[str], noun: str, what: str, several: str | None = None) -> list[str]:
    """`2 tensors added (a; b)`, or nothing where there are none."""
    if not names:
        return []
    shown = "; ".join(list(names)[:_MOST_NAMES]) + ("; ..." if len(names) > _MOST_NAMES else "")
    number = f"1 {noun} {what}" if len(names) == 1 else f"{len(names)} {noun}s {several or what}"
    return [f"{number} ({shown})"]


def compare_structure(before: Views, after: Views, settings: Differences, code: tuple[str, ...]) -> Structure:
    """Compare two models' tensors and layers by name, and their shapes."""
    ours, theirs = (dict.fromkeys(layer for name in views if (layer := _layer_of(name))) for views in (before, after))
    stacks = {layer.rpartition(".")[0] for layer in ours}
    return Structure(
        added=[name for name in after if name not in before],
        missing=[name for name in before if name not in after],
        other_shape={
            n: (v.shape, after[n].shape) for n, v in before.items() if n in after and after[n].shape != v.shape
        },
        settings=settings,
        code=code,
        added_layers=[layer for layer in theirs if layer not in ours and layer.rpartition(".")[0] in stacks],
        missing_layers=[layer for layer in ours if layer not in theirs],
    )


def _layer_of(tensor: str) -> str | None:
    return match[1] if (match := _LAYER.fullmatch(tensor)) else None


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


class FileChange(NamedTuple):
    """One file that is not the same in both directories."""

    name: str  # path within the directories
    what: str  # `added`, `missing` or `differs`


def changed_files(base: CheckpointFiles, other: CheckpointFiles) -> list[FileChange]:
    """Files besides the weights that were added, are missing or differ, by `find_side_files`.

    Which shard holds which tensor is no difference; neither is, in JSON, what changes nothing of what is computed.
    """
    sides = [[{str(path) for path in paths} for paths in find_side_files(files)] for files in (base, other)]
    # the rest is weights in other formats and hidden entries: `apply` leaves them out, so only what is more or other
    # counts
    (ours, our_rest), (theirs, their_rest) = sides
    found = [FileChange(name, "added") for name in sorted((theirs - ours) | (their_rest - our_rest))]
    found += [FileChange(name, "missing") for name in sorted(ours - theirs)]
    for name in (*sorted(our_rest & their_rest), *sorted(ours & theirs)):
        one, two = base.directory / name, other.directory / name
        same = not (one.is_file() and two.is_file()) or filecmp.cmp(one, two, shallow=False)
        if not same and name in ours and one.suffix == ".json":
            with suppress(ArtifactError):  # that the files differ is said; what a damaged one holds cannot be
                same = not _differences(read_json(one), read_json(two)).keys() - WITHOUT_EFFECT
        if not same:
            found.append(FileChange(name, "differs"))
    return [change for change in found if change.name != INDEX_FILE]


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
