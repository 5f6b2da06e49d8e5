"""What the changes of a checkpoint are taken together, in plain words."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from steer2edit.audit.change import TensorChange

Label = Literal[
    "identical", "rounded-copy", "steer2edit-like", "directional-ablation", "rank-1", "low-rank", "full-rank", "other",
    "partly-read",
]  # fmt: skip

ALONG = 0.9
"""Share of a rank-1 change's energy along W_iᵀu above which it follows the rule λ_i k_i; chance gives 1 / head_dim."""
_ABLATION_COSINE = 0.99
_MATRIX_CHANGES = {"edit": "a rank-1 change", "low-rank": "a low-rank change", "full-rank": "a full-rank change"}
_OTHER_CHANGES = {
    "vector": "a change of a norm or bias",
    "entries": "single entries changed",
    "not-finite": "NaN or infinite entries",
    "bits": "other contents (integers or a packed format)",
}


@dataclass(frozen=True)
class Classification:
    """What all changes together amount to."""

    label: Label  # for programs
    sentence: str  # for people


def classify(
    changes: Sequence[TensorChange],
    compared: int,
    structure: Sequence[str] = (),
    unread: Sequence[str] = (),
    besides: Sequence[str] = (),
) -> Classification:
    """Name the kind of edit that a checkpoint's changes amount to.

    The kind is that of most of the changed matrices; what does not belong to it is named after it. What was not read
    comes first, since nothing is known of it. One phrase each: `structure` says in what else the models differ, so that
    they are not the same, `besides` what differs but is no part of the model, such as its tokenizer.
    """
    groups: dict[str, list[TensorChange]] = {}
    for change in changes:
        if not change.is_tiny:
            group = "low-rank" if change.recovered is None else "edit"
            groups.setdefault(group if change.kind == "rank-1" else change.kind, []).append(change)
    matrices = [name for name in groups if name in _MATRIX_CHANGES]
    main = max(matrices, key=lambda name: len(groups[name]), default="")
    label, text = _main(main, groups[main], compared) if main else _without_matrices(changes, compared)
    rest = [_phrase(name, group) for name, group in groups.items() if name != main]
    rest += [
        f"{change.unexplained} entries of {change.name} that no rank-1 change explains"
        for change in groups.get(main, ())
        if change.unexplained
    ]
    same_tensors = label in ("identical", "rounded-copy")
    rest += [*(() if same_tensors else structure), *besides]
    if same_tensors and structure:
        text = f"Not the same model: {'; '.join(structure)}. The tensors that both have: {text[0].lower()}{text[1:]}"
        label = "other"
    if unread:
        label, text = "partly-read", f"Read in part: {'; '.join(unread)}. The rest: {text[0].lower()}{text[1:]}"
    return Classification(label, f"{text}. Besides: {'; '.join(rest)}." if rest else f"{text}.")


def _main(name: str, group: Sequence[TensorChange], compared: int) -> tuple[Label, str]:
    tensors = len({change.tensor for change in group})
    if name == "full-rank":
        return (
            "full-rank",
            f"A full fine-tune or another dense change: full-rank change in {tensors} of {compared} tensors",
        )
    if name == "low-rank":
        ranks = {change.rank or 0 for change in group}
        most = f"rank {max(ranks)}" if len(ranks) == 1 else f"ranks up to {max(ranks)}"
        return "low-rank", f"A merged LoRA, or another low-rank change, of {most} in {_modules(group)}"
    recovered = [change.recovered for change in group if change.recovered is not None]
    where = f"in {tensors} output projection{'s' * (tensors != 1)} ({_modules(group)})"
    ablations = [r.ablation for r in recovered]
    if all(cosine > _ABLATION_COSINE for _, cosine in ablations):
        energies = [float(r.row.square().sum()) for r in recovered]
        strength = sum(s * e for (s, _), e in zip(ablations, energies, strict=True)) / sum(energies)
        return "directional-ablation", f"Directional ablation, ΔW = −s u uᵀW with s = {strength:.2f}, {where}"
    along = mean_along(group)
    components = sum(int(r.edited.sum()) for r in recovered)
    if along is None:
        return "steer2edit-like", (
            f"A Steer2Edit-like edit: rank 1 {where}, {components} neurons (with no heads edited, only its rank and "
            "place tell)"
        )
    if along >= ALONG:
        return "steer2edit-like", f"A Steer2Edit-like edit: rank 1 along W_iᵀu {where}, {components} heads and neurons"
    return "rank-1", f"Rank-1 edits that do not follow W_iᵀu ({along:.0%} of them along it) {where}"


def mean_along(group: Sequence[TensorChange]) -> float | None:
    """Share of the heads' change along W_iᵀu, over all sites with heads."""
    parts = [
        (along, float(r.norm.square().sum()))
        for change in group
        if (r := change.recovered) is not None and (along := r.along) is not None
    ]
    total = sum(weight for _, weight in parts)
    return sum(along * weight for along, weight in parts) / total if total else None


def _modules(group: Sequence[TensorChange]) -> str:
    names = Counter(change.tensor.removesuffix(".weight").rsplit(".", 1)[-1] for change in group)
    shown = [name for name, _ in names.most_common(6)]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")


def _without_matrices(changes: Sequence[TensorChange], compared: int) -> tuple[Label, str]:
    real = [change for change in changes if not change.is_tiny]
    if real:
        return "other", f"No matrix was edited as a whole: {len(real)} of {compared} tensors differ otherwise"
    if not changes:
        return "identical", f"Identical: all {compared} tensors are the same bit for bit"
    if any(change.kind == "rounding" for change in changes):
        return "rounded-copy", f"The same model up to rounding: {len(changes)} of {compared} tensors differ by no more"
    formats = sorted({change.rounded_to or change.dtypes[1] for change in changes})
    return "rounded-copy", f"The same model in another number format ({', '.join(formats)})"


def _phrase(name: str, group: Sequence[TensorChange]) -> str:
    names = [change.name for change in group]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{(_MATRIX_CHANGES | _OTHER_CHANGES)[name]} in {', '.join(names[:4])}{more}"
