"""What a model says whose weights are stored in a number format: the behavioural half of `precision.py`.

The model computes in float32 with stored weights taken out again, so that only storage differs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from precision_tables import ALL, EDITED
from stored_ways import Way, carried
from timing import say
from torch import Tensor

from steer2edit.core import WeightEdit
from steer2edit.editing import edited
from steer2edit.evaluation.statistics import mean, rate
from steer2edit.models import EncodedResponse, LanguageModel, Sampling, generate, span_log_probabilities
from steer2edit.steering.refusal import refusal_phrases
from steer2edit.stress.quantisation import FORMATS, WeightFormat, linear_weights

ADAPTER_TOLERANCE = 1e-3  # nats, between two orders of the same float32 sums
REPLY_TOKENS = 24
Weights = list[tuple[Tensor, Tensor]]
"""(view of a parameter, what it is to hold)."""


@dataclass(frozen=True)
class Probe:
    """What the model is asked.

    Args:
        model: in float32.
        replies: the base's own, to benign requests.
        harmful: requests.
        base: log-distributions of the base over `replies`.
    """

    model: LanguageModel
    replies: Sequence[EncodedResponse]
    harmful: Sequence[str]
    base: list[Tensor]

    def answers(self) -> list[Tensor]:
        """Log-distributions over the replies, of the model as it is now."""
        return span_log_probabilities(self.model, self.replies)

    def refused(self) -> dict[str, Any]:
        """Share of the harmful requests that the model as it is now refuses."""
        sampling = Sampling(max_new_tokens=REPLY_TOKENS)
        said = generate(self.model, self.harmful, sampling, description="Answering harmful requests")
        return rate([refusal_phrases("strict").refuses(reply) for reply in said]).to_json()


def divergence(reference: Sequence[Tensor], found: Sequence[Tensor]) -> dict[str, Any]:
    """KL(reference ‖ found) in nats per token, a mean over replies with its interval."""
    each = [(p.exp() * (p - q)).sum(dim=-1).mean().item() for p, q in zip(reference, found, strict=True)]
    return mean(each).to_json()


@contextmanager
def holding(weights: Weights) -> Iterator[None]:
    """Hold these values in the model, and put the old ones back bit for bit."""
    originals = [(view, view.clone()) for view, _ in weights]
    try:
        for view, value in weights:
            view.copy_(value)
        yield
    finally:
        for view, original in originals:
            view.copy_(original)


def edited_views(model: LanguageModel, edit: WeightEdit) -> list[tuple[Tensor, Tensor]]:
    """(view of the weight, ΔW) of every edited matrix."""
    return [(model.sites[site].weight, site_edit.dense()) for site, site_edit in edit.sites.items()]


def measured(
    probe: Probe, references: dict[str, list[Tensor] | None], refusals: bool
) -> tuple[dict[str, Any], list[Tensor]]:
    """KL from the references, and refusals, of the model as it is now."""
    answers = probe.answers()
    known = {"base": probe.base, **references}
    found: dict[str, Any] = {
        f"kl_from_{name}": divergence(reference, answers) for name, reference in known.items() if reference is not None
    }
    if refusals:
        found["refused"] = probe.refused()
    return found, answers


@dataclass(frozen=True)
class InFormat:
    """The measurements of one format.

    Args:
        probe: what is asked.
        one: the format.
        edits: by name.
        exact: the answers of every edit, nothing stored in the format.
        asked: the edit that refusals are counted for, besides none; `None` for no refusals.
    """

    probe: Probe
    one: WeightFormat
    edits: dict[str, WeightEdit]
    exact: dict[str, list[Tensor]]
    asked: str | None

    def rows(self) -> list[dict[str, Any]]:
        """The base, then every edit in every way: with all linear layers stored, and with the edited ones alone."""
        model, rounding = self.probe.model, self.one.rounded
        everything = [(view, rounding(view)) for view in linear_weights(model)]
        kept = all(torch.equal(view, stored) for view, stored in everything)
        ways: tuple[Way, ...] = ("rounded",) if kept else ("rounded", "requantised")  # the same where Q(W) = W
        plain = {n: [(v, v.clone(), rounding(v), c) for v, c in edited_views(model, e)] for n, e in self.edits.items()}
        with holding(everything):
            row, answers = self.row(ALL, None, None)
            rows = [row]
            if kept:
                require_same_answers(answers, self.probe.base, 0.0, f"the base in {self.one.name}")
            for name, edit in self.edits.items():
                with edited(model, edit):
                    row, adapter = self.row(ALL, name, "adapter")
                with holding([(v, q + c) for v, _, q, c in plain[name]]):
                    require_same_answers(adapter, self.probe.answers(), ADAPTER_TOLERANCE, f"{self.one.name} + adapter")
                rows += [row, *self.in_weights(ALL, name, plain[name], ways, adapter)]
        for name in self.edits:
            rows += self.in_weights(EDITED, name, plain[name], ways, None)
        return rows

    def in_weights(
        self,
        scope: str,
        edit: str,
        plain: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]],
        ways: Sequence[Way],
        adapter: list[Tensor] | None,
    ) -> list[dict[str, Any]]:
        """With the edit in the weights; `plain` has (view, W, Q(W), ΔW)."""
        rows = []
        for way in ways:
            with holding([(v, carried(way, self.one.rounded, w, q, c)) for v, w, q, c in plain]):
                rows.append(self.row(scope, edit, way, adapter)[0])
        return rows

    def row(
        self, scope: str, edit: str | None, way: Way | None, adapter: list[Tensor] | None = None
    ) -> tuple[dict[str, Any], list[Tensor]]:
        """What the model as it is now does, and its answers."""
        references = {"exact": None if edit is None else self.exact[edit], "adapter": adapter}
        refusals = scope == ALL and self.asked is not None and edit in (None, self.asked)
        found, answers = measured(self.probe, references, refusals)
        row = {"format": self.one.name, "scope": scope, "edit": edit, "way": way, **found}
        say(f"{row}")
        return row, answers


def require_same_answers(one: Sequence[Tensor], other: Sequence[Tensor], tolerance: float, what: str) -> None:
    worst = max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))
    if not worst <= tolerance:
        raise SystemExit(f"WRONG: {what}: log-probabilities differ by {worst} nats, not ≤ {tolerance}.")


def behaviour(
    probe: Probe, edits: dict[str, WeightEdit], formats: Sequence[str], refusal_formats: Sequence[str]
) -> list[dict[str, Any]]:
    *_, asked = edits
    rows: list[dict[str, Any]] = []
    exact = {}
    for name, edit in (None, None), *edits.items():
        with nullcontext() if edit is None else edited(probe.model, edit):
            found, answers = measured(probe, {}, name in (None, asked))
        if name is not None:
            exact[name] = answers
        rows.append({"format": "float32", "scope": "", "edit": name, "way": "exact", **found})
        say(f"{rows[-1]}")
    for name in formats:
        rows += InFormat(probe, FORMATS[name], edits, exact, asked if name in refusal_formats else None).rows()
    return rows
