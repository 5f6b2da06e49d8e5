"""What a task is, and what it finds: a value for every item under each intervention; `None` is unscored, never zero."""

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self, TypeVar

from steer2edit.core import Editing, Intervention, Steering, SteeringVectors, WeightEdit
from steer2edit.engines import Engine, Request
from steer2edit.errors import InvalidValueError
from steer2edit.estimates import Condition, ConditionKind, Estimate, Value
from steer2edit.evaluation.scorers import Scorer
from steer2edit.evaluation.statistics import estimate
from steer2edit.models import LanguageModel, Prompt, Reply, Sampling
from steer2edit.progress import step
from steer2edit.steering.refusal import refusal_phrases
from steer2edit.steering.rows import Split

_T = TypeVar("_T")


@dataclass(frozen=True)
class Measurement:
    """What was found under one intervention, item by item: bools of a rate, or numbers of a mean."""

    values: Mapping[str, Sequence[Value]]  # of every item in order, by metric name
    replies: Mapping[str, list[str]] = field(default_factory=dict)  # generated text by set name
    outcomes: Mapping[str, list[bool | None]] = field(default_factory=dict)  # by set, what each was judged to be

    @property
    def metrics(self) -> dict[str, Estimate]:
        """Estimate with its 95 % interval by metric name."""
        return {name: estimate(values) for name, values in self.values.items()}


def merged_measurements(measurements: Sequence[Any]) -> Measurement:
    """One measurement of several (whatever has values, replies and outcomes): items of the same name are appended."""
    merged: dict[str, dict[str, list[Any]]] = {"values": {}, "replies": {}, "outcomes": {}}
    for one in measurements:
        for kind, lists in merged.items():
            for name, items in getattr(one, kind).items():
                lists.setdefault(name, []).extend(items)
    return Measurement(**merged)


@dataclass(frozen=True)
class Task(ABC):
    """Something that can be measured under interventions, whole or in parts."""

    name: str  # of the set; empty for a set whose metrics go without it
    items: Sequence[Any]  # what is asked, one entry per value
    kinds: ClassVar[tuple[str, ...]]  # of metrics; a metric is called `{name}_{kind}`
    suffix: ClassVar[str] = ""  # of the set of prompts and replies, if it is not called by the name alone

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
        return replace(self, items=self.items[items])

    @abstractmethod
    def require_fit(self, model: LanguageModel) -> None:
        """Refuse, with a DataError, an item that does not fit into the model's context: before anything is run."""

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


@dataclass(frozen=True)
class Arm:
    """An intervention with the name it is reported under."""

    kind: ConditionKind
    label: str  # shown to people
    intervention: Intervention = field(default=None, repr=False)
    parameters: Mapping[str, Any] = field(default_factory=dict)  # JSON-able settings of the intervention


BASE_ARM = Arm("base", "base")


def steering_arm(vectors: SteeringVectors, strength: float) -> Arm:
    """Activation steering at one strength."""
    return Arm("steering", f"steering {strength:g}", Steering(vectors, strength), {"strength": strength})


def edit_arm(edit: WeightEdit, label: str, strength: float = 1.0) -> Arm:
    """A weight edit; its hyper-parameters become the parameters."""
    parameters = {**edit.metadata.get("hyperparameters", {}), "strength": strength}
    return Arm("edit", label, Editing(edit, strength), parameters)


def evaluate(engine: Engine, tasks: Sequence[Task], arms: Sequence[Arm]) -> list[Condition]:
    """Every task under every arm, one condition per arm."""
    for task in tasks:
        task.require_fit(engine.model)
    interventions = [arm.intervention for arm in arms]
    by_task = []
    with step("Tasks", len(tasks)) as advance:
        for task in tasks:
            by_task.append(task.measure(engine, interventions))
            advance(1)
    merged = [merged_measurements([measurements[index] for measurements in by_task]) for index in range(len(arms))]
    return [
        Condition(arm.label, one.metrics, arm.kind, arm.parameters, one.replies, one.outcomes, one.values)
        for arm, one in zip(arms, merged, strict=True)
    ]


@dataclass(frozen=True)
class TaskSettings:
    """What all tasks of an evaluation share."""

    split: Split = "validation"  # validation for choosing, held_out for final figures
    limit: int | None = None  # use at most this many items of every set
    max_new_tokens: int | None = None  # longest reply; each task has a default of its own
    scorer: Scorer = field(default_factory=refusal_phrases)  # tells refusals
    shuffle: int | None = None  # seed of a random order of the items; `None` keeps that of the data
    # seed by which data without a column `split` is divided into validation and held-out parts; `None` uses it whole
    divide: int | None = None
    data: Mapping[str, str] = field(default_factory=dict)  # the user's own data by set of a behaviour

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InvalidValueError(f"limit must be >= 1, got {self.limit}.")

    def chosen(self, items: Sequence[_T]) -> list[_T]:
        """The items to use."""
        found = list(items)
        if self.shuffle is not None:
            random.Random(self.shuffle).shuffle(found)
        return found[: self.limit]

    def make(self, kind: Any, name: str, items: Sequence[Any], **own: Any) -> Task:
        """A task with these settings' length of replies and scorer, where a task of its kind has any."""
        known = {field.name for field in fields(kind)}
        if "sampling" in known:
            own["sampling"] = Sampling(max_new_tokens=self.max_new_tokens or kind.sampling.max_new_tokens)
        if "scorer" in known:
            own.setdefault("scorer", self.scorer)
        made: Task = kind(name, items, **own)
        return made
