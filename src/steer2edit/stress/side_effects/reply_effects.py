"""What an edit does to the next-token distribution of benign replies, by position."""

from collections.abc import Sequence

from steer2edit.core import Intervention
from steer2edit.engines import Engine
from steer2edit.estimates import Value
from steer2edit.evaluation import base_answers
from steer2edit.models import EncodedResponse
from steer2edit.stress.findings import StressResult
from steer2edit.stress.replies import finite
from steer2edit.stress.subject import Subject
from steer2edit.stress.verdicts import Effect

POSITIONS = {"first": slice(0, 1), "2-8": slice(1, 8), "later": slice(8, None)}
"""Stretches of a reply, in tokens."""
_WHERE = {
    "first": "first token of benign replies",
    "2-8": "tokens 2 to 8 of benign replies",
    "later": "later tokens of benign replies",
}


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


def next_token(subject: Subject, margin: float = 0.1) -> StressResult:
    """How far the next-token distribution moves on the base's own benign answers, by position of the reply.

    Args:
        subject: what is tested.
        margin: nats per token; below it the distribution counts as kept, above it as moved.
    """
    arms = subject.interventions
    answers = base_answers(subject.engine, subject.sample(subject.benign), subject.sampling)
    findings = []
    for name, tokens in POSITIONS.items():
        found = position_kl(subject.engine, answers, list(arms.values()), tokens)
        effect = Effect("kl", f"KL to the base, {_WHERE[name]}", margin, 1, "nats per token", from_margin=True)
        findings.append(effect.finding(f"kl-{name}", dict(zip(arms, found, strict=True)), subject.edited))
    return StressResult(findings)
