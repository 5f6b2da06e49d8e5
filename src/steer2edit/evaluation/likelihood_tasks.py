"""Tasks on the likelihood of given answers: choices, truth, and drift from the base."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np

from steer2edit.core import Intervention
from steer2edit.engines import Engine, Request, ResponseScore
from steer2edit.estimates import Value
from steer2edit.evaluation.formats import LETTERS, ChoiceQuestion, TruthQuestion
from steer2edit.evaluation.task import Measurement, Task
from steer2edit.models import EncodedResponse, LanguageModel, Prompt, Sampling, encode_prompts, encode_responses

_LETTER_INSTRUCTION = "Answer with the letter of the right choice and nothing else."


class _LikelihoodTask(Task):
    """A task whose values follow from the likelihood of several answers to each item."""

    @abstractmethod
    def answers(self, item: Any) -> list[tuple[Prompt, str]]:
        """What is scored of an item: (prompt, answer)."""

    @abstractmethod
    def _judged(self, item: Any, scores: Sequence[ResponseScore]) -> tuple[Value, ...]:
        """The values of an item, in the order of `kinds`."""

    def require_fit(self, model: LanguageModel) -> None:
        """Refuse, with a DataError, an item that does not fit into the context with one of its answers."""
        encode_responses(model, [pair for item in self.items for pair in self.answers(item)])

    def measure(self, engine: Engine, interventions: Sequence[Intervention]) -> list[Measurement]:
        """All metrics; an item with a likelihood that is not finite is unscored."""
        answers = [self.answers(item) for item in self.items]
        encoded = encode_responses(engine.model, [pair for own in answers for pair in own])
        measurements = []
        for scores in map(iter, engine.score(encoded, interventions, kl=False)):
            rows = []
            for item, own in zip(self.items, answers, strict=True):
                found = list(islice(scores, len(own)))
                finite = all(math.isfinite(score.log_probability) for score in found)
                rows.append(self._judged(item, found) if finite else (None,) * len(self.kinds))
            measurements.append(Measurement(self.by_metric(rows)))
        return measurements


@dataclass(frozen=True)
class ChoiceTask(_LikelihoodTask):
    """Share of questions whose right answer is likelier than every other choice, per token and by its sum.

    With `style="text"` each choice's text is scored as the reply; with `style="letter"` the choices are listed below
    the question, and each letter is scored. A tie is no right answer.

    Source: Brown et al., arXiv 2005.14165, §2.4 (per token and in total); Hendrycks et al., arXiv 2009.03300 (letters).
    """

    style: Literal["text", "letter"] = "text"
    kinds = ("accuracy", "accuracy_sum")

    def answers(self, item: ChoiceQuestion) -> list[tuple[Prompt, str]]:
        """Every choice, or its letter."""
        if self.style == "text":
            return [(item.question, choice) for choice in item.choices]
        prompt = _with_choices(item.question, item.choices)
        return [(prompt, letter) for letter in LETTERS[: len(item.choices)]]

    def _judged(self, item: ChoiceQuestion, scores: Sequence[ResponseScore]) -> tuple[Value, ...]:
        right = scores[item.answer]
        # published sets have a few questions with the same choice twice: as a text it cannot beat itself
        same = item.choices[item.answer] if self.style == "text" else None
        others = [one for i, one in enumerate(scores) if i != item.answer and item.choices[i] != same]
        total = all(right.log_probability > one.log_probability for one in others)
        return all(right.nll < one.nll for one in others), total


@dataclass(frozen=True)
class PreferenceTask(_LikelihoodTask):
    """Share of items (prompt, positive answer, negative answer) whose positive answer is preferred: the paper's metric.

    With `style="text"` both answers are scored as replies, by log-probability per token. With `style="letter"` they are
    listed below the prompt as A and B, once in each order, and the letters are scored: the margin is the mean over the
    orders, so that liking a letter is no preference.
    """

    style: Literal["text", "letter"] = "text"
    asked_as: str = ""  # what the prompts are called, by default `{name}_questions`
    kinds = ("preferred", "margin")

    @property
    def set_name(self) -> str:
        """What its prompts are kept under."""
        return self.asked_as or f"{self.name}_questions"

    def request(self, item: tuple[Prompt, str, str]) -> Prompt:
        """The prompt."""
        return item[0]

    def answers(self, item: tuple[Prompt, str, str]) -> list[tuple[Prompt, str]]:
        """The positive and the negative one; as letters, in both orders."""
        prompt, positive, negative = item
        if self.style == "text":
            return [(prompt, positive), (prompt, negative)]
        first, second = (_with_choices(prompt, order) for order in ((positive, negative), (negative, positive)))
        return [(first, "A"), (first, "B"), (second, "B"), (second, "A")]

    def _judged(self, item: tuple[Prompt, str, str], scores: Sequence[ResponseScore]) -> tuple[Value, ...]:
        margins = [b.nll - a.nll for a, b in zip(scores[::2], scores[1::2], strict=True)]
        margin = sum(margins) / len(margins)
        return margin > 0, margin


def _with_choices(prompt: Prompt, choices: Sequence[str]) -> Prompt:
    """The prompt with lettered choices below its last message."""
    if not isinstance(prompt, str):
        return [*prompt[:-1], {**prompt[-1], "content": str(_with_choices(prompt[-1]["content"], choices))}]
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False))
    return f"{prompt}\n\n{listed}\n\n{_LETTER_INSTRUCTION}"


class TruthChoiceTask(_LikelihoodTask):
    """MC1 and MC2 of TruthfulQA, by the answers' total log-probability log p(a).

    MC1: whether log p(best) > log p(f) for every false answer f; MC2: Σ p(true) / (Σ p(true) + Σ p(false)).

    Source: Lin et al., "TruthfulQA", arXiv 2109.07958, and its code. There the question stands below six example
    questions as plain text; here it is the user's message, so figures are comparable between models, not with those.
    """

    kinds = ("mc1", "mc2")
    suffix = "choices"

    def answers(self, item: TruthQuestion) -> list[tuple[Prompt, str]]:
        """Every answer once."""
        every = dict.fromkeys((item.best, *item.false_to_best, *item.true, *item.false))
        return [(item.question, answer) for answer in every]

    def _judged(self, item: TruthQuestion, scores: Sequence[ResponseScore]) -> tuple[Value, ...]:
        found = {answer: score.log_probability for (_, answer), score in zip(self.answers(item), scores, strict=True)}
        mc1 = all(found[item.best] > found[answer] for answer in item.false_to_best)
        # sums in log space: none underflows
        true, false = (np.logaddexp.reduce([found[answer] for answer in own]) for own in (item.true, item.false))
        return mc1, float(np.exp(true - np.logaddexp(true, false)))


@dataclass(frozen=True)
class DriftTask(Task):
    """Damage: how far the model has moved on benign requests, judged on the base model's own greedy answers."""

    sampling: Sampling = Sampling(max_new_tokens=24)
    kinds = ("nll_increase", "kl")
    suffix = "drift"

    def require_fit(self, model: LanguageModel) -> None:
        """Refuse, with a DataError, a prompt that does not fit into the context with the longest answer."""
        encode_prompts(model, self.items, room=self.sampling.max_new_tokens)

    def measure(self, engine: Engine, interventions: Sequence[Intervention]) -> list[Measurement]:
        """Metrics `nll_increase` and `kl`, in nats per token, by answer; an empty answer is unscored."""
        answers = base_answers(engine, self.items, self.sampling)
        answered = [answer for answer in answers if answer is not None]
        base, *changed = engine.score(answered, [None, *interventions])
        measurements = []
        for scores in changed:
            found = iter([(after.nll - before.nll, after.kl) for after, before in zip(scores, base, strict=True)])
            rows = [(None, None) if answer is None else next(found) for answer in answers]
            measurements.append(Measurement(self.by_metric(rows)))
        return measurements


def base_answers(engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> list[EncodedResponse | None]:
    """The base model's own answers as exact tokens; `None` for a prompt that it answers with nothing."""
    replies = engine.generate([Request(prompt) for prompt in prompts], sampling)
    pairs = zip(encode_prompts(engine.model, prompts), replies, strict=True)
    return [EncodedResponse((*ids, *reply.ids), len(ids)) if reply.ids else None for ids, reply in pairs]
