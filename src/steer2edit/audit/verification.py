"""Whether a checkpoint's weights hold an edit: one that must not be added twice, or one that was just written.

**Already applied.** A neuron's importance g is the cosine of u with its column w of W, up to sign, and the part of w
across u is the same before and after the edit. So from an edited column w' = w + s λ k u the base's own share along u
follows,

    uᵀw = sign(a λ) |g| ‖w' − u uᵀw'‖ / √(1 − g²),      s = (uᵀw' − uᵀw) / a,

and the neurons of a site agree on s only if they hold this edit (s = its strength) or none (s = 0).

**As written.** The files are compared in full: every tensor that is not edited has the base's bytes, every edited one
those that the edit gives, and every other file is the base's. Then the written checkpoint, loaded like any other, is
compared on a few texts with the base under the edit at run time, both in float32, so that what is left is the rounding
of the stored weights.
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

from steer2edit.artifacts.checkpoints.base import EDIT_THE_BASE, Addition, BaseCheckpoint, Plan
from steer2edit.artifacts.checkpoints.files import StoredTensor, find_side_files, open_checkpoint
from steer2edit.artifacts.checkpoints.patching import edited_chunks
from steer2edit.artifacts.edits.low_rank import ScaledEdits
from steer2edit.artifacts.tensors import same_bits
from steer2edit.core import WeightEdit
from steer2edit.editing.runtime import edited
from steer2edit.errors import ArtifactError, MismatchError
from steer2edit.models import LanguageModel, load_model
from steer2edit.progress import step

TEXTS = (
    "The quick brown fox jumps over the lazy dog, and then it looks for something to eat.",
    "Question: How do I bake bread at home?\nAnswer: Mix flour, water, salt and yeast, and let the dough rise",
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return",
    "I cannot help with that, but I can tell you about the history of",
)
_LARGEST_KL = {"F64": 1e-6, "F32": 1e-6, "F16": 1e-3, "BF16": 2e-2}  # nats per token, by the dtype W is rounded to
_AGREEMENT = 0.1  # share of the strength by which half of the neurons may differ from it
_LEAST = 0.02  # strength that is told from none
_FEWEST = 4  # neurons that can be said to agree


def require_not_applied(base: BaseCheckpoint, edits: Sequence[WeightEdit]) -> None:
    """Refuse, with a MismatchError, edits that are in a checkpoint already: adding one twice is never wanted."""
    for edit in edits:
        base.model.require_shapes(edit.shapes, "edits")
        made_on = (edit.metadata.get("model") or {}).get("fingerprint")
        if base.fingerprint is None or base.fingerprint == made_on:
            continue
        if not any(record.is_of(edit) for record in base.earlier_edits) and (strength := applied_strength(base, edit)):
            raise MismatchError(
                f"this edit is already in {base.model.name!r}: its weights hold it at strength {strength:.2f}. It is "
                f"not added twice. {EDIT_THE_BASE}"
            )


def applied_strength(base: BaseCheckpoint, edit: WeightEdit) -> float | None:
    """At which strength a checkpoint's weights already hold an edit of neurons; `None` if they do not, or nothing says.

    Heads alone cannot say: their importance depends on their inputs, which are not in the files.
    """
    neurons = {s: e for s, e in edit.sites.items() if e.component_width == 1 and bool(e.row.any())}
    if not neurons:
        return None
    site = max(neurons, key=lambda site: int(neurons[site].row.count_nonzero()))
    found = torch.cat([_strengths(addition) for addition in base.additions(site, edit)])
    if len(found) < _FEWEST:
        return None
    low, middle, high = found.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    agreed = abs(middle) >= _LEAST and high - low <= _AGREEMENT * abs(middle)
    return middle if agreed else None


def _strengths(addition: Addition) -> Float[Tensor, " neurons"]:
    """s of every edited neuron of one matrix."""
    matrix, edit = addition.projection, addition.edit
    along, squared = torch.zeros(matrix.shape[1]), torch.zeros(matrix.shape[1])
    for own, stored in matrix.chunks():
        part = stored.float()
        if matrix.transposed:
            along[own], squared[own] = part @ edit.output_direction, part.square().sum(dim=1)
        else:
            along += edit.output_direction[own] @ part
            squared += part.square().sum(dim=0)
    g = edit.importance.clamp(-1, 1)
    across = (squared - along.square()).clamp(min=0).sqrt()
    before = (edit.row * edit.magnitude).sign() * g.abs() * across / (1 - g.square()).clamp(min=1e-12).sqrt()
    edited = (edit.row != 0) & (edit.magnitude != 0)
    return ((along - before) / edit.row)[edited]


@dataclass(frozen=True)
class Verification:
    """What a written checkpoint was found to be."""

    tensors: int  # compared byte for byte
    edited_tensors: int  # of them, those with the edit
    tokens: int  # positions at which predictions were compared
    max_logit_difference: float  # between the checkpoint and the base under the edit
    kl: float  # mean divergence per token between the two, nats
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
    both = list(zip(expected, found, strict=True))
    coarsest = max((tensor.dtype_name for tensor in plan), key=lambda name: _LARGEST_KL[name], default="F32")
    result = Verification(
        tensors=tensors,
        edited_tensors=len(plan),
        tokens=sum(len(values) for values, _ in expected),
        max_logit_difference=max(float((f - e).abs().max()) for (_, e), (_, f) in both),
        kl=_mean_kl(expected, found),
        edit_kl=_mean_kl(expected, plain),
        greedy_agreement=float(torch.cat([p.argmax(-1) == q.argmax(-1) for (p, _), (q, _) in both]).double().mean()),
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
            if not _is_as_expected(found.tensors[name], tensor, plan):
                what = "the edit" if tensor in plan else "the base's bytes"
                raise ArtifactError(f"{written}: {name} does not hold {what}. The checkpoint was changed or damaged.")
            advance(1)
    for path in find_side_files(base.files).own:
        if not (written / path).is_file() or not filecmp.cmp(base.directory / path, written / path, shallow=False):
            raise ArtifactError(
                f"{written}: {path} is not the base's. The checkpoint was changed since it was written."
            )
    return len(found.tensors)


def _is_as_expected(found: StoredTensor, tensor: StoredTensor, plan: Plan) -> bool:
    if (found.dtype_name, found.shape) != (tensor.dtype_name, tensor.shape):
        return False
    if tensor in plan:
        return all(
            same_bits(values, found.read_rows(start, start + len(values)))
            for start, values in edited_chunks(tensor, plan[tensor])
        )
    return found.equals(tensor)


_Predictions = tuple[Float[Tensor, "_ _"], Float[Tensor, "_ _"]]  # [tokens, vocabulary]


def _log_probabilities(model: LanguageModel) -> Iterator[_Predictions]:
    """(log-probabilities, logits) of every next token of every text."""
    assert model.tokenizer is not None
    for text in TEXTS:
        ids = model.tokenizer(text, return_tensors="pt")["input_ids"].to(model.device)
        with torch.inference_mode():
            logits = model.network(input_ids=ids).logits[0].float().cpu()
        yield logits.log_softmax(dim=-1), logits


def _mean_kl(of: list[_Predictions], to: list[_Predictions]) -> float:
    each = [
        (p.double().exp() * (p.double() - q.double())).nansum(dim=-1) for (p, _), (q, _) in zip(of, to, strict=True)
    ]
    return float(torch.cat(each).mean())
