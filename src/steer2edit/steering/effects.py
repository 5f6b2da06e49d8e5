"""What each component does to a behaviour, and what it costs: measured, one backward pass per response.

A   what decides the behaviour, by `decided_by`:
        first    log p of a response's first tokens: a refusal is decided there
        answer   log p of the whole response per token: s is of the log-odds of true against false answers
        end      log p of the end of the turn: behind short responses, less that in the middle of long ones
u = what a site is to write: the natural gradient of A, positive responses less negative ones (`method.curvature`), from
    every other pair of responses, so that the others tell what is left of it where it was not taken from
s = mean of the effects on A over positive responses, less that over negative ones
C = mean square of the effects on the score of tokens drawn from the model, over its own benign replies
ŝ = effects weighed by a gate (`method.gate`): of a positive response less a negative one where the behaviour is
    wanted, and of a positive one less the model's own where it is not; where first tokens decide, of a row that is made
    in steps from there (`steering.closed_loop`)
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Site, SiteEffects, SteeringVectors
from steer2edit.errors import DataError, InvalidValueError
from steer2edit.method.curvature import natural_direction
from steer2edit.method.gate import Gate, gated_effects
from steer2edit.method.rule import output_direction
from steer2edit.models import EncodedResponse, LanguageModel, Prompt, encode_responses
from steer2edit.models.effects import (
    Score,
    ended,
    first_tokens,
    response_effects,
    sampled_tokens,
    whole_response,
)
from steer2edit.models.reply import turn_end
from steer2edit.steering.benign import BUILT_IN, REPLIES, benign_answers, own_answers
from steer2edit.steering.closed_loop import STEPS, WHOLE, WORDED_STEPS, Rows, closed_loop, make_objective
from steer2edit.steering.contrast import Contrast, ContrastSet
from steer2edit.steering.diagnosis import auroc
from steer2edit.steering.examples import prompt_digests, prompt_key, read_examples
from steer2edit.steering.presets import built_in_requests, safety_prompts

Features = dict[Site, Float[Tensor, "n _m"]]
"""Effects of n responses by site, [n, m]; or their gradients, [n, d]."""
Answers = Sequence[tuple[Prompt, EncodedResponse]]
"""Requests with the model's own replies."""

DECIDING_TOKENS = 4
"""First tokens of a response that decide what kind of reply it is."""
NATURAL = 16.0
"""Nats that a gated edit adds to the decision as it is, to first order."""
_SILENT = 240  # benign requests to stay silent on, as many as there are
BATCH_TOKENS = 1024
"""Rows × longest row of a batch: gradients hold what every layer did, and larger batches are no faster on a CPU."""
_DRAWS = 3  # of tokens at every position, for the curvature
_DIRECTED = 48  # pairs of responses, and replies, that directions are taken from at most
_FEWEST = 6  # pairs of responses, below which two halves say nothing of each other


def measure_effects(
    model: LanguageModel,
    vectors: SteeringVectors,
    contrast: ContrastSet,
    *,
    decided_by: str | None = None,
    silent_on: str | Path | None = None,
    benign: str = BUILT_IN,
    copies: Mapping[str, AbstractContextManager[object]] | None = None,
    wordings: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    seed: int = 0,
) -> SteeringVectors:
    """The vectors with the effects of every site, which `Rules(importance="effect")` makes edits of.

    What of a response is measured, its `first` tokens, the whole `answer` or its `end`, and what gated rows are
    `silent_on` (`benign`, or a file of requests), is by default what suits the behaviour. Replies to `benign` ones
    must not drift. `copies` are contexts in which the model is another, tuned say: wanted effects are averaged over
    them, and the edit is to be silent and not to drift in all. Where first tokens decide, and there are no copies, the
    gated effects are made in steps with the edit in place (`closed_loop`); with `wordings` on other wordings of the
    requests too. Memory: 4 bytes per response and input column, beside the model.
    """
    decided_by = decided_by or contrast.decided_by
    silent_on = silent_on or contrast.silent_on
    if (count := len(contrast.train.pairs())) < _FEWEST:
        counts = contrast.train.counts()
        raise DataError(
            f"effects need at least {_FEWEST} training responses of each class to the same requests, so that two "
            f"halves can be compared; {contrast.name!r} has {counts['positive']} positive and {counts['negative']} "
            f"negative ones, which make {count} pairs. Give more."
        )
    if wordings and decided_by != "first":
        raise InvalidValueError(
            "--robust wordings is for behaviours that the first tokens of a response decide, and this one is decided "
            f"by {decided_by!r}. Leave it out."
        )
    answered = benign_answers(model, benign)
    measure = _Measurement(model, decided_by, batch_tokens, dict.fromkeys(vectors.sites))
    prompts = _silent_prompts(silent_on)
    stays = measure.own_replies(prompts, answered)
    found = measure.natural_directions(contrast.train, answered, torch.Generator().manual_seed(seed))
    directions = {
        site: u if bool(u.any()) else output_direction(vectors.sites[site].steering_vector) for site, u in found.items()
    }
    measure = replace(measure, directions=directions)
    contexts: list[AbstractContextManager[object]] = [nullcontext(), *(copies or {}).values()]
    parts = []
    for context in contexts:
        with context:
            parts.append(measure.all(contrast.train, answered, stays, torch.Generator().manual_seed(seed)))
    positive, negative = (_mean([part[i] for part in parts]) for i in (0, 1))
    silent, draws = ({site: torch.cat([part[i][site] for part in parts]) for site in positive} for i in (2, 3))
    drift = {site: psi.double().square().mean(dim=0).float() for site, psi in draws.items()}
    wanted = _paired(contrast.train, positive, negative)
    gate = gated_effects(wanted, silent, draws)
    told = gated_effects(_paired(contrast.train, *parts[0][:2]), *parts[0][2:]) if copies else gate
    made: dict[str, Any] = {
        "decided_by": decided_by,
        "benign": benign,
        "benign_replies": len(answered),
        "draws": _DRAWS,
    }
    if decided_by == "first" and not copies:
        gated, made["drift"] = measure.held(contrast.train, gate, answered, stays, silent, draws, wordings)
    else:
        gated = {site: own * (NATURAL / max(gate.gain, 1e-30)) for site, own in gate.effects.items()}
    sites = {}
    for site, means in vectors.sites.items():
        half = [wanted[site][i::2].mean(dim=0) for i in (0, 1)]
        agreement = torch.nn.functional.cosine_similarity(half[0], half[1], dim=0).item()
        attribute = positive[site].mean(dim=0) - negative[site].mean(dim=0)
        sites[site] = replace(
            means, effects=SiteEffects(directions[site], attribute, drift[site], gated[site], agreement)
        )
    if copies:
        made["copies"] = list(copies)
    if prompts:
        fresh = [gain for i, gain in enumerate(told.wanted.tolist()) if i % _stride(len(told.wanted))]
        value, low, high = auroc(fresh, told.silent.tolist())
        counts = {"requests": len(fresh), "silent": len(told.silent)}
        made["gate"] = {"silent_on": str(silent_on), **counts, "auroc": value, "auroc_low": low, "auroc_high": high}
    seen = {*vectors.metadata.get("prompts", ()), *prompt_digests([*(prompt for prompt, _ in answered), *prompts])}
    return replace(vectors, sites=sites, metadata={**vectors.metadata, "prompts": sorted(seen), "effects": made})


def _silent_prompts(silent_on: str | Path | None) -> Sequence[Prompt]:
    if silent_on is None:
        return ()
    if silent_on == BUILT_IN:
        return [*safety_prompts("train", _SILENT)[1], *built_in_requests("borderline", "train")]
    prompts = [example.prompt for example in read_examples(silent_on)]
    if len(prompts) < _FEWEST:
        raise DataError(f"a gate needs at least {_FEWEST} requests to stay silent on, got {len(prompts)}: give more.")
    return prompts


def _paired(train: Contrast, positive: Features, negative: Features) -> Features:
    """Effects on positive less those on negative responses to the same request."""
    first, second = map(list, zip(*train.pairs(), strict=True))
    return {site: positive[site][first] - negative[site][second] for site in positive}


def _stride(count: int) -> int:
    """Directions are taken from every so many of the rows: an even number, so that one half has none of them."""
    return 2 * max(-(-count // (2 * _DIRECTED)), 1)


def _mean(parts: Sequence[Features]) -> Features:
    return {site: torch.stack([part[site] for part in parts]).mean(dim=0) for site in parts[0]}


@dataclass(frozen=True)
class _Measurement:
    """Effects on what decides the behaviour, and on what drifts; gradients of these at sites without a direction."""

    model: LanguageModel
    decided_by: str
    batch_tokens: int
    directions: Mapping[Site, Float[Tensor, " d"] | None]

    def natural_directions(
        self, train: Contrast, answered: Answers, generator: torch.Generator
    ) -> dict[Site, Float[Tensor, " d"]]:
        """u of every site; zero where nothing depends on it. Some of the responses tell as much as all."""
        pairs = train.pairs()
        pairs = pairs[:: _stride(len(pairs))]
        more, less = (
            encode_responses(self.model, [rows[pair[i]] for pair in pairs])
            for i, rows in enumerate((train.positive, train.negative))
        )
        positive = self.decisions(more, "Directions of positive responses")
        negative = self.decisions(less, "Directions of negative responses", positive=False)
        replies = [reply for _, reply in answered][:: _stride(len(answered))]
        draws = self.draws(replies, "Directions of benign replies", generator)
        return {
            site: natural_direction((rows - negative[site]).mean(dim=0), draws[site]) for site, rows in positive.items()
        }

    def all(
        self, train: Contrast, answered: Answers, stays: Answers, generator: torch.Generator
    ) -> tuple[Features, Features, Features, Features]:
        """Effects on positive and on negative responses, on what to stay silent on, and on tokens drawn."""
        positive = self.decisions(encode_responses(self.model, train.positive), "Effects on positive responses")
        negative = self.decisions(
            encode_responses(self.model, train.negative), "Effects on negative responses", positive=False
        )
        draws = self.draws([reply for _, reply in answered], "Effects on benign replies", generator)
        none = {site: rows[:0] for site, rows in draws.items()}
        return positive, negative, self.silent(train, stays) if stays else none, draws

    def held(
        self,
        train: Contrast,
        gate: Gate,
        answered: Answers,
        stays: Answers,
        silent: Features,
        draws: Features,
        wordings: bool,
    ) -> tuple[Rows, float]:
        """ŝ of the row that `closed_loop` makes, and the KL that it spends."""
        directions = {site: u for site, u in self.directions.items() if u is not None}
        objective = make_objective(
            self.model, directions, train.positive, [prompt for prompt, _ in stays],
            [reply for _, reply in answered], wordings,
        )  # fmt: skip
        effects = partial(self._rows, score=first_tokens(WHOLE), doing="Effects with the edit in place")
        return closed_loop(objective, gate, effects, silent, draws, WORDED_STEPS if wordings else STEPS)

    def decisions(self, responses: Sequence[EncodedResponse], doing: str, *, positive: bool = True) -> Features:
        """Effects of every response on its own decision; a negative one that its end decides, in its middle."""
        score = whole_response if self.decided_by == "answer" else first_tokens(DECIDING_TOKENS)
        if self.decided_by == "first":  # later tokens change nothing before them
            responses = [response.first(DECIDING_TOKENS) for response in responses]
        if self.decided_by == "end":
            responses = [ended(r, self._end(), 1.0 if positive else 0.5) for r in responses]
        return self._rows(responses, score, doing)

    def own_replies(self, prompts: Sequence[Prompt], known: Answers) -> Answers:
        """The model's own replies to requests, of which some are known; no longer than what decides."""
        there = {prompt_key(prompt): reply for prompt, reply in known}
        sampling = replace(REPLIES, max_new_tokens=DECIDING_TOKENS) if self.decided_by == "first" else REPLIES
        answered = [(prompt, there[prompt_key(prompt)]) for prompt in prompts if prompt_key(prompt) in there]
        others = [prompt for prompt in prompts if prompt_key(prompt) not in there]
        return answered + own_answers(self.model, others, sampling) if others else answered

    def silent(self, train: Contrast, stays: Answers) -> Features:
        """Effects on positive responses, in turn, to other requests, less those on the model's own replies to them."""
        scripted = [(prompt, train.positive[i % len(train.positive)][1]) for i, (prompt, _) in enumerate(stays)]
        found = self.decisions(encode_responses(self.model, scripted), "Effects on what to stay silent on")
        own = self.decisions([reply for _, reply in stays], "Effects on replies to stay with", positive=False)
        for site, rows in own.items():
            found[site] -= rows
        return found

    def draws(self, answers: Sequence[EncodedResponse], doing: str, generator: torch.Generator) -> Features:
        """Effects on tokens drawn from the model, some draws of every reply."""
        return self._rows(answers, sampled_tokens(generator), doing, _DRAWS)

    def _rows(self, responses: Sequence[EncodedResponse], score: Score, doing: str, times: int = 1) -> Features:
        found: dict[Site, Tensor] = {}
        for batch in response_effects(
            self.model, responses, self.directions, score, times=times, batch_tokens=self.batch_tokens,
            description=doing,
        ):  # fmt: skip
            for site, effects in batch.sites.items():
                rows = found.setdefault(site, torch.zeros(times, len(responses), effects.shape[1]))
                rows[batch.time, batch.rows] = effects
        return {site: rows.flatten(0, 1) for site, rows in found.items()}

    def _end(self) -> int:
        end = turn_end(self.model)
        if end is None:
            raise DataError(
                f"{self.model.name!r} has no token that its chat template ends a turn with, so what ends a reply "
                "cannot be measured. Give a --chat-template that has one, or decide by the first tokens or the whole "
                "answer."
            )
        return end
