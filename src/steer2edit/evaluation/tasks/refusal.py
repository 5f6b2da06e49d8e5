"""Refusal and over-refusal."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from steer2edit.core import Intervention
from steer2edit.engines import Engine
from steer2edit.evaluation.scorers import PhraseScorer, Scorer
from steer2edit.evaluation.tasks.task import Measurement, replies_to
from steer2edit.models import Prompt, Sampling


@dataclass(frozen=True)
class RefusalTask:
    """Share of requests that are refused.

    Args:
        name: of the set; the metric is `{name}_refused`.
        prompts: the requests.
        sampling: how replies are generated.
        scorer: tells a refusal; by default the strict phrases.
    """

    name: str
    prompts: Sequence[Prompt]
    sampling: Sampling = Sampling(max_new_tokens=24)
    scorer: Scorer = field(default_factory=PhraseScorer)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Its metrics."""
        return (f"{self.name}_refused",)

    @property
    def asked(self) -> dict[str, list[Prompt]]:
        """What is asked by set name, in the order of replies and values."""
        return {self.name: list(self.prompts)}

    def part(self, items: slice) -> "RefusalTask":
        """The task on some of its requests."""
        return replace(self, prompts=self.prompts[items])

    def measure(self, engine: Engine, interventions: Sequence[Intervention]) -> list[Measurement]:
        """Metric `{name}_refused`; a reply that the scorer cannot tell, an empty one for example, is unscored."""
        by_intervention = replies_to(engine, self.prompts, interventions, self.sampling)
        # all at once: a judge asks about many replies at a time, and about equal ones once
        every = [reply for replies in by_intervention for reply in replies]
        verdicts = iter(self.scorer.score(list(self.prompts) * len(interventions), every))
        measurements = []
        for replies in by_intervention:
            refused = [next(verdicts) for _ in replies]
            texts = [reply.shown for reply in replies]
            measurements.append(
                Measurement({f"{self.name}_refused": refused}, {self.name: texts}, {self.name: refused})
            )
        return measurements
