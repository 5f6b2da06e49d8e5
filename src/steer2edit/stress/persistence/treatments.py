"""What may become of an edit's weights: saving, casting, quantising, merging, and a short benign fine-tune."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from steer2edit.artifacts import load_edit, save_checkpoint, save_edit
from steer2edit.core import Editing, Intervention, WeightEdit
from steer2edit.editing import convert, merged, merged_weight
from steer2edit.method import Hyperparameters
from steer2edit.models import EncodedResponse, LanguageModel, load_model
from steer2edit.models.loading import DTYPES
from steer2edit.steering import extract, find_behaviour, load_contrast
from steer2edit.stress.persistence.fine_tuning import FineTune, fine_tuned, training_rows
from steer2edit.stress.persistence.gain_left import GainLeft, treatment
from steer2edit.stress.persistence.quantisation import WAY_NAMES, WAYS, Way, converted, quantised, weight_format
from steer2edit.stress.weight_attacks.direction_removal import random_like

Facts = Mapping[str, Any]
_CONCISENESS_PROMPTS = 48
_NO_CALIBRATION = "rounded to nearest without calibration data; embeddings and output layer as they were"
QUICK_FORMATS: Mapping[str, Sequence[Way]] = {"int8": ("rounded",), "int4": ("rounded", "adapter")}
FULL_FORMATS: Mapping[str, Sequence[Way]] = {
    "int8": WAYS,
    "fp8": ("rounded", "adapter"),
    "int4": WAYS,
    "nf4": WAYS,
    "mxfp4": ("rounded", "adapter"),
}


@dataclass(frozen=True)
class Saved:
    """An edit written to disk and read again: as an adapter, and within a checkpoint."""

    adapter: WeightEdit
    checkpoint: LanguageModel
    same_factors: bool = True
    other_matrices: int = 0


@treatment
def saved(gain: GainLeft) -> Facts:
    """The edit as an adapter and as a checkpoint on disk, read again."""
    subject, edit = gain.subject, gain.edit
    found = subject.compute(partial(save_and_load, edit=edit, folder=subject.folder), Saved(edit, subject.model))
    gain.ask({"edit, adapter": Editing(found.adapter)})
    gain.ask({"edit, checkpoint": None}, model=found.checkpoint)
    factors = "bit for bit those" if found.same_factors else "NOT those"
    gain.add("adapter", "Saved as an adapter and loaded", note=f"factors {factors} that were saved")
    matrices = f"{found.other_matrices} edited matrices differ from" if found.other_matrices else "weights bit for bit"
    note = f"{matrices} those of the edit merged in memory"
    gain.add("checkpoint", "Saved as a checkpoint and loaded", note=note)
    return {"adapter_as_saved": found.same_factors, "checkpoint_matrices_that_differ": found.other_matrices}


def save_and_load(model: LanguageModel, edit: WeightEdit, folder: Path) -> Saved:
    """Write an edit in both forms into a folder, and read both."""
    save_edit(model, edit, folder / "adapter")
    adapter = load_edit(folder / "adapter")
    save_checkpoint(model, edit, folder / "checkpoint", allow_mismatch=True)
    dtype = next(name for name, one in DTYPES.items() if one == model.dtype)
    spread = len({parameter.device for parameter in model.network.parameters()}) > 1
    reloaded = load_model(
        str(folder / "checkpoint"), dtype=dtype, device="balanced" if spread else str(model.device),
        layout=model.layout, trust_remote_code=model.trust_remote_code,
    )  # fmt: skip
    same = adapter.sites.keys() == edit.sites.keys() and all(
        own.row.equal(edit.sites[site].row) and own.output_direction.equal(edit.sites[site].output_direction)
        for site, own in adapter.sites.items()
    )
    others = sum(
        not merged_weight(own.weight, edit.sites[site].part(own.columns)).cpu().equal(found.weight.cpu())
        for site in edit.sites
        for own, found in zip(model.sites[site].projections, reloaded.sites[site].projections, strict=True)
    )
    return Saved(adapter, replace(reloaded, tokenizer=model.tokenizer, chat=model.chat), same, others)


@treatment
def cast(gain: GainLeft, dtypes: Sequence[str] = ("bfloat16", "float16")) -> Facts:
    """The model converted to another dtype: the edit added in float32 and rounded once."""
    for name in dtypes:
        change = partial(converted, dtype=DTYPES[name])
        gain.ask({f"base, {name}": None}, change)
        gain.ask({f"edit, {name}": None}, change, gain.subject.edit_merged)
        gain.add(name, f"In the weights in {name}", name)
    return {}


@treatment
def stored(
    gain: GainLeft,
    quick: Mapping[str, Sequence[Way]] = QUICK_FORMATS,
    full: Mapping[str, Sequence[Way]] = FULL_FORMATS,
) -> Facts:
    """The weights of all linear layers stored in a number format and taken out again, by format and way."""
    formats = gain.subject.pick(quick, full)
    for name, ways in formats.items():
        change = partial(quantised, format=weight_format(name))
        beside: dict[str, Intervention] = {f"edit, {name}/adapter": Editing(gain.edit)} if "adapter" in ways else {}
        gain.ask({f"base, {name}": None, **beside}, change)
        for way in ways:
            if way != "adapter":
                edited = partial(change, edit=gain.edit, way=way, allow_mismatch=True)
                gain.ask({f"edit, {name}/{way}": None}, edited)
            gain.add(f"{name}/{way}", f"In {name}, {WAY_NAMES[way]}", name, _NO_CALIBRATION)
    return {"formats": {name: weight_format(name).grid for name in formats}}


@treatment
def merged_with_another(gain: GainLeft) -> Facts:
    """Another edit of the same norm in the same weights: a random one, in the full suite also towards short replies."""
    subject = gain.subject
    others = {"random": random_like(gain.edit, subject.seed)}
    if subject.suite == "full":
        make = partial(conciseness_edit, like=gain.edit)
        others["conciseness"] = subject.compute(make, gain.edit, passes=4 * _CONCISENESS_PROMPTS)
    for name, other in others.items():
        change = partial(merged, edit=other, allow_mismatch=True)
        gain.ask({f"base, {name}": None}, change)
        gain.ask({f"edit, {name}": None}, change, subject.edit_merged)
        gain.add(name, f"Merged with a {name} edit of the same norm", name)
    return {"norm": norm(gain.edit)}


@treatment
def merged_back(gain: GainLeft, ratios: Sequence[float] = (0.25, 0.5, 0.75)) -> Facts:
    """A linear merge of the edited model with its base, `r (W + ΔW) + (1 − r) W = W + r ΔW`: the edit at strength r.

    Real weights are merged at each ratio, and compared with it.
    """
    gain.ask({f"edit, {ratio:g}": Editing(gain.edit, ratio) for ratio in ratios})
    dtype = str(gain.subject.model.dtype).removeprefix("torch.")
    errors = {}
    for ratio in ratios:
        error = gain.subject.compute(partial(linear_merge_error, edit=gain.edit, ratio=ratio), 0.0)
        note = (
            f"the edit at strength {ratio:g}; real merged weights differ from it by {error:.1g} ‖r ΔW‖, which is "
            f"rounding in {dtype}"
        )
        gain.add(f"{ratio:g}", f"Merged with the base, {ratio:.0%} of the edited model", note=note)
        errors[f"{ratio:g}"] = error
    return {"linear_merge_error": errors}


@treatment
def tuned(gain: GainLeft, quick_steps: int = 24, full_steps: int = 200, batch: int = 4) -> Facts:
    """A short LoRA fine-tune on written answers to benign requests: of the base and of the edit, on the same data."""
    subject = gain.subject
    settings = FineTune(subject.pick(quick_steps, full_steps), batch, seed=subject.seed)
    # a step is worth sixteen passes over each reply: it goes back through the model, in small batches
    rows: list[EncodedResponse] = subject.compute(helpful_answers, [], passes=2 * 16 * settings.steps * settings.batch)
    losses: dict[str, list[float]] = {}

    @contextmanager
    def change(model: LanguageModel, name: str) -> Iterator[None]:
        with fine_tuned(model, rows, settings) as own:
            losses[name] = _ends(own)
            yield

    gain.ask({"base, tuned": None}, partial(change, name="base"))
    gain.ask({"edit, tuned": None}, subject.edit_merged, partial(change, name="edit"))
    note = (
        f"LoRA of rank {settings.rank}, {settings.steps} steps of {settings.batch} out of {len(rows)} replies, "
        f"learning rate {settings.learning_rate:g}; one run, whose own chance the interval does not hold"
    )
    gain.add("tuned", "Fine-tuned on helpful answers to harmless requests", "tuned", note)
    return {"fine_tune": settings.to_json(), "replies": len(rows), "losses": losses}


def helpful_answers(model: LanguageModel) -> list[EncodedResponse]:
    """Written answers to benign requests of the presets' training part, as rows to be trained on."""
    wanted = {"safety-benign": "negative", "conciseness": "positive"}
    pairs = [
        (example.prompt, example.response)
        for preset, label in wanted.items()
        for example in find_behaviour(preset).examples()
        if example.label == label and example.split == "train" and example.response
    ]
    return training_rows(model, pairs)


def conciseness_edit(model: LanguageModel, like: WeightEdit) -> WeightEdit:
    """An edit towards short replies, of the same blocks and the same norm as another.

    Raises:
        InvalidValueError: it edits nothing (`Factors.edit`).
    """
    blocks = {site.block for site in like.sites}
    vectors = extract(model, load_contrast("conciseness", model, limit=_CONCISENESS_PROMPTS))
    settings = Hyperparameters(
        0.15 if "attn" in blocks else None, None if blocks == {"attn"} else 0.5, 0.5, max_shift=0.4
    )
    edit = convert(model, vectors, settings, force=True)
    return edit.scaled(norm(like) / norm(edit))


def norm(edit: WeightEdit) -> float:
    """‖ΔW‖ over all sites."""
    return math.sqrt(
        sum((e.output_direction.double().norm() * e.row.double().norm()).item() ** 2 for e in edit.sites.values())
    )


def linear_merge_error(model: LanguageModel, edit: WeightEdit, ratio: float) -> float:
    """‖r W' + (1 − r) W − (W + r ΔW)‖ / ‖r ΔW‖ over all edited matrices, W' = W + ΔW as merged in the model's dtype.

    Exactly 0 but for the two roundings to the dtype, of W' and of the merge; 0 where ΔW is 0.
    """
    wrong = size = 0.0
    for site, site_edit in edit.sites.items():
        for projection in model.sites[site].projections:
            weight, part = projection.weight.cpu(), site_edit.part(projection.columns)  # not every device has float64
            edited = merged_weight(weight, part)
            back = (ratio * edited.double() + (1 - ratio) * weight.double()).to(weight.dtype)
            change = ratio * part.dense().to("cpu", torch.float64)
            wrong += (back.double() - weight.double() - change).norm().item() ** 2
            size += change.norm().item() ** 2
    return math.sqrt(wrong / size) if size else 0.0


def _ends(losses: Sequence[float]) -> list[float]:
    """Mean of the first and of the last tenth."""
    few = max(1, len(losses) // 10)
    return [round(sum(part) / few, 4) for part in (losses[:few], losses[-few:])]
