"""The replies of all arms in one batch as they grow, and what each of their tokens costs.

Shapes: t = tokens of a reply.
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import SimpleQueue

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Editing, Intervention
from steer2edit.editing import intervened
from steer2edit.evaluation import Arm
from steer2edit.models import (
    EncodedResponse,
    LanguageModel,
    Message,
    Reply,
    encode_prompts,
    generate_batch,
    span_log_probabilities,
)
from steer2edit.models.reply import CUT
from steer2edit.play.contributions import contributions
from steer2edit.play.session import Session
from steer2edit.play.stage import Stage


@dataclass(frozen=True)
class Piece:
    """Some text of a reply, and KL(base ‖ model) at each token that it is made of, once that is known."""

    text: str
    drifts: tuple[float, ...] = ()


@dataclass(frozen=True)
class Answer:
    """The reply of one arm, so far or finished, in pieces."""

    arm: Arm
    reply: Reply
    pieces: tuple[Piece, ...]

    @property
    def drift(self) -> float | None:
        """Mean KL of its tokens; `None` while it grows, of the base, and of an empty reply."""
        drifts = [drift for piece in self.pieces for drift in piece.drifts]
        return sum(drifts) / len(drifts) if drifts else None


@dataclass(frozen=True)
class Turn:
    """The answers of the arms, and once all are finished the session with them."""

    answers: tuple[Answer, ...]
    session: Session | None = None


class _StoppedError(Exception):
    """Nobody waits for the replies any more."""


def talk(stage: Stage, session: Session, prompt: str) -> Iterator[Turn]:
    """A turn as it grows; the last one is finished. Closing the iterator stops the model.

    Raises:
        DataError: the prompt is empty, or the conversation does not fit into the context with its reply.
        InvalidValueError: steering has no drift to match.
    """
    arms = stage.arms(session)
    asked = [session.asked(arm, prompt) for arm in arms]
    replies: list[Reply] = []
    for replies in _growing(stage, asked, arms, session):
        yield Turn(tuple(Answer(arm, own, (Piece(own.shown),)) for arm, own in zip(arms, replies, strict=True)))
    answers, edited = [], None
    for arm, ids, reply in zip(arms, encode_prompts(stage.model, asked), replies, strict=True):
        response, drifts = EncodedResponse((*ids, *reply.ids), len(ids)), Tensor()
        if reply.ids and arm.intervention is not None:
            with stage.engine():
                drifts = token_drifts(stage.model, response, arm.intervention)
            edited = (response, arm.intervention) if isinstance(arm.intervention, Editing) else None
        answers.append(Answer(arm, reply, tuple(_pieces(stage.model, reply, drifts.tolist()))))
    yield Turn(tuple(answers))
    with stage.engine() as engine:
        added = None if edited is None else contributions(engine, *edited)
    said: dict[str, tuple[Message, ...]] = {
        arm.kind: (*own, {"role": "assistant", "content": reply.answer or reply.text})
        for arm, own, reply in zip(arms, asked, replies, strict=True)
    }
    yield Turn(tuple(answers), replace(session, turns={**session.turns, **said}, added=added))


def _growing(
    stage: Stage, asked: Sequence[list[Message]], arms: Sequence[Arm], session: Session
) -> Iterator[list[Reply]]:
    """All replies whenever each has another token. The model runs in a thread, which waits for nobody who reads."""
    encoded = encode_prompts(stage.model, asked, room=session.sampling.max_new_tokens)
    grown: SimpleQueue[list[Reply] | None] = SimpleQueue()
    stopped = threading.Event()

    def hand_on(replies: list[Reply]) -> None:
        if stopped.is_set():
            raise _StoppedError
        grown.put(replies)

    def run() -> list[Reply]:
        try:
            with stage.engine(), intervened(stage.model, [arm.intervention for arm in arms]):
                return generate_batch(stage.model, encoded, session.sampling, hand_on)
        finally:
            grown.put(None)

    with ThreadPoolExecutor(1) as pool:
        finished = pool.submit(run)
        try:
            yield from iter(grown.get, None)
            yield finished.result()
        finally:
            stopped.set()


def token_drifts(model: LanguageModel, response: EncodedResponse, intervention: Intervention) -> Float[Tensor, " t"]:
    """KL(base ‖ model) of the next-token distribution at each token of a reply, in nats."""
    with intervened(model, [None, intervention]):
        before, after = span_log_probabilities(model, [response, response])
    return torch.nn.functional.kl_div(after, before, log_target=True, reduction="none").sum(dim=-1).cpu()


def _pieces(model: LanguageModel, reply: Reply, drifts: Sequence[float]) -> list[Piece]:
    """A reply's text, token by token; tokens that make a character only together are one piece."""
    assert model.tokenizer is not None
    found: list[Piece] = []
    done, begin = "", 0
    for end in range(1, len(reply.ids) + 1):
        text = str(model.tokenizer.decode(list(reply.ids[:end])))
        if end == len(reply.ids) or (text.startswith(done) and not text.endswith("\N{REPLACEMENT CHARACTER}")):
            found.append(Piece(text.removeprefix(done), tuple(drifts[begin:end])))
            done, begin = text, end
    return found if reply.finished else [*found, Piece(CUT)]
