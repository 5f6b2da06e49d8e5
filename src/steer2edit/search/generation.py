"""A generation of configurations, measured by successive halving."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from steer2edit.core import Editing, WeightEdit
from steer2edit.editing import natural_strength
from steer2edit.evaluation import Behaviour, DriftTask, merged_measurements
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import Sampling
from steer2edit.search.goal import Goal, ranked
from steer2edit.search.search import Search
from steer2edit.search.space import Parameters
from steer2edit.search.study import Trial
from steer2edit.steering.secant import Secant

RUNGS = (0.25, 0.5, 1.0)
"""Shares of the validation items after which the less promising half of a generation is stopped."""

_JUST_WITHIN = 0.05  # how near the whole drift budget the edit of effects is brought, from below
_MOST_STEPS = 8
_FEWEST = 4  # trials that survive a rung, if there are as many
NO_EDIT = "edits next to nothing"
DEGENERATE = "degenerate"
SANITY_METRIC = "sanity_kl"


def measure_generation(
    search: Search, proposals: Sequence[Parameters], generation: int, *, drifts: tuple[float, float] | None = None
) -> list[Trial]:
    """Trials of the proposals, in their order; an empty one stands for the edit of measured effects.

    What drifts less or further than `drifts` on a few short benign requests is stopped before it generates a token. The
    others are measured on a quarter of the validation items, the better half (`ranked`) on the next quarter, the better
    half of those on the rest; the edit of effects on all. A rung runs in shared batches, each row under its own edit.
    """
    trials = []
    for index, point in enumerate(proposals):
        chosen, scale = (search.space.hyperparameters(point), 1.0) if point else _by_effect(search)
        trials.append(Trial(generation, index, point, chosen, 0.0, None, {}, worker=search.options.worker, scale=scale))
    edits = search.edits(trials)
    _filter(search, trials, edits, drifts or search.sane_drifts)
    for begin, end in pairwise((0.0, *RUNGS)):
        if alive := [trial for trial in trials if trial.complete]:
            part, own = search.validation.part(begin, end), [Editing(edits[trial.index]) for trial in alive]
            by_task = [task.measure(search.engine, own) for task in part.tasks if len(task)]
            for trial, *found in zip(alive, *by_task, strict=True):
                trials[trial.index] = replace(trial, share=end, **vars(merged_measurements([trial, *found])))
            if end < 1:
                _halve(trials, search.goal, end)
    return trials


def _by_effect(search: Search) -> tuple[Hyperparameters, float]:
    """The edit of effects, as strong as the drift budget allows with the whole interval of what it spends."""
    edit = search.effects
    assert edit is not None
    secant = Secant((1 - _JUST_WITHIN) * search.goal.largest_cost, natural_strength(edit) or 1.0, _JUST_WITHIN)
    while not secant.best.reached and secant.steps < _MOST_STEPS:
        drift = search.validation.drift.measure(search.engine, [Editing(edit, secant.strength)])[0].metrics["kl"]
        secant.tell(drift.value if drift.high is None else drift.high)
    return Hyperparameters.from_json(edit.metadata["hyperparameters"]), secant.best.strength or 1.0


def _filter(search: Search, trials: list[Trial], edits: Sequence[WeightEdit], drifts: tuple[float, float]) -> None:
    """Stop what does nothing, or too much, on the sanity requests."""
    sanity, (least, most) = sanity_task(search.validation), drifts
    trials[:] = [replace(t, stopped=NO_EDIT if edit.is_empty else None) for t, edit in zip(trials, edits, strict=True)]
    alive = [trial for trial in trials if trial.complete]
    measured = sanity.measure(search.engine, [Editing(edits[trial.index]) for trial in alive])
    for trial, found in zip(alive, measured, strict=True):
        values, drift, on = found.values["kl"], found.metrics["kl"].value, f"on {len(sanity)} short benign requests"
        # a request that the base answers with nothing is `None`: it says nothing about the edit
        stopped = None
        if drift is None or any(value is not None and not math.isfinite(value) for value in values):
            stopped = f"{DEGENERATE}: KL not finite {on}"
        elif drift > most:
            stopped = f"{DEGENERATE}: KL {drift:.2f} {on}"
        elif drift < least:
            stopped = f"{NO_EDIT}: KL {drift:.4f} {on}"
        trials[trial.index] = replace(trial, values={SANITY_METRIC: values}, stopped=stopped)


def _halve(trials: list[Trial], goal: Goal, share: float) -> None:
    """Stop the less promising half of what was not stopped."""
    alive = [trial for trial in trials if trial.complete]
    if all(goal.point(t.metrics) is None for t in alive):
        return  # so few items that none came up yet: nothing tells them apart
    kept = ranked([t.metrics for t in alive], goal)[: max(_FEWEST, -(-len(alive) // 2))]
    for place, trial in enumerate(alive):
        if place not in kept and trial.parameters:
            why = f"less promising than half of its generation after {share:.0%} of the items"
            trials[trial.index] = replace(trial, stopped=why)


def sanity_task(behaviour: Behaviour, count: int = 8, max_new_tokens: int = 12) -> DriftTask:
    """Drift on the shortest benign requests of a behaviour, with short answers."""
    drift = behaviour.drift
    shortest = sorted(drift.items, key=lambda prompt: len(str(prompt)))[:count]
    return DriftTask("", shortest, Sampling(max_new_tokens=max_new_tokens))
