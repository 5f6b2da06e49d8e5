"""Whether two checkpoints are of one model: tensors, layers and files that only one has or that differ; settings."""

import filecmp
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from steer2edit.artifacts.atomic import MANIFEST_FILE
from steer2edit.artifacts.checkpoints.checkpoint import find_side_files
from steer2edit.artifacts.checkpoints.files import CheckpointFiles, StoredTensor
from steer2edit.artifacts.manifest import read_json
from steer2edit.audit.matrices import MatrixPair
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
FileChange = Literal["added", "missing", "differs"]


@dataclass(frozen=True)
class Places:
    """A model's parameters by where they are stored: nothing where the architecture is not known."""

    model: LanguageModel | None = None  # the structure, without weights
    matrices: Sequence[StoredMatrix] = ()  # its projections
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
        return cls(model, list(stored_matrices(model, tensors).values()), stored, found[0], found[1], ties_head)

    @cached_property
    def by_tensor(self) -> Mapping[str, list[StoredMatrix]]:
        """The projections that a tensor holds: one, or several experts."""
        found = defaultdict[str, list[StoredMatrix]](list)
        for place in self.matrices:
            found[place.tensor].append(place)
        return found


@dataclass(frozen=True)
class Structure:
    """Two models side by side: what differs besides the values of tensors that both have, and where those are."""

    before: Views
    after: Views
    places: Places  # of the base
    settings: Differences  # of config.json that change what is computed
    files: Mapping[str, FileChange]  # other files that are not the same, by their path within the directories
    unread: Mapping[str, str]  # tensors of an adapter that were not looked at, and why

    @cached_property
    def common(self) -> list[str]:
        """Tensors that both have, in the same shape."""
        return [name for name in self.before if name in self.after and name not in self.other_shape]

    @property
    def added(self) -> list[str]:
        """Tensors that only the edited one has."""
        return [name for name in self.after if name not in self.before]

    @property
    def missing(self) -> list[str]:
        """Tensors that only the base has."""
        return [name for name in self.before if name not in self.after]

    @cached_property
    def other_shape(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """(shape before, shape after) by tensor."""
        shapes = {name: (old.shape, self.after[name].shape) for name, old in self.before.items() if name in self.after}
        return {name: (one, other) for name, (one, other) in shapes.items() if one != other}

    @property
    def layers(self) -> dict[str, list[str]]:
        """Layers that only one of the two has: `added`, to a stack of the base's, or `missing`."""
        ours, theirs = (
            dict.fromkeys(layer for name in views if (layer := _layer_of(name))) for views in (self.before, self.after)
        )
        stacks = {layer.rpartition(".")[0] for layer in ours}
        added = [layer for layer in theirs if layer not in ours and layer.rpartition(".")[0] in stacks]
        return {"added": added, "missing": [layer for layer in ours if layer not in theirs]}

    def pair(self, name: str, expert: int | None = None) -> MatrixPair | None:
        """A matrix of the base before and after, or `None` where the two cannot be subtracted."""
        before, after = self.before[name], self.after.get(name)
        if after is None or after.shape != before.shape or not (before.is_plain_float and after.is_plain_float):
            return None
        return MatrixPair(before, after, expert)

    @property
    def of_the_model(self) -> list[str]:
        """One phrase for each kind of difference that makes it another model."""
        layers = self.layers
        found = [phrase for what, names in layers.items() for phrase in counted(names, "layer", what)]
        for what, names in (("added", self.added), ("missing", self.missing)):
            found += counted([name for name in names if _layer_of(name) not in layers[what]], "tensor", what)
        code = [name for name in self.files if name.endswith(".py")]
        return [
            *found,
            *counted(self.other_shape, "tensor", "of another shape"),
            *counted(self.settings, "setting", "of config.json that differs", "of config.json that differ"),
            *counted(code, "file", "of code that differs", "of code that differ"),
        ]

    @property
    def besides_it(self) -> list[str]:
        """A phrase for other files, such as the tokenizer's."""
        told = {*PROVENANCE, *(["config.json"] if self.settings else [])}
        names = [name for name in self.files if name not in told and not name.endswith(".py")]
        return counted(names, "other file", "that differs", "that differ")

    @property
    def not_looked_at(self) -> list[str]:
        """A phrase for what was not read."""
        return counted(self.unread, "tensor", "of the adapter not looked at")


def counted(names: Collection[str], noun: str, what: str, several: str | None = None) -> list[str]:
    """`2 tensors added (a; b)`, or nothing where there are none."""
    if not names:
        return []
    shown = "; ".join(list(names)[:_MOST_NAMES]) + ("; ..." if len(names) > _MOST_NAMES else "")
    number = f"1 {noun} {what}" if len(names) == 1 else f"{len(names)} {noun}s {several or what}"
    return [f"{number} ({shown})"]


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


def changed_files(base: CheckpointFiles, other: CheckpointFiles) -> dict[str, FileChange]:
    """Files besides the weights that were added, are missing or differ, by `find_side_files`.

    Which shard holds which tensor is no difference; neither is, in JSON, what changes nothing of what is computed, nor
    that weights in other formats and hidden entries are missing, which `apply` leaves out.
    """
    ours, theirs = (find_side_files(files) for files in (base, other))
    own, found = {*ours.own, *theirs.own}, dict[str, FileChange]()
    for path in sorted({*own, *ours.left_out, *theirs.left_out} - {Path(INDEX_FILE)}):
        one, two = base.directory / path, other.directory / path
        if path not in (*ours.own, *ours.left_out):
            found[str(path)] = "added"
        elif path not in (*theirs.own, *theirs.left_out):
            found |= {str(path): "missing"} if path in own else {}
        elif one.is_file() and two.is_file() and not _same(one, two, as_json=path in own and path.suffix == ".json"):
            found[str(path)] = "differs"
    return found


def _same(one: Path, two: Path, *, as_json: bool) -> bool:
    if filecmp.cmp(one, two, shallow=False):
        return True
    with suppress(ArtifactError):  # that the files differ is said; what a damaged one holds cannot be
        return as_json and not _differences(read_json(one), read_json(two)).keys() - WITHOUT_EFFECT
    return False


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
