"""The JSON of a run, checked once and read into typed fields."""

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from steer2edit.artifacts.facts import Record
from steer2edit.errors import DataError
from steer2edit.estimates import SCHEMA_VERSION, Condition, ConditionKind
from steer2edit.evaluation import COST, attribute_of
from steer2edit.evaluation.judge import prompt_text
from steer2edit.report.html import visible_json
from steer2edit.search.curves import Figure, Plan, TradeoffComparison
from steer2edit.search.goal import Budget
from steer2edit.steering.diagnosis import Diagnosis


def _prompt_text(prompt: Any) -> Any:
    """A prompt as text; chat messages become `role: content` paragraphs."""
    try:
        return prompt_text(prompt)
    except (KeyError, TypeError) as error:
        raise ValueError("a chat prompt is a list of messages, each with role and content") from error


Prompt = Annotated[str, BeforeValidator(_prompt_text)]


class ModelFacts(Record):
    """Which model the run was made on."""

    name: str
    revision: str | None = None
    model_type: str | None = None
    fingerprint: str | None = None


class Conditions(Record):
    """The conditions of one part (validation or held-out)."""

    conditions: tuple[Condition, ...] = ()

    def of(self, kind: ConditionKind) -> list[Condition]:
        """The conditions of one kind, in order."""
        return [condition for condition in self.conditions if condition.kind == kind]


class Chosen(Record):
    """What was chosen on validation prompts; without limits nothing is called within or beyond one."""

    hyperparameters: dict[str, float | None] = Field(default_factory=dict)
    steering_strength: float | None = None
    rule: str = ""
    limits: dict[str, float] = Field(default_factory=dict)
    floors: dict[str, float] = Field(default_factory=dict)

    def is_choice(self, condition: Condition) -> bool:
        """Whether a condition is the chosen edit or the chosen steering strength."""
        given = condition.parameters
        if condition.kind == "steering":
            return "strength" in given and given["strength"] == self.steering_strength
        if condition.kind == "base" or not self.hyperparameters:
            return False
        # the same hyper-parameters at another strength are another edit
        wanted = {"strength": 1.0, **self.hyperparameters}
        given = {"strength": 1.0, **given}
        return all(key in given and given[key] == value for key, value in wanted.items())

    def within_limits(self, condition: Condition) -> bool | None:
        """Whether every limit is respected; `None` where that cannot be told."""
        excess = Budget(self.limits, self.floors).excess(condition.metrics).values()
        if any(0 < beyond < math.inf for beyond in excess):
            return False
        return True if excess and math.inf not in excess else None


class Verified(Record):
    """In how many of n replies a reloaded artifact agreed with the run-time edit."""

    identical: int
    n: int


class _Run(Record):
    """What every run says of itself."""

    schema_version: int
    title: str
    behaviour: str
    attribute: str
    direction: int
    costs: dict[str, Literal["rise", "fall"]] = Field(default_factory=dict)
    model: ModelFacts
    created: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    command: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)

    def wanted(self, name: str) -> int:
        """+1 where more of a metric is wanted, −1 where less; of what is neither attribute nor cost the opposite of the
        attribute's: requests beside those of the behaviour are to be met as before.
        """
        if name == self.attribute:
            return self.direction
        return {"rise": -1, "fall": 1}.get(self.costs.get(name, ""), -self.direction)


class RunResults(_Run):
    """The JSON of a run. Parts that a run did not make stay empty, and the report says so.

    Only a search has `trials` (how many were tried, and how many ended in which way), `front` (the keys of its trials,
    by growing cost), and `comparison`; only a recipe has `data_sets`.
    """

    diagnosis: Diagnosis = Diagnosis()
    validation: Conditions = Conditions()
    held_out: Conditions = Conditions()
    prompts: dict[str, list[Prompt]] = Field(default_factory=dict)
    chosen: Chosen = Chosen()
    verification: dict[str, Verified] = Field(default_factory=dict)
    trials: dict[str, int] = Field(default_factory=dict)
    front: tuple[str, ...] = ()
    comparison: TradeoffComparison | None = None
    data_sets: Conditions = Conditions()
    beyond_budget: str = ""  # which limits the chosen edit breaks on held-out items

    @property
    def is_search(self) -> bool:
        """Whether the run is a search, with trials and a front."""
        return bool(self.trials)

    @property
    def front_trials(self) -> list[Condition]:
        """The trials on the front as validation measured them, in the front's order."""
        by_key = {condition.parameters.get("trial"): condition for condition in self.validation.of("edit")}
        return [by_key[key] for key in self.front if key in by_key]

    @property
    def base(self) -> Condition | None:
        """The base model on held-out prompts."""
        return next(iter(self.held_out.of("base")), None)

    @property
    def edited(self) -> Condition | None:
        """The chosen edit on held-out prompts; the first edit there if none is marked as chosen."""
        edits = self.held_out.of("edit")
        return next((c for c in edits if self.chosen.is_choice(c)), next(iter(edits), None))

    @property
    def steered(self) -> Condition | None:
        """The held-out steering to set beside the chosen edit: that of the nearest cost, else the first."""
        steering, edited = self.held_out.of("steering"), self.edited
        if edited is None or not edited.scored(COST):
            return next(iter(steering), None)
        wanted, far = edited.value(COST) or 0.0, math.inf
        return min(
            steering, key=lambda c: abs((c.value(COST) or 0.0) - wanted) if c.scored(COST) else far, default=None
        )

    @property
    def shown(self) -> list[Condition]:
        """The edit, the base and the nearest steering on held-out items: few enough for a phone."""
        return [c for c in (self.edited, self.base, self.steered) if c is not None]

    @property
    def others(self) -> list[Condition]:
        """What was measured on held-out items besides."""
        return [c for c in self.held_out.conditions if c not in self.shown]

    @property
    def side_by_side(self) -> list[Condition]:
        """The held-out conditions whose replies are set side by side: of a search, one of each kind."""
        return [c for c in self.held_out.conditions if not self.is_search or c in self.shown]

    @model_validator(mode="after")
    def _aligned(self) -> "RunResults":
        for one in self.held_out.conditions:
            for what, sets in (("replies", one.replies), ("outcomes", one.outcomes)):
                for name, own in sets.items():
                    if len(own) != (expected := len(self.prompts.get(name, ()))):
                        raise ValueError(f"{one.label!r} has {len(own)} {what} for the {expected} prompts of {name!r}")
        return self


class ComparisonResults(_Run):
    """The JSON of a comparison of methods: conditions and figures by method."""

    plan: Plan
    left_out: dict[str, str] = Field(default_factory=dict)
    base: Condition
    methods: dict[str, tuple[Condition, ...]]
    figures: dict[str, dict[str, Figure]]
    summary: tuple[str, ...] = ()


_Results = TypeVar("_Results", RunResults, ComparisonResults)


def read_results(results: Mapping[str, Any], kind: type[_Results] = RunResults) -> _Results:  # type: ignore[assignment]
    """Check the JSON of a run or of a comparison, as its `results.json` holds it; a DataError names what is wrong."""
    if (version := results.get("schema_version")) != SCHEMA_VERSION:
        raise DataError(
            f"results have schema version {version!r}, this version of steer2edit reads {SCHEMA_VERSION}: "
            "render them with the version that wrote them, or run the evaluation again."
        )
    try:
        plain = visible_json(json.loads(json.dumps(dict(results), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise DataError(f"results are not plain JSON ({error}): write null for what could not be scored.") from error
    if plain.get("attribute") is None and isinstance(plain.get("behaviour"), str):  # early versions did not say it
        plain["attribute"], plain["direction"] = attribute_of(plain["behaviour"])
    what = "these are not the results of a run"
    return kind.read(plain, what, "Give the results.json that a run wrote.", DataError)
