"""What an edit does to benign replies: the next-token distribution by position, and long replies that break down."""

from collections.abc import Sequence
from dataclasses import dataclass

from steer2edit.core import Intervention
from steer2edit.engines import Engine
from steer2edit.evaluation import Value, base_answers, estimate
from steer2edit.evaluation.tasks import is_empty, repeated_share, replies_to
from steer2edit.models import EncodedResponse, Prompt, Reply, Sampling, encode_prompts
from steer2edit.stress.asking import edit_label, finite, interventions_of, some
from steer2edit.stress.cost_verdicts import Effect
from steer2edit.stress.plain_prompts import long_replies_of
from steer2edit.stress.stress_test import SUITES, Cost, Finding, Group, StressResult, Subject, Suite

POSITIONS = {"first": slice(0, 1), "2-8": slice(1, 8), "later": slice(8, None)}
"""Stretches of a reply, in tokens."""


def position_kl(
    engine: Engine, answers: Sequence[EncodedResponse | None], interventions: Sequence[Intervention], tokens: slice
) -> list[list[Value]]:
    """KL(base ‖ model) of the next token, mean over a stretch of each answer, by intervention; in nats per token.

    The stretch is scored as a response whose prompt is all that comes before it, so that any engine can do it.

    Args:
        engine: runs the model.
        answers: of the base model; `None` stays unscored, and so does an answer without tokens in the stretch.
        interventions: `None` is the base.
        tokens: the stretch, counted from the answer's first token.
    """
    parts: dict[int, EncodedResponse] = {}
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        begin, end, _ = tokens.indices(len(answer.response_ids))
        if begin < end:
            parts[index] = EncodedResponse(answer.ids[: answer.start + end], answer.start + begin)
    if not parts:
        return [[None] * len(answers) for _ in interventions]
    found = [dict(zip(parts, own, strict=True)) for own in engine.score(list(parts.values()), interventions)]
    return [[finite(own[i].kl) if i in own else None for i in range(len(answers))] for own in found]


@dataclass(frozen=True)
class NextTokenKl:
    """How far the next-token distribution moves on the base's own benign answers, by position of the reply.

    Args:
        margin: nats per token; below it the distribution counts as kept, above it as moved.
    """

    margin: float = 0.1
    name: str = "next-token"
    group: Group = "side-effects"
    summary: str = "KL of the next-token distribution on benign answers, by position of the reply"
    citation: str = "safety acts on the first tokens: Qi et al., arXiv 2406.05946"
    suites: frozenset[Suite] = frozenset(SUITES)

    def cost(self, subject: Subject, suite: Suite) -> Cost:
        """A pass per stretch, arm and answer."""
        n = len(some(subject, suite, subject.benign))
        return Cost(passes=len(POSITIONS) * len(subject.arms) * n)

    def run(self, subject: Subject, suite: Suite) -> StressResult:
        """One line per stretch: a cost where the interval of the KL lies above the margin."""
        arms = interventions_of(subject)
        answers = base_answers(subject.engine, some(subject, suite, subject.benign), subject.sampling)
        findings = []
        for name, tokens in POSITIONS.items():
            found = position_kl(subject.engine, answers, list(arms.values()), tokens)
            effect = Effect("kl", f"KL to the base, {_WHERE[name]}", self.margin, 1, "nats per token", from_margin=True)
            values = dict(zip(arms, found, strict=True))
            findings.append(effect.finding(f"kl-{name}", values, edit_label(subject)))
        return StressResult(findings)


_LONGEST = 256  # tokens, in the full suite
_WHERE = {
    "first": "first token of benign replies",
    "2-8": "tokens 2 to 8 of benign replies",
    "later": "later tokens of benign replies",
}


@dataclass(frozen=True)
class LongReplies:
    """Long replies: repetition, empty and endless replies, and how surprised the base is by them.

    Args:
        broken_repetition: an edit whose replies repeat more 4-grams than this, by the whole interval, is broken.
        broken_surprise: so is one whose replies surprise the base more than this, in nats per token.
        broken_empty: so is one that leaves more replies than this empty.
    """

    broken_repetition: float = 0.5
    broken_surprise: float = 4.0
    broken_empty: float = 0.5
    name: str = "long-replies"
    group: Group = "side-effects"
    summary: str = "degeneration of long benign replies: repetition, emptiness, no end, gibberish"
    citation: str = "seq-rep-4: Welleck et al., arXiv 1908.04319; perplexity under the base model: this project"
    suites: frozenset[Suite] = frozenset(SUITES)

    def cost(self, subject: Subject, suite: Suite) -> Cost:
        """A pass over each reply; those of the full suite count by their tokens, the quick ones are remembered."""
        prompts, sampling = self._asked(subject, suite)
        arms, longer = len(subject.arms), max(1, sampling.max_new_tokens // subject.sampling.max_new_tokens)
        return Cost(longer * len(prompts) * arms if suite == "full" else 0, len(prompts) * arms)

    def run(self, subject: Subject, suite: Suite) -> StressResult:
        """A line per measure, in the quick suite without those of the plain prompts.

        `facts["broken"]` says which of them mark the edit as broken.
        """
        arms = interventions_of(subject)
        prompts, sampling = self._asked(subject, suite)
        by_arm = dict(zip(arms, replies_to(subject.engine, prompts, list(arms.values()), sampling), strict=True))
        values: dict[str, dict[str, list[Value]]] = {
            "repetition": {a: [repeated_share(r.answer_ids) for r in own] for a, own in by_arm.items()},
            "surprise": {a: _surprise(subject, prompts, own) for a, own in by_arm.items()},
            "empty": {a: [is_empty(r) for r in own] for a, own in by_arm.items()},
            "unfinished": {a: [not r.finished for r in own] for a, own in by_arm.items()},
        }
        limits = {"repetition": self.broken_repetition, "surprise": self.broken_surprise, "empty": self.broken_empty}
        label = edit_label(subject)
        broken = [name for name, limit in limits.items() if (estimate(values[name][label]).low or 0.0) > limit]
        note = f"replies of at most {sampling.max_new_tokens} tokens"
        effects = [e for e in _EFFECTS if suite == "full" or e.metric not in _PLAIN]  # those are among the plain lines
        findings = [_finding(e, values[e.metric], label, broken, note) for e in effects]
        return StressResult(
            findings,
            {arm: {"long": [reply.shown for reply in own]} for arm, own in by_arm.items()},
            {"broken": broken, "limits": limits},
        )

    def _asked(self, subject: Subject, suite: Suite) -> tuple[list[Prompt], Sampling]:
        """(requests, sampling): in the quick suite those of the plain prompts, whose replies are there already."""
        if suite == "quick":
            return long_replies_of(subject)
        return some(subject, suite, subject.benign), Sampling(max_new_tokens=_LONGEST)


_PLAIN = ("repetition", "empty")
_EFFECTS = (
    Effect("repetition", "Repeated 4-grams in long replies", 0.1),
    Effect("surprise", "The base's surprise at long replies", 0.5, 1, "nats per token"),
    Effect("empty", "Empty replies", 0.15),
    Effect("unfinished", "Long replies that do not end", 0.25),
)


def _finding(effect: Effect, values: dict[str, list[Value]], label: str, broken: Sequence[str], note: str) -> Finding:
    found = effect.finding(effect.metric, values, label, note)
    if effect.metric not in broken:
        return found
    sentence = f"{found.sentence} The edited model is broken: its benign replies are no text any more."
    return Finding(found.name, found.metric, values, "cost", sentence, note, found.higher_is_better)


def _surprise(subject: Subject, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> list[Value]:
    """NLL per token of each reply under the base model; an empty one is unscored."""
    encoded = encode_prompts(subject.model, prompts)
    given = [
        EncodedResponse((*ids, *reply.ids), len(ids)) if reply.ids else None
        for ids, reply in zip(encoded, replies, strict=True)
    ]
    known = [one for one in given if one is not None]
    if not known:
        return [None] * len(given)
    scores = iter(subject.engine.score(known, [None], kl=False)[0])
    return [None if one is None else finite(next(scores).nll) for one in given]
