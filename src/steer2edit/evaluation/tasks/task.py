"""What a task is, and what it finds: a value for every item; `None` is unscored, never zero."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from steer2edit.core import Intervention
from steer2edit.engines import Engine, Request
from steer2edit.estimates import Estimate, Value
from steer2edit.evaluation.statistics import estimate
from steer2edit.models import Prompt, Reply, Sampling


@dataclass(frozen=True)
class Measurement:
    """What was found under one intervention, item by item, so that interventions can be compared in pairs.

    Args:
        values: by metric name, the value of every item in order: a bool (the metric is a rate), a number (a mean),
            or `None` where the item could not be scored.
        replies: generated text by set name, in the order of the prompts.
        outcomes: by set name, what each reply was judged to be (for a refusal task: refused).
    """

    values: Mapping[str, Sequence[Value]]
    replies: Mapping[str, list[str]] = field(default_factory=dict)
    outcomes: Mapping[str, list[bool | None]] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, Estimate]:
        """Estimate with its 95 % interval by metric name."""
        return {name: estimate(values) for name, values in self.values.items()}


def merged_measurements(measurements: Sequence[Measurement]) -> Measurement:
    """One measurement of several tasks, or of several parts of one task: items of the same name are appended."""
    merged: dict[str, dict[str, list[Any]]] = {"values": {}, "replies": {}, "outcomes": {}}
    for one in measurements:
        for kind, lists in merged.items():
            for name, items in getattr(one, kind).items():
                lists.setdefault(name, []).extend(items)
    return Measurement(**merged)


class Task(ABC):
    """Something that can be measured under interventions, whole or in parts; a subclass adds its items and settings.

    Attributes:
        items: what is asked, one entry per value.
        name: of the set; empty for a set whose metrics go without it.
        kinds: of metrics; a metric is called `{name}_{kind}`.
        suffix: of the set of prompts and replies, if it is not called by the name alone.
    """

    items: Sequence[Any]
    name: str
    kinds: ClassVar[tuple[str, ...]]
    suffix: ClassVar[str] = ""

    def __len__(self) -> int:
        return len(self.items)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Its metrics."""
        return tuple(_joined(self.name, kind) for kind in self.kinds)

    @property
    def set_name(self) -> str:
        """What its prompts and replies are kept under."""
        return _joined(self.name, self.suffix)

    @property
    def asked(self) -> dict[str, list[Prompt]]:
        """What is asked by set name, in the order of replies and values."""
        return {self.set_name: [self.request(item) for item in self.items]}

    def request(self, item: Any) -> Prompt:
        """The question of an item."""
        request: Prompt = getattr(item, "question", item)
        return request

    def part(self, items: slice) -> Self:
        """The same task on some of its items: measuring all parts and merging them is measuring the whole."""
        return replace(self, items=self.items[items])  # type: ignore[type-var]

    @abstractmethod
    def measure(self, engine: Engine, interventions: Sequence[Intervention]) -> list[Measurement]:
        """One measurement per intervention, all on the same items."""

    def by_metric(self, rows: Sequence[Sequence[Value]]) -> dict[str, list[Value]]:
        """Values by metric from those of every item, in the order of `kinds`."""
        return {name: [row[place] for row in rows] for place, name in enumerate(self.metric_names)}


def replies_to(
    engine: Engine, prompts: Sequence[Prompt], interventions: Sequence[Intervention], sampling: Sampling
) -> list[list[Reply]]:
    """Replies by intervention, all generated in shared batches."""
    requests = [Request(prompt, intervention) for intervention in interventions for prompt in prompts]
    replies = engine.generate(requests, sampling)
    return [replies[i * len(prompts) : (i + 1) * len(prompts)] for i in range(len(interventions))]


def _joined(name: str, kind: str) -> str:
    return "_".join(filter(None, (name, kind)))
