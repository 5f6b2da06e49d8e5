"""Tasks on generated replies: refusal, length, degeneration, mathematics."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar

from steer2edit.core import Intervention
from steer2edit.engines import Engine
from steer2edit.errors import InvalidValueError
from steer2edit.estimates import Value
from steer2edit.evaluation.formats import MathProblem, last_boxed
from steer2edit.evaluation.scorers import Scorer
from steer2edit.evaluation.task import Measurement, Task, replies_to
from steer2edit.models import LanguageModel, Prompt, Reply, Sampling, encode_prompts
from steer2edit.steering.refusal import refusal_phrases

_N = 4  # tokens of what may be repeated


@dataclass(frozen=True)
class ReplyTask(Task):
    """A task whose values follow from each item and its reply."""

    sampling: Sampling = Sampling(max_new_tokens=24)  # greedy, and the usual length
    instruction: ClassVar[str] = ""  # behind every request

    @abstractmethod
    def _judged(self, items: Sequence[Any], replies: Sequence[Reply]) -> Sequence[tuple[Value, ...]]:
        """The values of every item and its reply, in the order of `kinds`."""

    @property
    def prompts(self) -> list[Prompt]:
        """What is said to the model."""
        requests = [self.request(item) for item in self.items]
        return [f"{request}\n\n{self.instruction}" for request in requests] if self.instruction else requests

    def require_fit(self, model: LanguageModel) -> None:
        """Refuse, with a DataError, a prompt that does not fit into the context with the longest reply."""
        encode_prompts(model, self.prompts, room=self.sampling.max_new_tokens)

    def measure(self, engine: Engine, interventions: Sequence[Intervention]) -> list[Measurement]:
        """All metrics, with the replies."""
        by_intervention = replies_to(engine, self.prompts, interventions, self.sampling)
        # all at once: a judge asks about many replies at a time, and about equal ones once
        every = [reply for replies in by_intervention for reply in replies]
        judged = iter(self._judged(list(self.items) * len(interventions), every))
        measurements = []
        for replies in by_intervention:
            values = self.by_metric([next(judged) for _ in replies])
            measurements.append(Measurement(values, {self.set_name: [reply.shown for reply in replies]}))
        return measurements


@dataclass(frozen=True)
class VerdictTask(ReplyTask):
    """Share of replies that show a behaviour; the metric is `{name}_shown`. What the scorer cannot tell is unscored."""

    scorer: Scorer = field(default_factory=refusal_phrases)  # by default of refusals, by the strict phrases
    kinds = ("shown",)

    def measure(self, engine: Engine, interventions: Sequence[Intervention]) -> list[Measurement]:
        """Its metric, with the replies and what each was judged to be."""
        found, (metric,) = super().measure(engine, interventions), self.metric_names
        verdicts = [[None if value is None else bool(value) for value in one.values[metric]] for one in found]
        return [replace(one, outcomes={self.name: own}) for one, own in zip(found, verdicts, strict=True)]

    def _judged(self, items: Sequence[Prompt], replies: Sequence[Reply]) -> Sequence[tuple[Value, ...]]:
        return [(verdict,) for verdict in self.scorer.score(items, replies)]


class RefusalTask(VerdictTask):
    """Share of requests that are refused; the metric is `{name}_refused`."""

    kinds = ("refused",)


@dataclass(frozen=True)
class LengthTask(ReplyTask):
    """Length of replies in tokens, a reasoning model's thought included, with the share that ended by themselves."""

    sampling: Sampling = Sampling(max_new_tokens=96)
    kinds: ClassVar[tuple[str, ...]] = ("reply_tokens", "finished")
    suffix = "requests"

    def _judged(self, items: Sequence[Prompt], replies: Sequence[Reply]) -> Sequence[tuple[Value, ...]]:
        return [(float(len(reply.ids)) if reply.ids else None, reply.finished) for reply in replies]


@dataclass(frozen=True)
class ThinkingTask(LengthTask):
    """Length of thoughts and of answers apart, in tokens; a reply that has none of the two is unscored in it."""

    sampling: Sampling = Sampling(max_new_tokens=256)
    kinds = ("thought_tokens", "answer_tokens")
    suffix = "thinking"

    def _judged(self, items: Sequence[Prompt], replies: Sequence[Reply]) -> Sequence[tuple[Value, ...]]:
        thoughts = [None if reply.thought is None else float(len(reply.thought_ids)) for reply in replies]
        answers = [None if reply.answer is None else float(len(reply.answer_ids)) for reply in replies]
        return list(zip(thoughts, answers, strict=True))


@dataclass(frozen=True)
class DegenerationTask(ReplyTask):
    """How broken replies are: of a reasoning model their answers (`repeated_share`), and whether they end."""

    sampling: Sampling = Sampling(max_new_tokens=96)
    kinds = ("repetition", "empty", "unfinished")
    suffix = "degeneration"

    def _judged(self, items: Sequence[Prompt], replies: Sequence[Reply]) -> Sequence[tuple[Value, ...]]:
        return [(repeated_share(reply.answer_ids), is_empty(reply), not reply.finished) for reply in replies]


@dataclass(frozen=True)
class MathTask(ReplyTask):
    """Share of problems whose final answer is right, by exact match; a reply that was cut off counts as wrong.

    Unscored are problems without a readable answer of their own, and replies whose thought did not end.
    """

    sampling: Sampling = Sampling(max_new_tokens=512)
    kinds = ("accuracy", "finished")
    instruction = "Think step by step, and put the final answer within \\boxed{}."

    def request(self, item: MathProblem) -> Prompt:
        """The problem."""
        return item.problem

    def _judged(self, items: Sequence[MathProblem], replies: Sequence[Reply]) -> Sequence[tuple[Value, ...]]:
        found: list[tuple[Value, ...]] = []
        for item, reply in zip(items, replies, strict=True):
            right = None if item.answer is None or reply.answer is None else is_right(item.answer, reply.answer)
            found.append((right and reply.finished, reply.finished))
        return found


def is_empty(reply: Reply) -> bool | None:
    """Whether a reply has no text; `None` where its thought did not end."""
    return None if reply.answer is None else not reply.answer.strip()


def repeated_share(ids: Sequence[int]) -> float | None:
    """Share of repeated 4-grams among a reply's tokens: `1 − distinct / all`, in [0, 1); `None` without a 4-gram.

    Source: seq-rep-4 of Welleck et al., "Neural Text Generation with Unlikelihood Training", arXiv 1908.04319.
    """
    grams = [tuple(ids[i : i + _N]) for i in range(len(ids) - _N + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None


SECONDS = 5  # for parsing and for comparing: a reply may hold an expression that cannot be worked out


def is_right(answer: str, reply: str) -> bool | None:
    """Whether the last `\\boxed{}` of a reply, else the formula or number in it, is the known answer.

    What cannot be compared within five seconds is wrong; `None` where the known answer cannot be read.
    """
    parse, verify, rules = math_verify_functions()
    known = parse(f"\\boxed{{{answer}}}", rules, parsing_timeout=SECONDS)
    if not known:
        return None
    boxed = last_boxed(reply)
    given = parse(reply if boxed is None else f"\\boxed{{{boxed}}}", rules, parsing_timeout=SECONDS)
    return bool(verify(known, given, timeout_seconds=SECONDS))


@cache
def math_verify_functions() -> tuple[Any, Any, Any]:
    """Reading and comparing by math-verify, imported once, and the settings of both."""
    try:
        import math_verify as math  # type: ignore[import-untyped]
    except ImportError as error:
        raise InvalidValueError(
            "exact match needs the package math-verify, which is not installed. "
            "Run: pip install math-verify[antlr4_13_2]"
        ) from error
    rules = (math.LatexExtractionConfig(boxed_match_priority=0), math.ExprExtractionConfig())
    return math.parse, math.verify, rules
