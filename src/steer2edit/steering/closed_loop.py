"""Rows made in steps with the edit in place: replies that go on as they begin, and edits made to hold.

One look (`method.gate`) says what the first nats of an edit do; by the time it has spent its drift the model is another
one, which begins a reply as it is to and then begins it again. So the row a is begun at a quarter of that drift and
goes on in steps, each measured with those before in force:

    maximise   A(a) = mean_i log p_i(a) − ω mean_j (log q_j(0) − log q_j(a))₊,   as far as a drifts by 0.02 nats a token

    p   of the first tokens of a positive response, or of all of it, to its request as it is or in other wordings
    q   of those of the model's own reply to a request to stay silent on, likewise: what is lost there counts

The steps are conjugate gradients (Polak and Ribière) in the metric M of the gate: d ← M⁻¹s + β d with s = ∂A/∂a and
β = sᵀ(M⁻¹s − M⁻¹s')/ s'ᵀM⁻¹s', s' the one before; each goes as far as a parabola through A says.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div

from steer2edit.core import Site
from steer2edit.method.curvature import shared_cost
from steer2edit.method.gate import Gate, gated_effects
from steer2edit.models import (
    EncodedResponse,
    LanguageModel,
    Prompt,
    SiteUpdate,
    span_log_probabilities,
    token_log_probabilities,
    updated_outputs,
)
from steer2edit.models.batching import DEFAULT_BATCH_TOKENS, length_batches
from steer2edit.models.fine_tuning import training_rows
from steer2edit.progress import step
from steer2edit.steering.benign import REPLIES, own_answers
from steer2edit.steering.contrast import Pair
from steer2edit.steering.examples import spread
from steer2edit.steering.secant import Secant
from steer2edit.steering.wordings import TOKENS, worded_prompts, worded_responses

Features = Mapping[Site, Float[Tensor, "_n _m"]]
Rows = Mapping[Site, Float[Tensor, " _m"]]
STEPS, WORDED_STEPS = 5, 10
WHOLE, _ENDED = 16, 6  # tokens of a response that is to be likely to its end, as one in so many is
_WANTED, _OWN = 24, 60  # positive responses, and requests to stay silent on; in other wordings as many again
_LOST = 3.0  # ω
_BEGIN, _MOST = 0.0075, 0.02  # nats per token that the row begins with, and may come to
_TRIES = 10  # strengths, for the first of these
_FIRST, _SHORTEST, _NEAR = 0.25, 0.02, 0.15  # lengths of a step, in the first row's; tops this near are not tried
_REPLIES = 24  # benign ones that drift is measured on


def make_objective(
    model: LanguageModel,
    directions: Rows,
    positive: Sequence[Pair],
    stays: Sequence[Prompt],
    replies: Sequence[EncodedResponse],
    wordings: bool,
) -> "Objective":
    """A of some of the positive responses, and of the requests to stay silent on.

    With `wordings` there are twice as many, half of them in other wordings. Some of the responses to requests as they
    are are to be likely to the end of their turn, so that a reply is over with them.
    """
    each = 2 if wordings else 1
    positive, stays = spread(positive, each * _WANTED), spread(stays, each * _OWN)
    whole = training_rows(model, positive[::each])
    wanted = [response.first(WHOLE if i % _ENDED == 0 else TOKENS) for i, response in enumerate(whole)]
    asked = stays[::each]
    if wordings:
        wanted += worded_responses(model, positive[1::2])
        asked += worded_prompts(model, stays[1::2])
    own = own_answers(model, asked, replace(REPLIES, max_new_tokens=TOKENS)) if asked else []
    return Objective(model, directions, wanted, [reply for _, reply in own], replies)


class Objective:
    """A, and what it is measured on.

    Args:
        model: the base model.
        directions: u by site, [d].
        wanted: positive responses that are to be likely.
        own: the model's own replies, as far as they are to stay as likely as they are.
        replies: the model's own ones to benign requests, which drift is measured on.
    """

    def __init__(
        self,
        model: LanguageModel,
        directions: Rows,
        wanted: Sequence[EncodedResponse],
        own: Sequence[EncodedResponse],
        replies: Sequence[EncodedResponse],
    ) -> None:
        self.responses = [*wanted, *own]
        self._model, self._directions, self._replies = model, directions, replies[:_REPLIES]
        self._base = span_log_probabilities(model, self._replies)
        self._own = log_probabilities(model, own)

    def edited(self, rows: Rows) -> AbstractContextManager[None]:
        """The model with u aᵀ at every site, for a while."""
        return updated_outputs(self._model, {
            site: SiteUpdate(1, a[None, None].to(device), self._directions[site][None, None].to(device))
            for site, a in rows.items() if (device := self._model.sites[site].device)
        })  # fmt: skip

    def drift(self, rows: Rows) -> float:
        """KL per token of the replies, in nats."""
        with self.edited(rows):
            after = span_log_probabilities(self._model, self._replies)
        pairs = zip(self._base, after, strict=True)
        return fmean(kl_div(q, p, log_target=True, reduction="sum").item() / len(p) for p, q in pairs)

    def at(self, rows: Rows) -> "Point":
        """A of the rows, which are shortened to the drift that is allowed: it goes with their square."""
        if not math.isfinite(spent := self.drift(rows)):
            return Point(-math.inf, rows, torch.zeros(len(self.responses)))
        rows = _sum({}, rows, min(1.0, (_MOST / max(spent, 1e-30)) ** 0.5))
        with self.edited(rows):
            found = log_probabilities(self._model, self.responses)
        wanted, others = found[: len(found) - len(self._own)], max(len(self._own), 1)
        lost = self._own - found[len(wanted) :]
        value = wanted.mean() - _LOST * lost.clamp(min=0).sum() / others
        weights = torch.cat([torch.full_like(wanted, 1 / len(wanted)), (lost > 0) * _LOST / others])
        return Point(value.item(), rows, weights)


@dataclass(frozen=True)
class Point:
    """Rows, and what they come to."""

    value: float  # A
    rows: Rows
    weights: Float[Tensor, " n"]  # ∂A/∂(log p) of every response


def closed_loop(
    objective: Objective,
    gate: Gate,
    effects: Callable[[Sequence[EncodedResponse]], Features],
    silent: Features,
    draws: Features,
    steps: int,
) -> tuple[Rows, float]:
    """ŝ = (C + C̄) a of the rows by site, [m], and the KL per token that these spend.

    Args:
        objective: what is maximised.
        gate: of one look, whose row is begun with.
        effects: of every site on log p of responses, with the model as it is at the call.
        silent: S, of requests to stay silent on, by site.
        draws: Ψ by site.
        steps: how many.
    """
    costs = {site: shared_cost(psi).float() for site, psi in draws.items()}
    first, unit = _begun(objective, gate, costs)
    best, length, conjugate = objective.at(first), _FIRST, _Conjugate()
    measured: Point | None = None
    with step("Steps with the edit in place", steps) as advance:
        for _ in range(steps):
            if best is not measured:  # a step that gained nothing is tried again, shorter
                counting = best.weights.nonzero()[:, 0]
                with objective.edited(best.rows):
                    found = effects([objective.responses[i] for i in counting.tolist()])
                slopes = {site: best.weights[counting] @ own for site, own in found.items()}
                look, measured = gated_effects({site: own[None] for site, own in slopes.items()}, silent, draws), best
            if not look.gain > 0:
                break
            towards, slope = conjugate.direction(slopes, _rows(look, costs), look.gain), unit * look.gain**0.5
            towards = _sum({}, towards, slope / _product(slopes, towards))
            tried = {length: objective.at(_sum(best.rows, towards, length))}
            top = _top(tried[length].value - best.value, slope, length)
            if abs(top - length) > _NEAR * length:
                tried[top] = objective.at(_sum(best.rows, towards, top))
            length = max(tried, key=lambda one: tried[one].value)
            if tried[length].value > best.value:
                best, length = tried[length], max(length, _SHORTEST)
            else:
                length, conjugate = length / 4, _Conjugate()
            advance(1)
    return {site: row * costs[site] for site, row in best.rows.items()}, objective.drift(best.rows)


def _begun(objective: Objective, gate: Gate, costs: Rows) -> tuple[Rows, float]:
    """The row of one look at the drift that is begun with, and its length ‖a‖_M."""
    first = _rows(gate, costs)
    strength = Secant(_BEGIN, 1 / max(gate.gain, 1e-30), tolerance=0.1)  # at first one nat, which is too little
    while not strength.best.reached and strength.steps < _TRIES:
        spent = objective.drift(_sum({}, first, strength.strength))
        strength.tell(spent if math.isfinite(spent) else None)
    return _sum({}, first, strength.best.strength), strength.best.strength * gate.gain**0.5


class _Conjugate:
    """Conjugate directions: M⁻¹s + β d of what was before; begun anew where that leads down."""

    def __init__(self) -> None:
        self._before: Rows = {}
        self._direction: Rows = {}
        self._gain = 1.0

    def direction(self, slopes: Rows, ahead: Rows, gain: float) -> Rows:
        """d, of s, M⁻¹s and sᵀM⁻¹s."""
        share = max((gain - _product(slopes, self._before)) / self._gain, 0.0)
        found = _sum(ahead, self._direction, share)
        self._direction = found if _product(slopes, found) > 0 else ahead
        self._before, self._gain = ahead, gain
        return self._direction


def _top(gained: float, slope: float, length: float) -> float:
    """Where the parabola through nothing, with this slope, and through what was gained at a length has its top."""
    bend = (gained - slope * length) / length**2
    return min(max(-slope / (2 * bend), length / 8), 3 * length) if bend < 0 else 3 * length


def _rows(gate: Gate, costs: Rows) -> dict[Site, Tensor]:
    return {site: own / costs[site].clamp(min=1e-30) for site, own in gate.effects.items()}


def _sum(rows: Rows, others: Rows, scale: float) -> dict[Site, Tensor]:
    """Rows + scale × others, where no rows are zeros."""
    return {site: rows.get(site, 0) + scale * own for site, own in others.items()} or dict(rows)


def _product(first: Rows, second: Rows) -> float:
    return sum((own.double() @ second[site].double()).item() for site, own in first.items() if site in second)


def log_probabilities(model: LanguageModel, responses: Sequence[EncodedResponse]) -> Float[Tensor, " n"]:
    """log p of the responses, nats, under what is in force."""
    found = torch.zeros(len(responses))
    for batch in length_batches([len(response.ids) for response in responses], DEFAULT_BATCH_TOKENS):
        own = [responses[i] for i in batch]
        scores = zip(span_log_probabilities(model, own), own, strict=True)
        found[list(batch)] = torch.tensor([token_log_probabilities(log_p, r).sum().item() for log_p, r in scores])
    return found
