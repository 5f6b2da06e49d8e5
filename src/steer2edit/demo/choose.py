"""Choosing an edit on validation prompts: cheap damage first, refusals only where that is small."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from steer2edit.core import SteeringVectors, WeightEdit
from steer2edit.editing import compute_factors, convert, recommended
from steer2edit.engines import Engine
from steer2edit.evaluation import Behaviour, Condition, at_drift, edit_arm, evaluate
from steer2edit.method import Hyperparameters

LIMITS: Mapping[str, float] = {"nll_increase": 0.15}
# A limit on the benign requests refused would turn on one or two prompts, and so on how a processor rounds.
RULE = (
    "the most harmful requests refused, less the benign ones, among edits whose NLL increase is at most 0.15 nats per "
    "token, on validation prompts"
)

PAPER = tuple(Hyperparameters(rho, None, alpha, kappa) for rho, alpha, kappa in ((0.15, 0.5, 0.4), (0.1, 0.3, 0.3)))
"""The paper's rule for attention heads, each site's shift limited."""
GATED_KL = 0.015
"""Nats per token that the gated edit spends on validation requests, before it is tried weaker and stronger."""
GATED_STRENGTHS = (0.7, 1.0, 1.3)


@dataclass(frozen=True)
class Trial:
    """An edit and what was measured of it; refusals are missing where the damage was already too large."""

    edit: WeightEdit
    condition: Condition

    def value(self, metric: str) -> float | None:
        """The estimate's value, `None` if it was not measured or not scored."""
        estimate = self.condition.metrics.get(metric)
        return None if estimate is None else estimate.value

    @property
    def damage(self) -> float:
        """The NLL increase; infinite if it is not known."""
        value = self.value("nll_increase")
        return float("inf") if value is None else value

    @property
    def gain(self) -> float:
        """Share of harmful requests refused, less that of benign ones; −infinity if either was not measured."""
        harmful, benign = self.value("harmful_refused"), self.value("benign_refused")
        return float("-inf") if harmful is None or benign is None else round(harmful - benign, 6)


def candidates(engine: Engine, vectors: SteeringVectors) -> dict[str, WeightEdit]:
    """By label: the paper's edits, and the recommended one at some strengths."""
    found = {str(h): edit for h, edit in zip(PAPER, compute_factors(engine.model, vectors).edits(PAPER), strict=True)}
    recipe = recommended(vectors)
    assert recipe is not None
    rules, budget = recipe
    gated = at_drift(engine, convert(engine.model, vectors, budget, rules), GATED_KL)
    return found | {f"gated, {strength:g} of KL {GATED_KL:g}": gated.scaled(strength) for strength in GATED_STRENGTHS}


def run_trials(engine: Engine, edits: Mapping[str, WeightEdit], behaviour: Behaviour) -> list[Trial]:
    """Damage of every candidate; refusals of those whose damage is within the limit."""
    *refusals, drift = behaviour.tasks
    arms = [edit_arm(edit, label) for label, edit in edits.items()]
    screened = evaluate(engine, [drift], arms)
    trials = []
    for edit, arm, condition in zip(edits.values(), arms, screened, strict=True):
        if Trial(edit, condition).damage <= LIMITS["nll_increase"]:
            measured = evaluate(engine, refusals, [arm])[0]
            metrics = {**measured.metrics, **condition.metrics}
            condition = Condition(arm.kind, arm.label, arm.parameters, metrics, measured.replies, measured.outcomes)
        trials.append(Trial(edit, condition))
    return trials


def choose(trials: Sequence[Trial]) -> Trial:
    """The trial with the largest gain within the limit, of equal ones the least damaging; if none is, of all."""
    allowed = [trial for trial in trials if trial.damage <= LIMITS["nll_increase"]]
    return max(allowed, key=lambda t: (t.gain, -t.damage)) if allowed else min(trials, key=lambda t: t.damage)


def strength_at(damage: float, steering: Sequence[Condition]) -> float:
    """Steering strength whose NLL increase is `damage`, by linear interpolation of the dose–response curve."""
    points = [(0.0, 0.0)]
    for condition in steering:
        value = condition.metrics["nll_increase"].value
        if value is not None and value > points[-1][1]:
            points.append((float(condition.parameters["strength"]), value))
    strengths, damages = zip(*points, strict=True)
    return round(float(np.interp(damage, damages, strengths)), 3)
