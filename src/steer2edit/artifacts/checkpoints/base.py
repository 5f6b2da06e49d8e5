"""The checkpoint that an edit is written into, from its files: structure, where each weight is, and identity.

Shapes: d, m = width of a projection's output and input; r, c = rows and columns as stored, [d, m] or [m, d].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.artifacts.atomic import MANIFEST_FILE
from steer2edit.artifacts.checkpoints.files import CheckpointFiles, StoredTensor, open_checkpoint
from steer2edit.artifacts.edits.low_rank import ScaledEdits
from steer2edit.artifacts.manifest import AppliedEditRecord, CheckpointManifest, read_manifest
from steer2edit.core import Site, SiteEdit
from steer2edit.editing.applying import add_outer
from steer2edit.errors import ArtifactError, MismatchError
from steer2edit.models import (
    LanguageModel,
    Projection,
    StoredMatrix,
    checkpoint_directory,
    load_skeleton,
    sample_step,
    sampled_fingerprint,
    stored_matrices,
)

EDIT_THE_BASE = "Always edit the base itself: it keeps the exact weights, and one rounding."

# what the tensors of a quantised weight W are called instead of, or beside, `W.weight` (fused experts: `W`)
_INSTEAD = {".qweight": ".weight", ".weight_packed": ".weight", "_blocks": "", "_packed": ""}
_BESIDE = dict.fromkeys(
    (".weight_scale", ".weight_scale_inv", ".weight.absmax", ".weight.quant_map", ".SCB", ".weight_format"), ".weight"
) | {"_scale_inv": "", "_scale": ""}


@dataclass(frozen=True)
class StoredProjection:
    """A projection's weight W [d, m], and where it is stored; an ArtifactError where the tensor has another shape."""

    key: str  # of the projection
    tensor: StoredTensor  # that holds it
    expert: int | None  # index on the tensor's first axis, where experts are fused
    transposed: bool  # whether it is stored as [m, d]
    shape: tuple[int, int]  # (d, m)

    def __post_init__(self) -> None:
        stored = self.tensor.shape
        own = stored if self.expert is None else stored[1:]
        if own != (self.shape[::-1] if self.transposed else self.shape) or (self.expert or 0) >= stored[0]:
            raise ArtifactError(
                f"{self.tensor.file.name}: {self.tensor.name} has shape {list(stored)}, which is not what config.json "
                f"says of {self.key}: {list(self.shape)}. The files do not belong together, or the weight is packed."
            )

    @property
    def rows(self) -> range:
        """The matrix's rows in its tensor."""
        count = self.tensor.shape[-2]
        return range((self.expert or 0) * count, ((self.expert or 0) + 1) * count)

    def sampled_rows(self) -> Float[Tensor, "_ m"]:
        """Evenly spaced rows of W: only they are read, unless it is stored transposed."""
        step = sample_step(self.shape[0])
        if self.transposed:
            parts = (self.tensor.read_rows(*rows) for rows in self.tensor.chunks(self.rows))
            return torch.cat([part[:, ::step].T for part in parts], dim=1)
        return torch.cat([self.tensor.read_rows(row, row + 1) for row in self.rows[::step]])


@dataclass(frozen=True)
class Addition:
    """What is added to one projection of a site: `strength · u aᵀ`."""

    site: Site
    projection: StoredProjection
    edit: SiteEdit
    strength: float

    def add_to(self, wide: Float[Tensor, "r c"], start: int, product: Float[Tensor, "_ c"]) -> None:
        """Add it in place to rows of its tensor from `start` on, in float32 or float64; `product` is memory to use."""
        own = self.projection.rows
        first, stop = max(start, own.start), min(start + len(wide), own.stop)
        if first >= stop:
            return
        part, rows = slice(first - own.start, stop - own.start), wide[first - start : stop - start]
        u, a = self.edit.output_direction, self.strength * self.edit.row
        if self.projection.transposed:
            u, a = a, u  # (u aᵀ)ᵀ: the products are the same numbers
        add_outer(rows, u[part], a, product[: len(rows)])


Plan = Mapping[StoredTensor, Sequence[Addition]]
"""What is added to which tensor, in the order in which it is added."""


@dataclass(frozen=True)
class BaseCheckpoint:
    """A checkpoint's files and the model they hold."""

    model: LanguageModel  # its structure; no weight of it is read
    files: CheckpointFiles
    stored: Mapping[str, StoredMatrix]  # where each projection is in them, by key
    quantised: Mapping[str, str]  # tensors that are stored quantised, by the name they would have as plain weights

    @classmethod
    def of(cls, model: LanguageModel, files: CheckpointFiles) -> "BaseCheckpoint":
        """The checkpoint of a model whose structure is known; raises as `stored_matrices`."""
        quantised = _quantised_tensors(files)
        shapes = {**{name: tensor.shape for name, tensor in files.tensors.items()}, **dict.fromkeys(quantised)}
        return cls(model, files, stored_matrices(model, shapes), quantised)

    @property
    def directory(self) -> Path:
        """Of the checkpoint."""
        return self.files.directory

    @cached_property
    def fingerprint(self) -> str | None:
        """`LanguageModel.fingerprint` from the files; `None` where any projection is quantised."""
        projections = [p for site in self.model.sites.values() for p in site.projections]
        if any(map(self._is_quantised, projections)):
            return None
        matrices = [self.find(p) for p in projections]
        shapes = {matrix.key: matrix.shape for matrix in matrices}
        return sampled_fingerprint(shapes, (matrix.sampled_rows() for matrix in matrices))

    @cached_property
    def manifest(self) -> CheckpointManifest | None:
        """What says that the checkpoint is itself an edited one, if it can be read."""
        try:
            return read_manifest(self.directory, CheckpointManifest)
        except ArtifactError:
            return None

    @property
    def earlier_edits(self) -> tuple[AppliedEditRecord, ...]:
        """The edits that the checkpoint's own manifest says are in it."""
        return () if self.manifest is None else (*self.manifest.earlier_edits, *self.manifest.edits)

    def find(self, projection: Projection) -> StoredProjection:
        """Where a weight is; an ArtifactError where it is of another shape, or quantised: what an edit would lose."""
        stored = self.stored[projection.key]
        if self._is_quantised(projection):
            raise ArtifactError(
                f"{stored.tensor} is quantised in {self.directory} (stored as "
                f"{self.quantised.get(stored.tensor, stored.tensor)}), so that the edit cannot be added to it: rounded "
                "again, an edit of 5 % of the weight's norm keeps 10 % of its strength in 4-bit integers, 34 % in "
                "MXFP4, 94 % in FP8 (docs/precision.md). Use the edit as an adapter on this checkpoint, which rounds "
                "nothing of it (its directory loads with PEFT; see steer2edit export), or apply it to the unquantised "
                "checkpoint and quantise afterwards, to 8-bit integers at the least. Measure what will be served."
            )
        tensor = self.files.tensors[stored.tensor]
        return StoredProjection(projection.key, tensor, stored.expert, stored.transposed, projection.shape)

    def plan(self, edits: ScaledEdits) -> Plan:
        """What edits add to which tensor; a matrix whose part of a is zero is left alone. Raises as `find`."""
        plan: dict[StoredTensor, list[Addition]] = {}
        for edit, strength in edits:
            for site in edit.sites if strength else ():
                for projection in self.model.sites[site].projections:
                    part = edit.sites[site].part(projection.columns)
                    if bool(part.row.any()):
                        addition = Addition(site, self.find(projection), part, strength)
                        plan.setdefault(addition.projection.tensor, []).append(addition)
        return plan

    def require_fit(self, edits: ScaledEdits, *, allow_mismatch: bool = False) -> None:
        """Refuse edits of other shapes, edits of another model, and edits that the manifest says are in it already.

        Raises:
            MismatchError: as said. `allow_mismatch` accepts those of another model, never one that is there already.
        """
        for edit, _ in edits:
            self.model.require_shapes(edit.shapes, "edits")
            made_on = edit.metadata.get("model") or {}
            is_own = "fingerprint" not in made_on or made_on["fingerprint"] == self.fingerprint
            if is_own and not allow_mismatch:
                continue
            if any(record.is_of(edit) for record in self.earlier_edits):
                raise MismatchError(
                    f"this edit is already in {self.model.name!r}: its {MANIFEST_FILE} says so. It is not added "
                    f"twice. {EDIT_THE_BASE}"
                )
            if not allow_mismatch:
                raise MismatchError(self._mismatch(made_on))

    def _mismatch(self, made_on: Mapping[str, Any]) -> str:
        name, made, anyway = self.model.name, made_on.get("name"), "pass --allow-mismatch (allow_mismatch=True)"
        if self.fingerprint is None:
            return (
                f"some projections of {name!r} are quantised, so that it cannot be told whether it is the model the "
                f"edit was made on ({made!r}). If you know that it is, {anyway}."
            )
        if self.manifest is not None:
            return (
                f"{name!r} is itself an edited checkpoint, of {self.manifest.base.name!r} ({MANIFEST_FILE} says so), "
                f"and the edit was made on {made!r}. {EDIT_THE_BASE} To add several edits, combine them (steer2edit "
                "combine)."
            )
        return (
            f"these edits were made on {made or 'another model'!r} (fingerprint {str(made_on['fingerprint'])[:12]}), "
            f"but {name!r} has fingerprint {self.fingerprint[:12]}: other weights, or already edited ones. Use the "
            f"model they were made on, or, if you know that they fit, {anyway}."
        )

    def describe(self) -> dict[str, Any]:
        """Identity for manifests: as `LanguageModel.describe`, from the files."""
        resolved = self.directory.resolve()
        return {
            "name": self.model.name,
            "revision": self.model.revision or (resolved.name if resolved.parent.name == "snapshots" else None),
            "model_type": self.model.network.config.model_type,
            "fingerprint": self.fingerprint,
            **({"gguf_sha256": self.model.gguf_sha256} if self.model.gguf_sha256 else {}),
        }

    def _is_quantised(self, projection: Projection) -> bool:
        tensor = self.stored[projection.key].tensor
        return tensor in self.quantised or not self.files.tensors[tensor].is_plain_float


def open_base(name: str, *, layout: Path | None = None, trust_remote_code: bool = False) -> BaseCheckpoint:
    """Open a model's checkpoint without loading it, by a Hub id (its local snapshot), a directory, or `smollm2`."""
    files = open_checkpoint(checkpoint_directory(name))
    return BaseCheckpoint.of(load_skeleton(name, layout=layout, trust_remote_code=trust_remote_code), files)


def _quantised_tensors(files: CheckpointFiles) -> dict[str, str]:
    """Names that a checkpoint's quantised weights would have as plain ones, and the tensor that each is stored as."""
    found: dict[str, str] = {}
    for name, tensor in files.tensors.items():
        for suffix, plain in (_INSTEAD | _BESIDE).items():
            weight = name.removesuffix(suffix) + plain
            if name.endswith(suffix) and (suffix in _INSTEAD or weight in files.tensors):
                found[weight] = name if suffix in _INSTEAD else weight
        if name.endswith(".weight") and not tensor.is_plain_float:
            found[name] = name
    return found
