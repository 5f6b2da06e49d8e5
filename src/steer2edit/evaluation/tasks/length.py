"""Length of replies."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from steer2edit.core import Intervention
from steer2edit.engines import Engine
from steer2edit.evaluation.tasks.task import Measurement, prefixed, replies_to
from steer2edit.models import Prompt, Sampling


@dataclass(frozen=True)
class LengthTask:
    """Length of replies in tokens, with the share that ended by themselves: a reply that was cut off is not short.

    The thought of a reasoning model counts: it is what such a reply costs.

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
        return prefixed(self.name, "reply_tokens", "finished")

    @property
    def asked(self) -> dict[str, list[Prompt]]:
        """What is asked by set name, in the order of replies and values."""
        return {self._replies: list(self.prompts)}

    @property
    def _replies(self) -> str:
        return f"{self.name}_requests" if self.name else "requests"

    def part(self, items: slice) -> "LengthTask":
        """The task on some of its requests."""
        return replace(self, prompts=self.prompts[items])

    def measure(self, engine: Engine, interventions: Sequence[Intervention]) -> list[Measurement]:
        """Metrics `reply_tokens` (a cut-off reply counts with the length it reached) and `finished`."""
        tokens, finished = self.metric_names
        return [
            Measurement(
                {
                    tokens: [float(len(reply.ids)) if reply.ids else None for reply in replies],
                    finished: [reply.finished for reply in replies],
                },
                {self._replies: [reply.shown for reply in replies]},
            )
            for replies in replies_to(engine, self.prompts, interventions, self.sampling)
        ]
