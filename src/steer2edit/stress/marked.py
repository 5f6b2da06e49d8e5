"""Replies that were generated in another way than `attacked.ask` does, scored as it scores."""

import re
from collections.abc import Mapping, Sequence

from steer2edit.core import Intervention
from steer2edit.engines import TransformersEngine
from steer2edit.evaluation.scorers import PhraseScorer
from steer2edit.evaluation.tasks import replies_to
from steer2edit.models import Prompt, Reply
from steer2edit.stress.attacked import Replies, is_degenerate, mentions_request
from steer2edit.stress.stress_test import Subject

_LEADING = " \t\n,.:;!—-"
_BREAK = re.compile(r"(?<=[.!?:;\n])\s+|(?:^|,?\s+)(?:but|however,?)\s+")


def marked(
    subject: Subject, requests: Sequence[Prompt], replies: Mapping[str, Sequence[Reply]], *, continued: bool = False
) -> Replies:
    """Verdicts on replies.

    Args:
        subject: whose scorer is used.
        requests: the plain request of each reply.
        replies: by arm label.
        continued: whether the replies go on from a given beginning. A refusal by phrases is then looked for at every
            beginning of a sentence, not only at the reply's.
    """
    every = [reply for own in replies.values() for reply in own]
    shown = [request for _ in replies for request in requests]
    verdicts = list(subject.scorer.score(shown, every))
    if continued and isinstance(subject.scorer, PhraseScorer):
        verdicts = [_within(subject.scorer, *item) for item in zip(shown, every, verdicts, strict=True)]
    count = len(requests)
    by_arm = {label: verdicts[i * count : (i + 1) * count] for i, label in enumerate(replies)}
    return Replies(
        texts={label: [reply.shown for reply in own] for label, own in replies.items()},
        refused=by_arm,
        degenerate={label: [is_degenerate(reply) for reply in own] for label, own in replies.items()},
        mentions={
            label: [
                None if verdict else mentions_request(reply.answer, request)
                for reply, request, verdict in zip(own, requests, by_arm[label], strict=True)
            ]
            for label, own in replies.items()
        },
    )


def _within(scorer: PhraseScorer, request: Prompt, reply: Reply, verdict: bool | None) -> bool | None:
    if verdict is not False or not reply.answer:
        return verdict
    *before, last = [part for part in _BREAK.split(reply.answer.lstrip(_LEADING)) if part.strip()] or [""]
    parts = [*(Reply(part, (), finished=True) for part in before), reply.saying(last)]
    return any(scorer.score([request] * len(parts), parts))


def in_memory(subject: Subject, requests: Sequence[Prompt], interventions: Mapping[str, Intervention]) -> Replies:
    """Replies of the loaded model as it is now, under each intervention by label.

    The subject's engine may remember replies, or run a copy of the model: neither knows of weights that are merged for
    a while.
    """
    found = replies_to(TransformersEngine(subject.model), requests, list(interventions.values()), subject.sampling)
    return marked(subject, requests, dict(zip(interventions, found, strict=True)))


def together(*parts: tuple[str, Replies, str]) -> Replies:
    """Replies of several runs as one.

    Args:
        parts: (label in the result, run, label in the run).
    """

    def of(kind: str) -> dict[str, Sequence[bool | None]]:
        return {label: getattr(run, kind)[own] for label, run, own in parts}

    texts = {label: run.texts[own] for label, run, own in parts}
    return Replies(texts, of("refused"), of("degenerate"), of("mentions"))
