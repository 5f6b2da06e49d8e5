"""What an edit does to benign replies: the next-token distribution by position, and long replies that break down."""

from collections.abc import Sequence

from steer2edit.core import Intervention
from steer2edit.engines import Engine
from steer2edit.estimates import Value
from steer2edit.evaluation import base_answers, estimate
from steer2edit.evaluation.tasks import is_empty, repeated_share, replies_to
from steer2edit.models import EncodedResponse, Prompt, Reply, Sampling, encode_prompts
from steer2edit.stress.findings import StressResult
from steer2edit.stress.plain_prompts import long_replies_of
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
_LONGEST = 256  # tokens, in the full suite
_PLAIN = ("repetition", "empty")  # those are among the plain lines, on the same replies as in the quick suite
_EFFECTS = (
    Effect("repetition", "Repeated 4-grams in long replies", 0.1),
    Effect("surprise", "The base's surprise at long replies", 0.5, 1, "nats per token"),
    Effect("empty", "Empty replies", 0.15),
    Effect("unfinished", "Long replies that do not end", 0.25),
)
BROKEN = {"repetition": 0.5, "surprise": 4.0, "empty": 0.5}
"""An edit that goes beyond one of these by its whole interval is broken: repeated 4-grams, nats per token at which its
replies surprise the base, empty replies."""
_NO_TEXT = "The edited model is broken: its benign replies are no text any more."


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


def long_replies(subject: Subject) -> StressResult:
    """Long replies: repetition, empty and endless replies, and how surprised the base is by them.

    A line per measure, in the quick suite without those of the plain prompts, whose replies are the same.
    `facts["broken"]` says which of them mark the edit as broken.
    """
    prompts, sampling = long_replies_of(subject)
    if subject.suite == "full":
        prompts, sampling = subject.sample(subject.benign), Sampling(max_new_tokens=_LONGEST)
    arms = subject.interventions
    by_arm = dict(zip(arms, replies_to(subject.engine, prompts, list(arms.values()), sampling), strict=True))
    values: dict[str, dict[str, list[Value]]] = {
        "repetition": {a: [repeated_share(r.answer_ids) for r in own] for a, own in by_arm.items()},
        "surprise": {a: _surprise(subject, prompts, own) for a, own in by_arm.items()},
        "empty": {a: [is_empty(r) for r in own] for a, own in by_arm.items()},
        "unfinished": {a: [not r.finished for r in own] for a, own in by_arm.items()},
    }
    edit = subject.edited
    broken = [name for name, limit in BROKEN.items() if (estimate(values[name][edit]).low or 0.0) > limit]
    note = f"replies of at most {sampling.max_new_tokens} tokens"
    findings = [
        effect.finding(effect.metric, values[effect.metric], edit, note, _NO_TEXT if effect.metric in broken else "")
        for effect in _EFFECTS
        if subject.suite == "full" or effect.metric not in _PLAIN
    ]
    texts = {arm: {"long": [reply.shown for reply in own]} for arm, own in by_arm.items()}
    return StressResult(findings, texts, {"broken": broken, "limits": BROKEN})


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
