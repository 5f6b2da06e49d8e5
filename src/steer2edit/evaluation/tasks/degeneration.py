"""Degeneration: replies that repeat themselves, are empty, or do not end."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from steer2edit.core import Intervention
from steer2edit.engines import Engine
from steer2edit.evaluation.tasks.task import Measurement, prefixed, replies_to
from steer2edit.models import Prompt, Reply, Sampling

_N = 4


@dataclass(frozen=True)
class DegenerationTask:
    """How broken replies are: of a reasoning model their answers, and whether they end.

    Args:
        prompts: the requests.
        sampling: how replies are generated.
        name: of the set, in front of the metrics' names; none by default.
    """

    prompts: Sequence[Prompt]
    sampling: Sampling = Sampling(max_new_tokens=96)
    name: str = ""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Its metrics."""
        return prefixed(self.name, "repetition", "empty", "unfinished")

    @property
    def asked(self) -> dict[str, list[Prompt]]:
        """What is asked by set name, in the order of replies and values."""
        return {self._replies: list(self.prompts)}

    @property
    def _replies(self) -> str:
        return f"{self.name}_degeneration" if self.name else "degeneration"

    def part(self, items: slice) -> "DegenerationTask":
        """The task on some of its requests."""
        return replace(self, prompts=self.prompts[items])

    def measure(self, engine: Engine, interventions: Sequence[Intervention]) -> list[Measurement]:
        """Metrics `repetition` (mean `repeated_share`), `empty` and `unfinished` (rates)."""
        repetition, empty, unfinished = self.metric_names
        return [
            Measurement(
                {
                    repetition: [repeated_share(reply.answer_ids) for reply in replies],
                    empty: [is_empty(reply) for reply in replies],
                    unfinished: [not reply.finished for reply in replies],
                },
                {self._replies: [reply.shown for reply in replies]},
            )
            for replies in replies_to(engine, self.prompts, interventions, self.sampling)
        ]


def is_empty(reply: Reply) -> bool | None:
    """Whether a reply has no text; `None` where its thought did not end."""
    return None if reply.answer is None else not reply.answer.strip()


def repeated_share(ids: Sequence[int]) -> float | None:
    """Share of repeated 4-grams among a reply's tokens: `1 − distinct 4-grams / 4-grams`.

    Returns:
        In [0, 1); `None` for fewer than four tokens, which have no 4-gram.

    Source: seq-rep-4 of Welleck et al., "Neural Text Generation with Unlikelihood Training", arXiv 1908.04319.
    """
    grams = [tuple(ids[i : i + _N]) for i in range(len(ids) - _N + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None
