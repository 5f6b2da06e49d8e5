"""Treatments that change a model further: merging it with another edit or with its base, and a benign fine-tune."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from steer2edit.core import Editing, WeightEdit
from steer2edit.editing import convert, merged_weight
from steer2edit.method import Hyperparameters
from steer2edit.models import EncodedResponse, LanguageModel
from steer2edit.steering import extract, load_contrast, preset_examples
from steer2edit.stress.persistence.fine_tuning import FineTune, fine_tuned, training_rows
from steer2edit.stress.persistence.gain_left import Treated
from steer2edit.stress.persistence.treatments import Bench, Found
from steer2edit.stress.stress_test import Suite
from steer2edit.stress.weight_attacks.direction_removal import random_like

_CONCISENESS_PROMPTS = 48


def norm(edit: WeightEdit) -> float:
    """‖ΔW‖ over all sites."""
    return math.sqrt(
        sum((e.output_direction.double().norm() * e.row.double().norm()).item() ** 2 for e in edit.sites.values())
    )


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


@dataclass(frozen=True)
class MergedWithAnother:
    """Another edit in the same weights.

    Args:
        quick: which others in the quick suite: `random`, `conciseness`.
        full: the same in the full suite.
    """

    quick: Sequence[str] = ("random",)
    full: Sequence[str] = ("random", "conciseness")

    def others(self, suite: Suite) -> Sequence[str]:
        """Which others."""
        return self.quick if suite == "quick" else self.full

    def arms(self, suite: Suite) -> int:
        """The other edit alone, and both."""
        return 2 * len(self.others(suite))

    def passes(self, suite: Suite) -> int:
        """Over the responses that the other edit is made from."""
        return 4 * _CONCISENESS_PROMPTS * ("conciseness" in self.others(suite))

    def treat(self, bench: Bench) -> Found:
        """Put the other one into the weights, ask, put the edit on top, and ask."""
        treated = []
        for name in self.others(bench.suite):
            other = (
                random_like(bench.edit, bench.subject.seed)
                if name == "random"
                else conciseness_edit(bench.model, bench.edit)
            )
            with bench.merged(other):
                base = bench.base_now()
                with bench.merged():
                    edit = bench.base_now()
            treated.append(Treated(name, f"Merged with {_OTHERS[name]}", edit, base))
        return treated, {"norm": norm(bench.edit)}


_OTHERS = {"random": "a random edit of the same norm", "conciseness": "a conciseness edit of the same norm"}


@dataclass(frozen=True)
class MergedBack:
    """A linear merge of the edited model with its base, `r (W + ΔW) + (1 − r) W = W + r ΔW`: the edit at strength r.

    Args:
        ratios: r, the share of the edited model.
    """

    ratios: Sequence[float] = (0.25, 0.5, 0.75)

    def arms(self, suite: Suite) -> int:
        """One for each ratio."""
        return len(self.ratios)

    def passes(self, suite: Suite) -> int:
        """None."""
        return 0

    def treat(self, bench: Bench) -> Found:
        """Ask the edit at each strength; merge real weights at each, and compare them with it."""
        found = bench.now({f"{r:g}": Editing(bench.edit, r) for r in self.ratios})
        errors = {f"{r:g}": linear_merge_error(bench.model, bench.edit, r) for r in self.ratios}
        treated = [
            Treated(
                label, f"Merged with the base, {float(label):.0%} of the edited model", answers,
                note=f"the edit at strength {label}; real merged weights differ from it by {errors[label]:.1g} ‖r ΔW‖, "
                f"which is rounding in {str(bench.model.dtype).removeprefix('torch.')}",
            )
            for label, answers in found.items()
        ]  # fmt: skip
        return treated, {"linear_merge_error": errors}


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


@dataclass(frozen=True)
class FineTuned:
    """A short LoRA fine-tune on the presets' helpful answers to benign requests, of the base and of the edit alike.

    Args:
        quick_steps: of the optimiser in the quick suite.
        full_steps: the same in the full suite.
        quick_batch: replies per step in the quick suite.
        full_batch: the same in the full suite.
    """

    quick_steps: int = 24
    full_steps: int = 200
    quick_batch: int = 4
    full_batch: int = 4

    def settings(self, suite: Suite, seed: int = 0) -> FineTune:
        """How it is trained."""
        if suite == "quick":
            return FineTune(self.quick_steps, self.quick_batch, seed=seed)
        return FineTune(self.full_steps, self.full_batch, seed=seed)

    def arms(self, suite: Suite) -> int:
        """The base and the edit, fine-tuned."""
        return 2

    def passes(self, suite: Suite) -> int:
        """A step is worth sixteen passes over each reply: it goes back through the model, in small batches."""
        settings = self.settings(suite)
        return 2 * 16 * settings.steps * settings.batch

    def treat(self, bench: Bench) -> Found:
        """Fine-tune the base, ask; merge the edit, fine-tune that with the same data and seed, and ask."""
        settings = self.settings(bench.suite, bench.subject.seed)
        rows = helpful_answers(bench.model)
        with fine_tuned(bench.model, rows, settings) as base_losses:
            base = bench.base_now()
        with bench.merged(), fine_tuned(bench.model, rows, settings) as losses:
            edit = bench.base_now()
        note = (
            f"LoRA of rank {settings.rank}, {settings.steps} steps of {settings.batch} out of {len(rows)} replies, "
            f"learning rate {settings.learning_rate:g}; one run, whose own chance the interval does not hold"
        )
        treated = [Treated("tuned", "Fine-tuned on helpful answers to harmless requests", edit, base, note)]
        losses_seen = {"base": _ends(base_losses), "edit": _ends(losses)}
        return treated, {"fine_tune": settings.to_json(), "replies": len(rows), "losses": losses_seen}


def _ends(losses: Sequence[float]) -> list[float]:
    """Mean of the first and of the last tenth."""
    few = max(1, len(losses) // 10)
    return [round(sum(part) / few, 4) for part in (losses[:few], losses[-few:])]


def helpful_answers(model: LanguageModel) -> list[EncodedResponse]:
    """Written answers to benign requests of the presets' training part, as rows to be trained on."""
    wanted = {"safety-benign": "negative", "conciseness": "positive"}
    pairs = [
        (example.prompt, example.response)
        for preset, label in wanted.items()
        for example in preset_examples(preset)[0]
        if example.label == label and example.split == "train" and example.response
    ]
    return training_rows(model, pairs)
