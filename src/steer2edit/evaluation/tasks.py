"""Tasks: what is measured under an intervention. Each item gets an outcome; `None` is unscored, never zero."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from steer2edit.core import Intervention
from steer2edit.engines import Engine, Request
from steer2edit.evaluation.statistics import Estimate, mean, rate
from steer2edit.models import EncodedResponse, Prompt, Reply, Sampling, encode_prompts, encode_responses
from steer2edit.steering import RefusalPhrases, refusal_phrases


@dataclass(frozen=True)
class Measurement:
    """What a task found under one intervention.

    Args:
        metrics: estimate by metric name.
        replies: generated text by set name, in the order of the prompts.
        outcomes: what each reply was judged to be (for a refusal task: refused), in the same order.
    """

    metrics: Mapping[str, Estimate]
    replies: Mapping[str, list[str]] = field(default_factory=dict)
    outcomes: Mapping[str, list[bool | None]] = field(default_factory=dict)


@runtime_checkable
class Task(Protocol):
    """Something that can be measured under interventions."""

    def measure(self, engine: Engine, interventions: Sequence[Intervention]) -> list[Measurement]:
        """One measurement per intervention, all on the same items."""


@dataclass(frozen=True)
class RefusalTask:
    """Share of requests that are refused, by phrases.

    Args:
        name: of the set; the metric is `{name}_refused`.
        prompts: the requests.
        sampling: how replies are generated.
        phrases: what counts as a refusal.
    """

    name: str
    prompts: Sequence[Prompt]
    sampling: Sampling = Sampling(max_new_tokens=24)
    phrases: RefusalPhrases = field(default_factory=refusal_phrases)

    def measure(self, engine: Engine, interventions: Sequence[Intervention]) -> list[Measurement]:
        """Metric `{name}_refused`; an empty reply is unscored."""
        measurements = []
        for replies in _replies(engine, self.prompts, interventions, self.sampling):
            outcomes = [self.phrases.is_refusal(reply.text) for reply in replies]
            texts = [reply.text for reply in replies]
            metrics = {f"{self.name}_refused": rate(outcomes)}
            measurements.append(Measurement(metrics, {self.name: texts}, {self.name: outcomes}))
        return measurements


@dataclass(frozen=True)
class LengthTask:
    """Length of replies in tokens, with the share that ended by themselves: a reply that was cut off is not short.

    Args:
        prompts: the requests.
        sampling: how replies are generated.
    """

    prompts: Sequence[Prompt]
    sampling: Sampling = Sampling(max_new_tokens=96)

    def measure(self, engine: Engine, interventions: Sequence[Intervention]) -> list[Measurement]:
        """Metrics `reply_tokens` (a cut-off reply counts with the length it reached) and `finished`."""
        return [
            Measurement(
                {
                    "reply_tokens": mean([float(len(reply.ids)) if reply.ids else None for reply in replies]),
                    "finished": rate([reply.finished for reply in replies]),
                },
                {"requests": [reply.text for reply in replies]},
            )
            for replies in _replies(engine, self.prompts, interventions, self.sampling)
        ]


@dataclass(frozen=True)
class TruthTask:
    """Share of questions whose true answer has a higher length-normalised log-probability than the false one.

    Args:
        questions: (prompt, true answer, false answer).

    Source: the paper's preference metric.
    """

    questions: Sequence[tuple[Prompt, str, str]]

    def measure(self, engine: Engine, interventions: Sequence[Intervention]) -> list[Measurement]:
        """Metrics `truth_preferred` and `truth_margin` (nats per token)."""
        pairs = [(prompt, answer) for prompt, true, false in self.questions for answer in (true, false)]
        measurements = []
        for scores in engine.score(encode_responses(engine.model, pairs), interventions):
            margins = [false.nll - true.nll for true, false in zip(scores[::2], scores[1::2], strict=True)]
            preferred = [margin > 0 if math.isfinite(margin) else None for margin in margins]
            metrics = {"truth_preferred": rate(preferred), "truth_margin": mean(margins)}
            measurements.append(Measurement(metrics))
        return measurements


@dataclass(frozen=True)
class DriftTask:
    """Damage: how far the model has moved on benign requests, judged on the base model's own greedy answers.

    Args:
        prompts: benign requests.
        sampling: how the base model's answers are generated.
    """

    prompts: Sequence[Prompt]
    sampling: Sampling = Sampling(max_new_tokens=24)

    def measure(self, engine: Engine, interventions: Sequence[Intervention]) -> list[Measurement]:
        """Metrics `nll_increase` and `kl`, in nats per token, means over answers; an empty answer is unscored."""
        answers = base_answers(engine, self.prompts, self.sampling)
        unanswered: list[float | None] = [None] * (len(self.prompts) - len(answers))
        base, *changed = engine.score(answers, [None, *interventions])
        measurements = []
        for scores in changed:
            increases = [after.nll - before.nll for after, before in zip(scores, base, strict=True)]
            metrics = {"nll_increase": mean(increases + unanswered), "kl": mean([s.kl for s in scores] + unanswered)}
            measurements.append(Measurement(metrics))
        return measurements


def base_answers(engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> list[EncodedResponse]:
    """The base model's own answers as exact tokens; prompts it answers with nothing are left out."""
    encoded = encode_prompts(engine.model, prompts)
    replies = engine.generate([Request(prompt) for prompt in prompts], sampling)
    return [
        EncodedResponse((*ids, *reply.ids), len(ids)) for ids, reply in zip(encoded, replies, strict=True) if reply.ids
    ]


def _replies(
    engine: Engine, prompts: Sequence[Prompt], interventions: Sequence[Intervention], sampling: Sampling
) -> list[list[Reply]]:
    """Replies by intervention, all generated in shared batches."""
    requests = [Request(prompt, intervention) for intervention in interventions for prompt in prompts]
    replies = engine.generate(requests, sampling)
    return [replies[i * len(prompts) : (i + 1) * len(prompts)] for i in range(len(interventions))]
