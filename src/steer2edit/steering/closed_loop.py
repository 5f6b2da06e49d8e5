"""Rows made in small steps with the edit in place, on requests as they are and in other wordings: edits made to hold.

One look (`method.gate`) says what the first nats of an edit do; by the time it has spent its drift the model is another
one. So the row is begun at a quarter of that drift and goes on in steps, each measured with the ones before in force:

    maximise   A(a) = mean_i log p_i(a)     p_i: of the first tokens of positive response i, under the edit u aᵀ, to its
                                            request as it is, and to the same in one of several wordings
    a ← a + δ M⁻¹s(a) / ‖M⁻¹s(a)‖_M         s(a) = mean_i ∂log p_i/∂a under u aᵀ; M, of the base model, as in the gate

where δ, at first twice that of the step before, is halved until A falls by that. log p by itself stops to pull where a
response is likely already: no negative ones are needed.
"""

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import resources

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div

from steer2edit.core import Site
from steer2edit.method import Gate, gated_effects, shared_cost
from steer2edit.models import (
    EncodedResponse,
    LanguageModel,
    Prompt,
    SiteUpdate,
    encode_responses,
    span_log_probabilities,
    token_log_probabilities,
    updated_outputs,
)
from steer2edit.models.batching import DEFAULT_BATCH_TOKENS, length_batches
from steer2edit.progress import step
from steer2edit.steering.contrast import Pair
from steer2edit.steering.secant import Secant
from steer2edit.steering.transformation import Transformation, takes_system_prompt

Features = Mapping[Site, Float[Tensor, "_n _m"]]
Rows = Mapping[Site, Float[Tensor, " _m"]]
TOKENS = 8
"""First tokens of a response that are to be likely: more than decide it, so that a reply goes on as it begins."""
_BEGIN, _MOST = 0.0075, 0.03  # nats per token that the row begins with, and may come to
_TRIES = 10  # strengths, for the first of these
_STEPS = 8
_LONGEST, _SHORTEST = 0.5, 0.03  # steps, in the first row's length
_REPLIES = 24  # benign ones that drift is measured on


def wordings(model: LanguageModel) -> list[Transformation]:
    """The wordings of `wordings.toml`, in the form that the chat template takes."""
    rows = tomllib.loads(resources.files("steer2edit.steering").joinpath("wordings.toml").read_text(encoding="utf-8"))
    found = [Transformation(**row) for row in rows["wordings"]]
    return found if takes_system_prompt(model) else [wording.without_system() for wording in found]


def worded_responses(model: LanguageModel, pairs: Sequence[Pair]) -> list[EncodedResponse]:
    """The responses, each to its request in one of the wordings in turn; behind the opener of one that has any."""
    every = wordings(model)
    ways = [every[i % len(every)] for i in range(len(pairs))]
    asked = [way(prompt) for way, (prompt, _) in zip(ways, pairs, strict=True)]
    said = [f"{way.opener} {response}".lstrip() for way, (_, response) in zip(ways, pairs, strict=True)]
    whole = encode_responses(model, list(zip(asked, said, strict=True)))
    begun = iter(encode_responses(model, [(p, way.opener) for p, way in zip(asked, ways, strict=True) if way.opener]))
    starts = [len(next(begun).ids) if way.opener else own.start for way, own in zip(ways, whole, strict=True)]
    return [EncodedResponse(own.ids[: start + TOKENS], start) for own, start in zip(whole, starts, strict=True)]


def worded_prompts(model: LanguageModel, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Requests in the wordings that have no opener, in turn."""
    every = [wording for wording in wordings(model) if not wording.opener]
    return [every[i % len(every)](prompt) for i, prompt in enumerate(prompts)]


def closed_loop(
    model: LanguageModel,
    directions: Rows,
    gate: Gate,
    responses: Sequence[EncodedResponse],
    replies: Sequence[EncodedResponse],
    effects: Callable[[Sequence[EncodedResponse]], Features],
    silent: Features,
    draws: Features,
) -> tuple[Rows, float]:
    """ŝ = (C + C̄) a of the rows by site, [m], and the KL per token that these spend on the first of the replies.

    Args:
        model: the base model.
        directions: u by site, [d].
        gate: of one look, whose row is begun with.
        responses: positive ones that are to be likely.
        replies: the model's own ones to benign requests.
        effects: of every site on log p of responses, with the model as it is at the call.
        silent: S, of requests to stay silent on, by site.
        draws: Ψ by site.
    """
    replies = replies[:_REPLIES]
    base = span_log_probabilities(model, replies)
    costs = {site: shared_cost(psi).float() for site, psi in draws.items()}

    def edited(wanted: Rows) -> AbstractContextManager[None]:
        rows = {site: own / costs[site].clamp(min=1e-30) for site, own in wanted.items()}
        return in_place(model, directions, rows)

    def drift(wanted: Rows) -> float:
        with edited(wanted):
            after = span_log_probabilities(model, replies)
        spent = [
            kl_div(q, p, log_target=True, reduction="sum").item() / len(p) for p, q in zip(base, after, strict=True)
        ]
        return sum(spent) / len(spent)

    def attribute(wanted: Rows) -> float:
        if not drift(wanted) <= _MOST:
            return -math.inf
        with edited(wanted):
            return mean_log_probability(model, responses)

    strength = Secant(_BEGIN, 1 / max(gate.gain, 1e-30), tolerance=0.1)  # at first one nat, which is too little
    while not strength.best.reached and strength.steps < _TRIES:
        spent = drift(_scaled(gate.effects, strength.strength))
        strength.tell(spent if math.isfinite(spent) else None)
    found, length = _scaled(gate.effects, strength.best.strength), strength.best.strength * gate.gain**0.5  # ‖a‖_M
    best, share = attribute(found), _LONGEST
    with step("Steps with the edit in place", _STEPS) as advance:
        for _ in range(_STEPS):
            with edited(found):
                look = gated_effects(effects(responses), silent, draws)
            towards = _scaled(look.effects, length / max(look.gain, 1e-30) ** 0.5)
            value, share, tried = _longest_step(found, towards, min(2 * share, _LONGEST), attribute)
            if value > best:
                best, found = value, tried
            advance(1)
    return found, drift(found)


def _longest_step(
    found: Rows, towards: Rows, share: float, attribute: Callable[[Rows], float]
) -> tuple[float, float, Rows]:
    """A, the length and ŝ after a step, which is halved until A falls by that; A is −∞ where none is left."""
    value, best = -math.inf, found
    while share >= _SHORTEST:
        tried = {site: own + share * towards[site] for site, own in found.items()}
        if (now := attribute(tried)) <= value and math.isfinite(value):
            break
        value, best = now, tried
        share /= 2
    return value, 2 * share, best


def _scaled(rows: Rows, scale: float) -> Rows:
    return {site: scale * row for site, row in rows.items()}


def mean_log_probability(model: LanguageModel, responses: Sequence[EncodedResponse]) -> float:
    """Mean of log p of the responses, nats, under what is in force."""
    total = 0.0
    for batch in length_batches([len(response.ids) for response in responses], DEFAULT_BATCH_TOKENS):
        own = [responses[i] for i in batch]
        for log_p, response in zip(span_log_probabilities(model, own), own, strict=True):
            total += token_log_probabilities(log_p, response).sum().item()
    return total / len(responses)


def in_place(model: LanguageModel, directions: Rows, rows: Rows) -> AbstractContextManager[None]:
    """The model with u aᵀ at every site, for a while."""
    return updated_outputs(model, {
        site: SiteUpdate(1, a[None, None].to(device), directions[site][None, None].to(device))
        for site, a in rows.items() if (device := model.sites[site].device)
    })  # fmt: skip
