"""Whether a checkpoint that was just written is its base with the edits, and nothing else.

Its files are compared in full: every tensor that is not edited has the base's bytes, every edited one those that the
edit gives, and every other file is the base's. Then the checkpoint, loaded like any other, is compared on a few texts
with the base under the edit at run time, both in float32, so that what is left is the rounding of the stored weights.
"""

import filecmp
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.artifacts.checkpoints.base import BaseCheckpoint, Plan
from steer2edit.artifacts.checkpoints.checkpoint import find_side_files
from steer2edit.artifacts.checkpoints.files import open_checkpoint
from steer2edit.artifacts.checkpoints.patching import edited_chunks
from steer2edit.artifacts.edits.low_rank import ScaledEdits
from steer2edit.artifacts.tensors import same_bits
from steer2edit.editing.applying import edited
from steer2edit.errors import ArtifactError
from steer2edit.models import LanguageModel, load_model
from steer2edit.progress import step

TEXTS = (
    "The quick brown fox jumps over the lazy dog, and then it looks for something to eat.",
    "Question: How do I bake bread at home?\nAnswer: Mix flour, water, salt and yeast, and let the dough rise",
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return",
    "I cannot help with that, but I can tell you about the history of",
)
_LARGEST_KL = {"F64": 1e-6, "F32": 1e-6, "F16": 1e-3, "BF16": 2e-2}  # nats per token, by the dtype W is rounded to


@dataclass(frozen=True)
class Verification:
    """What a written checkpoint was found to be."""

    tensors: int  # compared byte for byte
    edited_tensors: int  # of them, those with the edit
    tokens: int  # positions at which predictions were compared
    kl: float  # mean divergence per token between the checkpoint and the base under the edit, nats
    edit_kl: float  # the same between the base under the edit and the base: what the edit itself does
    greedy_agreement: float  # share of positions with the same likeliest token
    largest_kl: float  # that is accepted, by the coarsest dtype of an edited tensor


def verify_checkpoint(
    base: BaseCheckpoint,
    edits: ScaledEdits,
    written: Path | str,
    *,
    layout: Path | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> Verification:
    """Compare a written checkpoint with its base and the edits, in the files and in what it predicts.

    An ArtifactError where a tensor differs from what it should be, or predictions by more than rounding explains.
    """
    written = Path(written)
    plan = base.plan(edits)
    tensors = require_files(base, plan, written)
    settings: dict[str, Any] = {"layout": layout, "device": device, "trust_remote_code": trust_remote_code}
    model = load_model(str(base.directory), dtype="float32", **settings)
    plain = list(_log_probabilities(model))
    with ExitStack() as stack:
        for edit, strength in edits:
            stack.enter_context(edited(model, edit, strength, allow_mismatch=True))
        expected = list(_log_probabilities(model))
    del model
    found = list(_log_probabilities(load_model(str(written), dtype="float32", **settings)))
    coarsest = max((tensor.dtype_name for tensor in plan), key=lambda name: _LARGEST_KL[name], default="F32")
    result = Verification(
        tensors=tensors,
        edited_tensors=len(plan),
        tokens=sum(map(len, expected)),
        kl=_mean_kl(expected, found),
        edit_kl=_mean_kl(expected, plain),
        greedy_agreement=float((torch.cat(expected).argmax(-1) == torch.cat(found).argmax(-1)).double().mean()),
        largest_kl=_LARGEST_KL[coarsest],
    )
    if not result.kl <= result.largest_kl:
        raise ArtifactError(
            f"{written} predicts otherwise than its base under the edit: {result.kl:.2g} nats per token, where "
            f"rounding to {coarsest} explains {result.largest_kl:g} at most (the edit itself: {result.edit_kl:.2g}). "
            "Its files are right, so loading them is what differs; do not use it as it is."
        )
    return result


def require_files(base: BaseCheckpoint, plan: Plan, written: Path) -> int:
    """Number of tensors of files that are a base with the planned edits, and nothing else."""
    found = open_checkpoint(written)
    if found.tensors.keys() != base.files.tensors.keys():
        raise ArtifactError(f"{written} does not have the tensors of {base.directory}: it is not that base, edited.")
    with step("Comparing tensors", len(found.tensors)) as advance:
        for name, tensor in base.files.tensors.items():
            own = found.tensors[name]
            same = (own.dtype_name, own.shape) == (tensor.dtype_name, tensor.shape)
            if same and tensor in plan:
                chunks = edited_chunks(tensor, plan[tensor])
                same = all(same_bits(values, own.read_rows(at, at + len(values))) for at, values in chunks)
            elif same:
                same = own.equals(tensor)
            if not same:
                what = "the edit" if tensor in plan else "the base's bytes"
                raise ArtifactError(f"{written}: {name} does not hold {what}. The checkpoint was changed or damaged.")
            advance(1)
    for path in find_side_files(base.files).own:
        if not (written / path).is_file() or not filecmp.cmp(base.directory / path, written / path, shallow=False):
            raise ArtifactError(f"{written}: {path} is not the base's. It was changed since it was written.")
    return len(found.tensors)


def _log_probabilities(model: LanguageModel) -> Iterator[Float[Tensor, "tokens words"]]:
    """Of every next token of every text."""
    assert model.tokenizer is not None
    for text in TEXTS:
        ids = model.tokenizer(text, return_tensors="pt")["input_ids"].to(model.device)
        with torch.inference_mode():
            yield model.network(input_ids=ids).logits[0].float().cpu().log_softmax(dim=-1)


def _mean_kl(of: Sequence[Tensor], to: Sequence[Tensor]) -> float:
    p, q = torch.cat(list(of)).double(), torch.cat(list(to)).double()
    return float((p.exp() * (p - q)).nansum(dim=-1).mean())
