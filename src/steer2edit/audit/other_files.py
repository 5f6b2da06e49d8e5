"""What differs between two checkpoint directories besides tensors: settings, tokenizer, chat template, code."""

import filecmp
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steer2edit.artifacts.atomic import MANIFEST_FILE
from steer2edit.artifacts.checkpoints.safetensors_files import CheckpointFiles
from steer2edit.artifacts.checkpoints.side_files import find_side_files
from steer2edit.artifacts.manifest import read_json
from steer2edit.errors import ModelError
from steer2edit.models import read_settings
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

Differences = dict[str, tuple[Any, Any]]
"""(before, after) by key."""


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
    """Files besides the weights that were added, are missing or differ; weights in other formats are not read.

    Raises:
        ArtifactError: a file is a link that leads out of its directory.
    """
    sides = [find_side_files(f.directory, f.shards) for f in (base, other)]
    ours, theirs = ({str(path) for path in side.own} for side in sides)
    # weights in other formats and hidden entries: `apply` leaves them out, so only what is more or other counts
    our_rest, their_rest = ({str(path) for path in side.left_out} for side in sides)
    found = [FileChange(name, "added", {}) for name in sorted((theirs - ours) | (their_rest - our_rest))]
    found += [FileChange(name, "differs", {}) for name in sorted(our_rest & their_rest) if _differ(base, other, name)]
    found += [FileChange(name, "missing", {}) for name in sorted(ours - theirs)]
    for name in (name for name in sorted(ours & theirs) if _differ(base, other, name)):
        if (settings := _json_differences(base.directory / name, other.directory / name)) != {}:
            found.append(FileChange(name, "differs", settings or {}))
    # which shard holds which tensor is no difference: the tensors themselves are compared
    return [change for change in found if change.name != INDEX_FILE]


def _differ(base: CheckpointFiles, other: CheckpointFiles, name: str) -> bool:
    one, two = base.directory / name, other.directory / name
    return one.is_file() and two.is_file() and not filecmp.cmp(one, two, shallow=False)


def _json_differences(one: Path, two: Path) -> Differences | None:
    """What differs between two JSON objects, nothing where only their layout does; `None` for other files."""
    if one.suffix != ".json":
        return None
    try:
        before, after = (json.loads(path.read_bytes()) for path in (one, two))
    except (ValueError, RecursionError):
        return None  # that the files differ is said; what a damaged one holds cannot be
    return _differences(before, after) if isinstance(before, dict) and isinstance(after, dict) else None


def differing_settings(base: Path, other: Path) -> Differences:
    """(before, after) of each setting in config.json that changes what is computed, as the architecture reads it."""
    try:
        one, two = (read_settings(path) for path in (base, other))
    except ModelError:  # an unknown architecture: as they are written
        one, two = (
            read_json(path / "config.json") if (path / "config.json").is_file() else {} for path in (base, other)
        )
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
