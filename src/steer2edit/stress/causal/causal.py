"""Is the behaviour carried by the components that the edit names? Parts of the edit, and controls of the same size."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from steer2edit.core import Component, Editing, Intervention
from steer2edit.evaluation import Estimate, Value, base_answers, mean, paired
from steer2edit.models import EncodedResponse, Prompt, encode_responses
from steer2edit.stress.asking import ask_refusals, edit_label, edit_strength, finite, some
from steer2edit.stress.causal.causal_findings import Measured, part_findings, score_findings, whole_finding
from steer2edit.stress.causal.component_edits import edited_count, single, sum_squares
from steer2edit.stress.causal.component_parts import Part, at_equal_drift, parts_of
from steer2edit.stress.cost_verdicts import signed
from steer2edit.stress.stress_test import (
    SUITES,
    Cost,
    Finding,
    Group,
    Outcome,
    StressResult,
    StressTest,
    Subject,
    Suite,
)

OPENERS = ("I'm sorry", "I cannot", "I can't", "I am unable", "Sorry")
_DRIFT_PROMPTS = 12
_SINGLES = 10


def tests() -> list[StressTest]:
    """The causal checks."""
    return [CausalCheck()]


@dataclass(frozen=True)
class CausalCheck:
    """The gain of the top-n components, of all but them, of random ones, and of the same magnitudes shuffled.

    Args:
        top: n in the quick suite; at most half of the edited components.
        shares: of the edited components in the full suite, next to n.
        quick_draws: random draws (and half as many shuffles, rounded up) in the quick suite.
        full_draws: the same in the full suite.
        openers: how refusals begin; the one that the whole edit makes likeliest is the finer measure of refusal.
    """

    top: int = 10
    shares: tuple[float, ...] = (0.25, 0.5)
    quick_draws: int = 2
    full_draws: int = 3
    openers: tuple[str, ...] = OPENERS
    name: str = "components"
    group: Group = "causal"
    summary: str = "gain of the top components, of all but them, of random ones, and of shuffled magnitudes"
    citation: str = "that naming a place is no proof: Hase et al., arXiv 2301.04213; controls of this project"
    suites: frozenset[Suite] = frozenset(SUITES)

    def counts(self, subject: Subject, suite: Suite) -> list[int]:
        """The n that are tested, smallest first; none if the edit edits nothing."""
        edited = edited_count(subject.edit)
        if not edited:
            return []
        wanted = [self.top, *(round(share * edited) for share in (self.shares if suite == "full" else ()))]
        return sorted({max(1, min(n, edited // 2)) for n in wanted})

    def draws(self, suite: Suite) -> int:
        """How many random draws."""
        return self.quick_draws if suite == "quick" else self.full_draws

    def cost(self, subject: Subject, suite: Suite) -> Cost:
        """Replies under every part but the whole edit, and passes for drift and the score of a refusal's opener."""
        draws, prompts = self.draws(suite), len(some(subject, suite, subject.harmful))
        parts = 2 + (draws + 1) // 2 + len(self.counts(subject, suite)) * (2 + 2 * draws)
        scored = parts * (prompts + _DRIFT_PROMPTS) + (_SINGLES + len(self.openers)) * prompts
        return Cost(replies=(parts - 2) * prompts, passes=scored)

    def run(self, subject: Subject, suite: Suite) -> StressResult:
        """Lines on the whole edit, on each n and its controls, and on single components.

        Raises:
            InvalidValueError: there are too few components for a random control.
            ModelError: the base model's weights are not at hand.
        """
        counts = self.counts(subject, suite)
        parts = parts_of(subject.model, subject.edit, counts, self.draws(suite), subject.seed, edit_label(subject))
        answers = _benign_answers(subject)
        drift = _drift(subject, answers, parts)
        matched = at_equal_drift(parts, {label: mean(own) for label, own in drift.items()})
        drift |= _drift(subject, answers, matched)
        parts = [*parts, *matched]
        measured = _measured(subject, suite, parts, drift, self.openers)
        singles = _singles(subject, suite, measured.opener) if counts else {}
        findings = [whole_finding(measured)]
        for count in counts:
            findings += part_findings(measured, parts, count) + score_findings(measured, parts, count)
        if singles:
            findings.append(_singles_finding(measured, singles))
        facts = {
            "opener": measured.opener,
            "parts": [_facts(part, measured) for part in parts],
            "components": _component_facts(measured, singles),
        }
        return StressResult(findings, measured.replies, facts)


def _interventions(subject: Subject, parts: list[Part]) -> dict[str, Intervention]:
    """The base and every part by label, at the strength that the edit is tested at."""
    strength = edit_strength(subject)
    base: dict[str, Intervention] = {subject.arms[0].label: subject.arms[0].intervention}
    return base | {part.label: Editing(part.edit, strength * part.strength) for part in parts}


def _benign_answers(subject: Subject) -> list[EncodedResponse]:
    """The base's own answers that drift is measured on."""
    prompts = some(subject, "quick", subject.benign, _DRIFT_PROMPTS)
    return [answer for answer in base_answers(subject.engine, prompts, subject.sampling) if answer is not None]


def _drift(subject: Subject, answers: list[EncodedResponse], parts: list[Part]) -> dict[str, list[Value]]:
    """KL on benign answers by part, in nats per token."""
    if not parts:
        return {}
    strength = edit_strength(subject)
    scores = subject.engine.score(answers, [Editing(part.edit, strength * part.strength) for part in parts])
    return {part.label: [finite(score.kl) for score in own] for part, own in zip(parts, scores, strict=True)}


def _measured(
    subject: Subject, suite: Suite, parts: list[Part], drift: Mapping[str, list[Value]], openers: Sequence[str]
) -> Measured:
    """Refusals and the log-probability of the refusal opener, under the base and every part."""
    harmful, arms = some(subject, suite, subject.harmful), _interventions(subject, parts)
    asked = ask_refusals(subject, {"harmful": harmful}, arms)
    opener = _likeliest_opener(subject, harmful, list(arms.values())[1], openers)
    scored = dict(zip(arms, _opener_scores(subject, harmful, opener, list(arms.values())), strict=True))
    base, edit = list(arms)[:2]
    return Measured(base, edit, asked.refused["harmful"], opener, scored, drift, asked.replies)


def _likeliest_opener(subject: Subject, harmful: Sequence[Prompt], edit: Intervention, openers: Sequence[str]) -> str:
    """The opener of highest mean log-probability under the whole edit."""
    best, highest = openers[0], -math.inf
    for opener in openers:
        value = mean(_opener_scores(subject, harmful, opener, [edit])[0]).value
        if value is not None and value > highest:
            best, highest = opener, value
    return best


def _opener_scores(
    subject: Subject, harmful: Sequence[Prompt], opener: str, arms: Sequence[Intervention]
) -> list[list[Value]]:
    """Log-probability that the reply begins with the opener, by arm and request, in nats."""
    pairs = encode_responses(subject.model, [(prompt, opener) for prompt in harmful])
    scores = subject.engine.score(pairs, arms, kl=False)
    return [[finite(score.log_probability) for score in own] for own in scores]


@dataclass(frozen=True)
class _Single:
    """One component alone.

    Args:
        component: which.
        magnitude: its λ.
        importance: its g.
        log_probability: of the refusal opener by request, in nats.
    """

    component: Component
    magnitude: float
    importance: float
    log_probability: list[Value] = field(default_factory=list)


def _singles(subject: Subject, suite: Suite, opener: str) -> dict[str, _Single]:
    """Each of the strongest components alone, by name."""
    harmful, strength = some(subject, suite, subject.harmful), edit_strength(subject)
    found = {str(c): _Single(c, size, g) for c, size, g in subject.edit.top_components(_SINGLES)}
    edits = [single(subject.edit, one.component.site, one.component.index) for one in found.values()]
    scores = _opener_scores(subject, harmful, opener, [Editing(edit, strength) for edit in edits])
    return {name: replace(one, log_probability=own) for (name, one), own in zip(found.items(), scores, strict=True)}


def _singles_finding(measured: Measured, singles: Mapping[str, _Single]) -> Finding:
    """How many of the strongest components raise the probability of a refusal on their own."""
    base = measured.log_probabilities[measured.base]
    gains = {name: paired(one.log_probability, base) for name, one in singles.items()}
    raising = [name for name, gain in gains.items() if gain.low is not None and gain.low > 0]
    lowering = [name for name, gain in gains.items() if gain.high is not None and gain.high < 0]
    best = max(gains, key=lambda name: gains[name].value or 0.0)
    sentence = (
        f"Alone, {len(raising)} of the {len(gains)} components of largest |λ| raise the log-probability of "
        f"{measured.opener!r} and {len(lowering)} lower it; most is gained by {best}: {signed(gains[best], 'nats')}."
    )
    values = {measured.base: base, measured.edit: measured.log_probabilities[measured.edit]}
    values |= {name: one.log_probability for name, one in singles.items()}
    outcome: Outcome = "held" if len(raising) > len(gains) / 2 else ("failed" if not raising else "open")
    note = "by 95 % intervals, of which one in forty lies above zero by chance"
    return Finding("single-components", "opener", values, outcome, sentence, note, judged=list(singles))


def _component_facts(measured: Measured, singles: Mapping[str, _Single]) -> list[dict[str, Any]]:
    base = measured.log_probabilities[measured.base]
    return [
        {
            "component": name,
            "magnitude": one.magnitude,
            "importance": one.importance,
            "opener_gain": paired(one.log_probability, base).to_json(),
        }
        for name, one in singles.items()
    ]


def _facts(part: Part, measured: Measured) -> dict[str, Any]:
    """A part with its gain in all, per component and at which drift."""
    gain = paired(measured.refused[part.label], measured.refused[measured.base])
    components = edited_count(part.edit)
    return {
        "label": part.label,
        "kind": part.kind,
        "top": part.top,
        "components": components,
        "strength": part.strength,
        "sum_squares": part.strength**2 * sum_squares(part.edit),
        "kl": mean(measured.drift[part.label]).to_json(),
        "gain": gain.to_json(),
        "gain_per_component": _divided(gain, components).to_json(),
    }


def _divided(gain: Estimate, components: int) -> Estimate:
    def each(value: float | None) -> float | None:
        return None if value is None or not components else value / components

    return replace(gain, value=each(gain.value), low=each(gain.low), high=each(gain.high))
