"""Mathematics by exact match of the final answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from steer2edit.core import Intervention
from steer2edit.engines import Engine
from steer2edit.evaluation.answers import is_right
from steer2edit.evaluation.questions import MathProblem
from steer2edit.evaluation.tasks.task import Measurement, prefixed, replies_to
from steer2edit.models import Prompt, Reply, Sampling

_INSTRUCTION = "Think step by step, and put the final answer within \\boxed{}."


@dataclass(frozen=True)
class MathTask:
    """Share of problems whose final answer is right.

    A reply that was cut off counts as wrong, whatever it says so far; `{name}_finished` says how many were not.

    Args:
        name: of the set; the metrics are `{name}_accuracy` and `{name}_finished`.
        problems: what is asked.
        sampling: how replies are generated.
    """

    name: str
    problems: Sequence[MathProblem]
    sampling: Sampling = Sampling(max_new_tokens=512)

    def __len__(self) -> int:
        return len(self.problems)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Its metrics."""
        return prefixed(self.name, "accuracy", "finished")

    @property
    def asked(self) -> dict[str, list[Prompt]]:
        """What is asked by set name, in the order of replies and values."""
        return {self.name: [problem.problem for problem in self.problems]}

    def part(self, items: slice) -> "MathTask":
        """The task on some of its problems."""
        return replace(self, problems=self.problems[items])

    def measure(self, engine: Engine, interventions: Sequence[Intervention]) -> list[Measurement]:
        """Metrics `{name}_accuracy` and `{name}_finished`.

        Unscored are problems without a readable answer of their own, and replies whose thought did not end.

        Raises:
            InvalidValueError: `math-verify` is not installed.
        """
        prompts = [f"{problem.problem}\n\n{_INSTRUCTION}" for problem in self.problems]
        accuracy, finished = self.metric_names
        measurements = []
        for replies in replies_to(engine, prompts, interventions, self.sampling):
            right = [_right(problem, reply) for problem, reply in zip(self.problems, replies, strict=True)]
            ended = [reply.finished for reply in replies]
            texts = [reply.shown for reply in replies]
            measurements.append(Measurement({accuracy: right, finished: ended}, {self.name: texts}))
        return measurements


def _right(problem: MathProblem, reply: Reply) -> bool | None:
    if problem.answer is None or reply.answer is None:
        return None
    verdict = is_right(problem.answer, reply.answer)
    return verdict if verdict is None else verdict and reply.finished
