"""The replies of all arms: of one prompt as they grow, with what each of their tokens costs, or of a set of prompts."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from math import sqrt
from queue import SimpleQueue

from torch import Tensor
from torch.nn.functional import kl_div

from steer2edit.core import Component, Editing
from steer2edit.editing import intervened
from steer2edit.engines import Engine
from steer2edit.errors import InvalidValueError
from steer2edit.estimates import Condition, Value
from steer2edit.evaluation import Arm, evaluate
from steer2edit.evaluation.reply_tasks import ReplyTask
from steer2edit.models import (
    EncodedResponse,
    LanguageModel,
    Message,
    Reply,
    encode_prompts,
    generate_batch,
    span_log_probabilities,
    token_log_probabilities,
)
from steer2edit.models.effects import response_effects
from steer2edit.models.reply import CUT
from steer2edit.play.stage import Session, Stage
from steer2edit.steering.refusal import refusal_phrases

MOST = 10
_MOST_PROMPTS = 200
_VERDICTS: Mapping[Value, str] = {True: "refused", False: "answered", None: "unclear"}
Table = tuple[list[str], list[list[str]]]
"""Titles of columns, and rows."""


@dataclass(frozen=True)
class Piece:
    """Some text of a reply, and KL(base ‖ model) at each token that it is made of, once that is known."""

    text: str
    drifts: tuple[float, ...] = ()

    @property
    def drift(self) -> float:
        """Mean KL of its tokens."""
        return max(sum(self.drifts) / len(self.drifts), 0.0)

    @property
    def shade(self) -> int:
        """How dark it is, in percent."""
        return round(100 * min(1.0, sqrt(self.drift)))


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


def talk(stage: Stage, session: Session, prompt: str) -> Iterator[Turn]:
    """A turn as it grows; the last one is finished. Closing the iterator stops the model."""
    arms = stage.arms(session)
    asked = [session.asked(arm, prompt) for arm in arms]
    replies: list[Reply] = []
    for replies in _growing(stage, asked, arms, session):
        yield Turn(tuple(Answer(arm, own, (Piece(own.shown),)) for arm, own in zip(arms, replies, strict=True)))
    answers, edited = [], None
    for arm, ids, reply in zip(arms, encode_prompts(stage.model, asked), replies, strict=True):
        response, drifts = EncodedResponse((*ids, *reply.ids), len(ids)), Tensor()
        if reply.ids and arm.intervention is not None:
            with stage.engine(), intervened(stage.model, [None, arm.intervention]):
                before, after = span_log_probabilities(stage.model, [response, response])
                drifts = kl_div(after, before, log_target=True, reduction="none").sum(dim=-1).cpu()
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
        if stopped.is_set():  # nobody waits for them any more
            raise CancelledError
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


@dataclass(frozen=True)
class _Set(ReplyTask):
    """Of every prompt, whether the reply refuses, told by phrases, and how long it is."""

    kinds = ("refused", "reply_tokens")

    def _judged(self, items: Sequence[str], replies: Sequence[Reply]) -> Sequence[tuple[Value, ...]]:
        lengths = [float(len(reply.ids)) for reply in replies]
        return list(zip(refusal_phrases().score(items, replies), lengths, strict=True))


def ask_all(stage: Stage, session: Session, prompts: Sequence[str]) -> tuple[list[Condition], Table]:
    """Every prompt under every arm: the arms as conditions, and by prompt what each did, as a table.

    An InvalidValueError for no prompts, or more than a page waits for.
    """
    if not 1 <= len(prompts) <= _MOST_PROMPTS:
        raise InvalidValueError(
            f"a set is 1 to {_MOST_PROMPTS} prompts, one in each line, got {len(prompts)}. "
            "More are measured by `steer2edit evaluate --task refusal=FILE`."
        )
    arms = stage.arms(session)
    with stage.engine() as engine:
        found = evaluate(engine, [_Set("", prompts, session.sampling)], arms)
    did = [zip(one.values["refused"], one.values["reply_tokens"], strict=True) for one in found]
    cells = [[f"{_VERDICTS[refused]}, {tokens:.0f} tokens" for refused, tokens in own] for own in did]
    by_prompt = [list(row) for row in zip(prompts, *cells, strict=True)]
    return found, (["prompt", *(one.label for one in found)], by_prompt)


@dataclass(frozen=True)
class Contributions:
    """Nats that the whole edit adds to log p of a reply, and its top components with λ and what each adds."""

    total: float
    top: list[tuple[Component, float, float]]


def contributions(engine: Engine, response: EncodedResponse, editing: Editing, count: int = MOST) -> Contributions:
    """What the edit and its `count` top components add to log p of a reply that was written under it.

    Of a component it is log p(reply | edit) − log p(reply | edit without it). That is exact, costs a pass for each, and
    is done for the few that are largest to first order. They act on each other, so these do not add up to the whole.
    """
    chosen = _largest(engine, response, editing, count)
    parts = [Editing(editing.edit.without(str(component)), editing.strength) for component, _ in chosen]
    base, whole, *left = (own[0].log_probability for own in engine.score([response], [None, editing, *parts], kl=False))
    top = [(component, size, whole - without) for (component, size), without in zip(chosen, left, strict=True)]
    return Contributions(whole - base, sorted(top, key=lambda one: -abs(one[2])))


def _largest(engine: Engine, response: EncodedResponse, editing: Editing, count: int) -> list[tuple[Component, float]]:
    """(component, λ) of the largest first-order contributions; of the largest |λ| where a model gives no gradient."""
    found: list[tuple[float, Component, float]] = []
    sites = editing.edit.sites
    with suppress(InvalidValueError), intervened(engine.model, [editing]):
        directions = {site: own.output_direction for site, own in sites.items()}
        (effects,) = response_effects(
            engine.model, [response], directions, lambda log_p, own: token_log_probabilities(log_p, own).sum()
        )
        for site, own in sites.items():
            added = (own.row * effects.sites[site][0]).view(own.magnitude.numel(), -1).sum(dim=1).abs()
            for index in added.argsort(descending=True)[:count].tolist():
                component = Component(site, index, own.experts)
                found.append((added[index].item(), component, own.magnitude[index].item()))
    if not found:
        return [(component, size) for component, size, _ in editing.edit.top_components(count)]
    found.sort(key=lambda one: -one[0])
    return [(component, size) for added, component, size in found[:count] if added]
