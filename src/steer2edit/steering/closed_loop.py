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

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div

from steer2edit.core import Site
from steer2edit.errors import DataError
from steer2edit.method import Gate, gated_effects
from steer2edit.models import (
    EncodedResponse,
    LanguageModel,
    Message,
    Prompt,
    SiteUpdate,
    encode_prompts,
    encode_responses,
    span_log_probabilities,
    token_log_probabilities,
    updated_outputs,
)
from steer2edit.models.batching import DEFAULT_BATCH_TOKENS, length_batches
from steer2edit.progress import step
from steer2edit.steering.contrast import Pair

Features = Mapping[Site, Float[Tensor, "_n _m"]]
Rows = Mapping[Site, Float[Tensor, " _m"]]
TOKENS = 8
"""First tokens of a response that are to be likely: more than decide it, so that a reply goes on as it begins."""
_BEGIN, _MOST = 0.0075, 0.03  # nats per token that the row begins with, and may come to
_FIRST = 16.0  # nats that the first row that is tried adds, to first order
_TRIES = 8
_STEPS = 8
_LONGEST, _SHORTEST = 0.5, 0.03  # steps, in the first row's length
_REPLIES = 24  # benign ones that drift is measured on
_REQUEST = "{request}"


def wordings(model: LanguageModel) -> list[dict[str, str]]:
    """The wordings: `template`, `system` and `opener` of each; only those that the chat template has a form for."""
    text = resources.files("steer2edit.steering").joinpath("wordings.toml").read_text(encoding="utf-8")
    return [wording for wording in tomllib.loads(text)["wordings"] if _has_form(model, wording)]


def _has_form(model: LanguageModel, wording: Mapping[str, str]) -> bool:
    try:
        encode_prompts(model, [worded("Hello.", wording)])
    except DataError:  # some templates take no system message
        return False
    return True


def worded(prompt: Prompt, wording: Mapping[str, str]) -> Prompt:
    """A request, or the last one of a conversation, in another wording; with its system message if it has one."""
    template, system = wording.get("template", _REQUEST).strip("\n"), wording.get("system")
    if isinstance(prompt, str) and system is None:
        return template.replace(_REQUEST, prompt)
    *before, last = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
    if system is not None:
        before = [Message(role="system", content=system), *(m for m in before if m["role"] != "system")]
    return [*before, Message(role=last["role"], content=template.replace(_REQUEST, last["content"]))]


def worded_responses(model: LanguageModel, pairs: Sequence[Pair]) -> list[EncodedResponse]:
    """The responses, each to its request in one of the wordings in turn; behind the opener of one that has any."""
    every = wordings(model)
    found = []
    for i, (prompt, response) in enumerate(pairs):
        wording = every[i % len(every)]
        asked, opener = worded(prompt, wording), wording.get("opener")
        said = f"{opener} {response}" if opener else response
        (whole,) = encode_responses(model, [(asked, said)])
        start = len(encode_responses(model, [(asked, opener)])[0].ids) if opener else whole.start
        found.append(EncodedResponse(whole.ids[: start + TOKENS], start))
    return found


def worded_prompts(model: LanguageModel, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Requests in the wordings that have no opener, in turn."""
    every = [wording for wording in wordings(model) if "opener" not in wording]
    return [worded(prompt, every[i % len(every)]) for i, prompt in enumerate(prompts)]


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
    """The rows by site, [m], and the KL per token that they spend on the first of the replies.

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

    def drift(rows: Rows) -> float:
        with in_place(model, directions, rows):
            after = span_log_probabilities(model, replies)
        spent = [
            kl_div(q, p, log_target=True, reduction="sum").item() / len(p) for p, q in zip(base, after, strict=True)
        ]
        return sum(spent) / len(spent)

    def attribute(rows: Rows) -> float:
        if drift(rows) > _MOST:
            return -math.inf
        with in_place(model, directions, rows):
            return mean_log_probability(model, responses)

    first = rows_of(gate.effects, draws)
    scale = _begun(first, _FIRST / max(gate.gain, 1e-30), drift)
    rows, length = _scaled(first, scale), scale * gate.gain**0.5  # of the row in drift: ‖a‖_M
    best, share = attribute(rows), _LONGEST
    with step("Steps with the edit in place", _STEPS) as advance:
        for _ in range(_STEPS):
            with in_place(model, directions, rows):
                look = gated_effects(effects(responses), silent, draws)
            towards = _scaled(rows_of(look.effects, draws), length / max(look.gain, 1e-30) ** 0.5)
            value, share, found = _longest_step(rows, towards, min(2 * share, _LONGEST), attribute)
            if value > best:
                best, rows = value, found
            advance(1)
    return rows, drift(rows)


def _begun(rows: Rows, scale: float, drift: Callable[[Rows], float]) -> float:
    """The scale at which rows spend what they are to begin with."""
    for _ in range(_TRIES):
        if abs((spent := drift(_scaled(rows, scale))) - _BEGIN) <= 0.1 * _BEGIN:
            break
        scale *= min(max((_BEGIN / max(spent, 1e-12)) ** 0.5, 0.25), 4.0)  # KL is nearly quadratic in the strength
    return scale


def _longest_step(
    rows: Rows, towards: Rows, share: float, attribute: Callable[[Rows], float]
) -> tuple[float, float, Rows]:
    """A, the length and the rows after a step, which is halved until A falls by that; A is −∞ where none is left."""
    value, found = -math.inf, rows
    while share >= _SHORTEST:
        tried = {site: row + share * towards[site] for site, row in rows.items()}
        if (now := attribute(tried)) <= value and math.isfinite(value):
            break
        value, found = now, tried
        share /= 2
    return value, 2 * share, found


def rows_of(effects: Features, draws: Features) -> Rows:
    """a = ŝ / (C + C̄): the row of gated effects with nothing left out (`method.effect_rows`)."""
    found = {}
    for site, own in effects.items():
        C = draws[site].double().square().mean(dim=0)
        found[site] = torch.where(C + C.mean() > 0, own.double() / (C + C.mean()), 0).float()
    return found


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
