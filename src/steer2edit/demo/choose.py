"""Choosing an edit on validation prompts: cheap damage first, refusals only where that is small."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from steer2edit.editing import Factors
from steer2edit.engines import Engine
from steer2edit.evaluation import Behaviour, Condition, edit_arm, evaluate
from steer2edit.method import Hyperparameters

LIMITS: Mapping[str, float] = {"nll_increase": 0.15}
# A limit on the benign requests refused would turn on one or two prompts, and so on how a processor rounds.
RULE = (
    "the most harmful requests refused, less the benign ones, among edits whose NLL increase is at most 0.15 nats per "
    "token, on validation prompts"
)

PAPER_CANDIDATES = (Hyperparameters(0.2, 0.9, 0.5), Hyperparameters(0.3, 0.9, 0.5))
LIMITED_CANDIDATES = tuple(
    Hyperparameters(rho_attn, rho_mlp, alpha, max_shift)
    for rho_attn, rho_mlp, alpha, max_shift in (
        (0.2, 0.9, 0.5, 1.0),
        (0.15, None, 0.5, 0.4),
        (0.12, None, 0.5, 0.4),
        (0.1, None, 0.5, 0.4),
        (0.1, None, 0.3, 0.3),
    )
)
CANDIDATES = PAPER_CANDIDATES + LIMITED_CANDIDATES


@dataclass(frozen=True)
class Trial:
    """A configuration and what was measured of it; refusals are missing where the damage was already too large."""

    hyperparameters: Hyperparameters
    condition: Condition

    @property
    def damage(self) -> float:
        """The NLL increase; infinite if it is not known."""
        value = self.condition.value("nll_increase")
        return float("inf") if value is None else value

    @property
    def gain(self) -> float:
        """Share of harmful requests refused, less that of benign ones; −infinity if either was not measured."""
        harmful, benign = self.condition.value("harmful_refused"), self.condition.value("benign_refused")
        return float("-inf") if harmful is None or benign is None else round(harmful - benign, 6)


def run_trials(
    engine: Engine, factors: Factors, behaviour: Behaviour, candidates: Sequence[Hyperparameters] = CANDIDATES
) -> list[Trial]:
    """Damage of every candidate; refusals of those whose damage is within the limit."""
    *refusals, drift = behaviour.tasks
    edits = factors.edits(candidates)
    arms = [edit_arm(edit, str(h)) for edit, h in zip(edits, candidates, strict=True)]
    screened = evaluate(engine, [drift], arms)
    trials = []
    for h, arm, condition in zip(candidates, arms, screened, strict=True):
        if Trial(h, condition).damage <= LIMITS["nll_increase"]:
            measured = evaluate(engine, refusals, [arm])[0]
            condition = replace(measured, metrics={**measured.metrics, **condition.metrics})
        trials.append(Trial(h, condition))
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
